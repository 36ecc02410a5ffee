//! The domain of an instance, with the names `api.<domain>` and `<port>-<sandbox>.<domain>` below it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::options::HTTPS_PORT;

/// Default domain. Names below `localhost` resolve to this machine (RFC 6761, 6.3).
const LOCAL: &str = "hearth.localhost";
/// Maximum length of a domain.
///
/// A name has at most 253 bytes (RFC 1035), and the longest label below it takes 64 with its dot.
const HOST_BYTES_MAX: usize = 253 - 64;
/// Time limit for one lookup. With a slower resolver clients would wait too long as well.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Host name in lower case, with a port if that is not 443.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Domain {
    host: String,
    port: Option<u16>,
}

/// Reason why a text is not a valid domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DomainError {
    #[error(
        "`{0}` is not a domain: it needs at least two labels of letters, digits and dashes, such as sandboxes.example.com"
    )]
    Host(String),
    #[error("`{0}` is not a port")]
    Port(String),
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => {
                (host, Some(port.parse().ok().filter(|port| *port != 0).ok_or(DomainError::Port(port.to_owned()))?))
            }
            None => (text, None),
        };
        let labels: Vec<&str> = host.split('.').collect();
        // Clients reject a wildcard directly below a top-level domain, and a numeric last label means an IP address.
        let numeric = labels.last().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if labels.len() < 2 || numeric || host.len() > HOST_BYTES_MAX || !labels.iter().all(|label| is_label(label)) {
            return Err(DomainError::Host(host.to_owned()));
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

/// Checks the syntax of one label (RFC 1123, 2.1).
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl Domain {
    /// Returns the local domain for names served on `port`.
    pub(crate) fn local(port: u16) -> Self {
        Self { host: LOCAL.to_owned(), port: Some(port).filter(|port| *port != HTTPS_PORT) }
    }

    /// Host name, without the port.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns true for a domain below `localhost`.
    pub(crate) fn is_local(&self) -> bool {
        self.host.ends_with(".localhost")
    }

    /// Returns true if a request for this authority is for the API, and not for a sandbox.
    ///
    /// That is `api.<domain>`, and the domain itself, where clients open the login page.
    pub(crate) fn is_api(&self, authority: &str) -> bool {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.strip_suffix('.').unwrap_or(host);
        host.eq_ignore_ascii_case(&self.host)
            || host
                .split_once('.')
                .is_some_and(|(label, rest)| label.eq_ignore_ascii_case("api") && rest.eq_ignore_ascii_case(&self.host))
    }

    /// Returns true if names below the domain resolve on this machine; names of a local domain must resolve to loopback
    /// only.
    pub(crate) async fn resolves(&self) -> bool {
        for label in ["api", "49983-probe"] {
            let name = format!("{label}.{}", self.host);
            let lookup = tokio::net::lookup_host((name.as_str(), self.port.unwrap_or(HTTPS_PORT)));
            let Ok(Ok(addresses)) = tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await else { return false };
            let addresses: Vec<_> = addresses.collect();
            if addresses.is_empty() || self.is_local() && !addresses.iter().all(|address| address.ip().is_loopback()) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_have_two_labels_and_an_optional_port() {
        for (text, expected) in [
            ("Example.COM", "example.com"),
            ("hearth.localhost:3443", "hearth.localhost:3443"),
            ("a-1.b2.c:1", "a-1.b2.c:1"),
        ] {
            assert_eq!(text.parse::<Domain>().expect(text).to_string(), expected);
        }
        for text in ["", "localhost", "a..b", ".a.b", "a.b.", "-a.b", "a-.b", "a_b.c", "*.a.b", "127.0.0.1", "a/b.c"] {
            assert!(matches!(text.parse::<Domain>(), Err(DomainError::Host(_))), "{text}");
        }
        assert!(matches!("x".repeat(64).parse::<Domain>(), Err(DomainError::Host(_))));
        assert!(matches!(format!("{}a.b", "a.".repeat(100)).parse::<Domain>(), Err(DomainError::Host(_))));
        for text in ["a.b:", "a.b:0", "a.b:65536", "a.b:c"] {
            assert!(matches!(text.parse::<Domain>(), Err(DomainError::Port(_))), "{text}");
        }
    }

    #[test]
    fn port_443_is_omitted() {
        assert_eq!(Domain::local(3443).to_string(), "hearth.localhost:3443");
        assert_eq!(Domain::local(443).to_string(), "hearth.localhost");
    }

    #[test]
    fn the_domain_and_its_api_name_belong_to_the_api() {
        let domain: Domain = "example.com".parse().expect("a domain");
        for (authority, expected) in [
            ("api.example.com", true),
            ("API.Example.com:3443", true),
            ("api.example.com.", true),
            ("api.example.com.:1", true),
            ("example.com", true),
            ("Example.com.:3443", true),
            ("example.com.evil", false),
            ("anexample.com", false),
            ("sandbox.example.com", false),
            ("49983-i1.example.com", false),
            ("api.api.example.com", false),
            ("api.example.org", false),
            ("api", false),
            ("", false),
            ("[::1]:3443", false),
        ] {
            assert_eq!(domain.is_api(authority), expected, "{authority}");
        }
    }

    #[tokio::test]
    async fn names_below_invalid_do_not_resolve() {
        // RFC 6761, 6.4.
        assert!(!"hearth.invalid".parse::<Domain>().expect("a domain").resolves().await);
    }
}
