//! Rules for visitors of a sandbox's ports, except the guest daemon's.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Placeholder for the requested port.
const PORT: &str = "${PORT}";
/// A host name has at most 253 bytes (RFC 1035); the rest is for a port and placeholders.
const BYTES_MAX: usize = 300;

/// Access rules and request rewriting for visitors of a sandbox's ports.
///
/// The guest daemon's port is exempt: it has its own token and host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// `true` if all visitors are admitted; otherwise they need the traffic token.
    pub public: bool,
    /// Replaces the host of the request that programs in the sandbox see.
    pub host_mask: Option<HostMask>,
    /// Ports that speak TLS. Their certificates are not verified: no authority signs those of sandboxes.
    pub https_ports: BTreeSet<u16>,
}

impl Ingress {
    /// Admits all visitors and passes requests on unchanged.
    #[must_use]
    pub fn open() -> Self {
        Self { public: true, host_mask: None, https_ports: BTreeSet::new() }
    }
}

/// A host with an optional port, in which `${PORT}` stands for the requested port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMask(String);

/// The text is not a host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host: use `host` or `host:port` in ASCII, where `${{PORT}}` stands for the requested port")]
pub struct HostMaskError(String);

impl HostMask {
    /// Returns the host for requests to this port.
    #[must_use]
    pub fn host(&self, port: u16) -> String {
        self.0.replace(PORT, &port.to_string())
    }

    /// Returns the mask as written by the client.
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
        // A mask that is valid for the longest port is valid for all ports.
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
