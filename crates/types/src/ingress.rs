//! How visitors reach the ports of a sandbox, other than its guest daemon's.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Stands for the port that was asked for.
const PORT: &str = "${PORT}";
/// A host name has at most 253 bytes (RFC 1035); with a port and placeholders.
const BYTES_MAX: usize = 300;

/// Who may visit, and how visitors' requests are passed on. None of it is about the guest daemon's port, which has a token and a
/// host of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// Whether anybody may; otherwise the traffic token is needed.
    pub public: bool,
    /// What programs see as the host instead of the one that was asked for.
    pub host_mask: Option<HostMask>,
    /// Ports that speak TLS. Their certificates are not verified: nobody vouches for a sandbox's.
    pub https_ports: BTreeSet<u16>,
}

impl Ingress {
    /// Anybody may visit, and nothing is changed.
    #[must_use]
    pub fn open() -> Self {
        Self { public: true, host_mask: None, https_ports: BTreeSet::new() }
    }
}

/// A host with an optional port, in which `${PORT}` stands for the port that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMask(String);

/// Not a host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no host: it has to be `host` or `host:port` in ASCII, where `${{PORT}}` stands for the port asked for"
)]
pub struct HostMaskError(String);

impl HostMask {
    /// The host for requests to this port.
    #[must_use]
    pub fn host(&self, port: u16) -> String {
        self.0.replace(PORT, &port.to_string())
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostMask {
    type Err = HostMaskError;

    fn from_str(text: &str) -> Result<Self, HostMaskError> {
        // What holds for the longest port holds for all.
        let longest = text.replace(PORT, "65535");
        if text.len() > BYTES_MAX || !is_authority(&longest) {
            return Err(HostMaskError(text.chars().take(BYTES_MAX).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, Some(port.strip_prefix(':').unwrap_or_default())),
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_host = match text.starts_with('[') {
        true => host.parse::<std::net::Ipv6Addr>().is_ok(),
        false => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    let is_port = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    is_host && is_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_hosts_with_an_optional_port() {
        for (text, expected) in [
            ("localhost", "localhost"),
            ("localhost:${PORT}", "localhost:8080"),
            ("${PORT}.example.com", "8080.example.com"),
            ("${PORT}-x.example.com:${PORT}", "8080-x.example.com:8080"),
            ("my_host.local:1", "my_host.local:1"),
            ("127.0.0.1:${PORT}", "127.0.0.1:8080"),
            ("[::1]", "[::1]"),
            ("[::1]:${PORT}", "[::1]:8080"),
        ] {
            let mask: HostMask = text.parse().expect(text);
            assert_eq!((mask.host(8080).as_str(), mask.as_str()), (expected, text));
        }
        for text in [
            "",
            ":80",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "localhost:1${PORT}",
            "localhost:+1",
            "localhost:${port}",
            "http://localhost",
            "user@localhost",
            "local host",
            "localhost/",
            "h\u{f6}st",
            "host\r\nx: y",
            "::1",
            "[::1",
            "[::1]80",
            "[localhost]",
        ] {
            assert!(text.parse::<HostMask>().is_err(), "{text:?}");
        }
        assert!("x".repeat(BYTES_MAX + 1).parse::<HostMask>().is_err());
    }
}
