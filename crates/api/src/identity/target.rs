//! Where a login is told to: a port of the machine that the browser runs on, and nothing else (RFC 8252, 7.3).

use std::fmt;
use std::str::FromStr;

/// The names of that machine. Not `[::1]`: the command line does not listen there.
const HOSTS: [&str; 2] = ["localhost", "127.0.0.1"];

/// A port of the machine that the browser runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    host: &'static str,
    port: u16,
}

/// The text is no such port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoTarget;

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let authority = text.strip_prefix("http://").ok_or(NoTarget)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.split_once(':').ok_or(NoTarget)?;
        let host = HOSTS.into_iter().find(|known| *known == host).ok_or(NoTarget)?;
        // `parse` would take a sign.
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NoTarget);
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(NoTarget)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

impl Target {
    pub(super) fn port(self) -> u16 {
        self.port
    }

    /// Its address with these parameters.
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
    fn only_ports_of_this_machine_are_targets() {
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
            let found = text.parse::<Target>().ok().map(|target| target.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn parameters_stay_what_they_are() {
        let target: Target = "http://localhost:80".parse().expect("a target");
        assert_eq!(target.with(&[("a", "b&c=d é"), ("e", "")]), "http://localhost:80/?a=b%26c%3Dd+%C3%A9&e=");
    }

    proptest! {
        #[test]
        fn whatever_is_a_target_is_on_this_machine(text in "(http://)?(localhost|127.0.0.1|[a-z.@]{0,9})[:0-9a-z/?#@\\\\]{0,9}") {
            if let Ok(target) = text.parse::<Target>() {
                let uri: http::Uri = target.with(&[("a", "b")]).parse().expect("an address");
                prop_assert!(HOSTS.contains(&uri.host().expect("a host")));
                prop_assert_eq!(uri.port_u16(), Some(target.port()));
            }
        }
    }
}
