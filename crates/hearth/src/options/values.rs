//! Types of option values.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Default port of HTTPS URLs.
pub(crate) const HTTPS_PORT: u16 = 443;
/// Port for TLS if 443 is in use or not allowed for this user.
const OTHER_TLS_PORT: u16 = 3443;

/// Listener for the names of the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum TlsListen {
    Off,
    /// Loopback, on the first of ports 443 and 3443 that can be bound.
    Auto,
    At(SocketAddr),
}

impl TlsListen {
    /// Candidate addresses in order of preference; the daemon listens on one of them.
    pub(crate) fn addresses(self) -> Vec<SocketAddr> {
        match self {
            Self::Off => Vec::new(),
            Self::Auto => [HTTPS_PORT, OTHER_TLS_PORT].map(|port| (Ipv4Addr::LOCALHOST, port).into()).into(),
            Self::At(address) => vec![address],
        }
    }

    /// Returns the port that a daemon started now would listen on; `None` if TLS is off.
    pub(crate) fn port(self) -> Option<u16> {
        let addresses = self.addresses();
        let (last, others) = addresses.split_last()?;
        let free = others.iter().find(|address| TcpListener::bind(address).is_ok());
        Some(free.unwrap_or(last).port())
    }
}

impl FromStr for TlsListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            address => match address.parse() {
                Ok(address) => Ok(Self::At(address)),
                Err(_) => Err(format!("`{address}` is neither an address with a port nor `auto` or `off`")),
            },
        }
    }
}

impl TryFrom<String> for TlsListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TlsListen> for String {
    fn from(listen: TlsListen) -> Self {
        match listen {
            TlsListen::Off => "off".to_owned(),
            TlsListen::Auto => "auto".to_owned(),
            TlsListen::At(address) => address.to_string(),
        }
    }
}

/// Content of sandboxes' logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GuestLogs {
    /// Starts and exits of processes, and errors
    Events,
    /// Events, and the output of processes
    Output,
}

/// Network of guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    /// `namespaces` if this process may create network namespaces, otherwise `user`
    Auto,
    /// One network namespace per guest (needs root)
    Namespaces,
    /// User-mode network of the VMM
    User,
}

/// Hardware virtualization or emulation for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accelerator {
    /// KVM if a test with it succeeds, otherwise emulation
    Auto,
    /// Hardware virtualization by KVM
    Kvm,
    /// Software emulation by QEMU
    Tcg,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Plain text, for people
    Text,
    /// One JSON object per line
    Json,
}
