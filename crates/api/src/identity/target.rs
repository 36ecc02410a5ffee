//! Redirect target of a login: a loopback port of the browser's machine (RFC 8252, section 7.3).

use std::fmt;
use std::str::FromStr;

/// Accepted loopback hosts. The command line does not listen on `[::1]`.
const HOSTS: [&str; 2] = ["localhost", "127.0.0.1"];

/// Loopback port of the browser's machine, on which the command line listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoopbackTarget {
    host: &'static str,
    port: u16,
}

/// Error for a text that is not a loopback URL with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidTarget;

impl FromStr for LoopbackTarget {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let authority = text.strip_prefix("http://").ok_or(InvalidTarget)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.split_once(':').ok_or(InvalidTarget)?;
        let host = HOSTS.into_iter().find(|known| *known == host).ok_or(InvalidTarget)?;
        // `parse` would accept a sign.
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidTarget);
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(InvalidTarget)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for LoopbackTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

impl LoopbackTarget {
    pub(super) fn port(self) -> u16 {
        self.port
    }

    /// Returns the URL with query parameters.
    pub(super) fn with(self, parameters: &[(&str, &str)]) -> String {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        format!("{self}/?{query}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_loopback_urls_with_a_port_are_valid() {
        for (text, expected) in [
            ("http://localhost:1", Some("http://localhost:1")),
            ("http://127.0.0.1:65535/", Some("http://127.0.0.1:65535")),
            ("http://localhost:080", Some("http://localhost:80")),
            ("", None),
            ("http://localhost", None),
            ("http://localhost:", None),
            ("http://localhost:0", None),
            ("http://localhost:+80", None),
            ("http://localhost:65536", None),
            ("http://localhost:80//", None),
            ("http://localhost:80/path", None),
            ("http://localhost:80?query", None),
            ("http://localhost:80#fragment", None),
            ("http://localhost:80@evil.example", None),
            ("http://localhost:80\\@evil.example", None),
            ("http://evil.example:80", None),
            ("http://localhost.evil.example:80", None),
            ("http://user@localhost:80", None),
            ("http://127.0.0.2:80", None),
            ("http://[::1]:80", None),
            ("http://LOCALHOST:80", None),
            ("https://localhost:80", None),
            ("HTTP://localhost:80", None),
            ("//localhost:80", None),
            (" http://localhost:80", None),
            ("http://localhost:80\r\nset-cookie: a=b", None),
            ("javascript:alert(1)//http://localhost:80", None),
        ] {
            let found = text.parse::<LoopbackTarget>().ok().map(|target| target.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn parameters_are_encoded() {
        let target: LoopbackTarget = "http://localhost:80".parse().expect("a target");
        assert_eq!(target.with(&[("a", "b&c=d é"), ("e", "")]), "http://localhost:80/?a=b%26c%3Dd+%C3%A9&e=");
    }

    proptest! {
        #[test]
        fn every_valid_target_has_a_loopback_host(text in "(http://)?(localhost|127.0.0.1|[a-z.@]{0,9})[:0-9a-z/?#@\\\\]{0,9}") {
            if let Ok(target) = text.parse::<LoopbackTarget>() {
                let uri: http::Uri = target.with(&[("a", "b")]).parse().expect("an address");
                prop_assert!(HOSTS.contains(&uri.host().expect("a host")));
                prop_assert_eq!(uri.port_u16(), Some(target.port()));
            }
        }
    }
}
