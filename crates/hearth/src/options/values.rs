//! The words that options take.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Port of HTTPS, which clients assume where a URL names none.
pub(crate) const HTTPS_PORT: u16 = 443;
/// Port where HTTPS's own cannot be had: taken, or not allowed for this user.
const OTHER_TLS_PORT: u16 = 3443;

/// Where names are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum TlsListen {
    /// Nowhere.
    Off,
    /// On this machine, on the first of two ports that can be bound.
    Auto,
    /// There.
    At(SocketAddr),
}

impl TlsListen {
    /// Addresses to listen on, best first: one of them.
    pub(crate) fn addresses(self) -> Vec<SocketAddr> {
        match self {
            Self::Off => Vec::new(),
            Self::Auto => [HTTPS_PORT, OTHER_TLS_PORT].map(|port| (Ipv4Addr::LOCALHOST, port).into()).into(),
            Self::At(address) => vec![address],
        }
    }

    /// The port that a daemon started now would serve names on.
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

/// What sandboxes' logs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GuestLogs {
    /// Starts and ends of processes, and errors
    Events,
    /// What processes print as well
    Output,
}

/// How guests are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    /// Namespaces when this process may make them, user otherwise
    Auto,
    /// A namespace of its own for each guest (needs root)
    Namespaces,
    /// The VMM's user-mode network
    User,
}

/// What executes guests' instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accelerator {
    /// KVM if it proves itself, emulation otherwise
    Auto,
    /// The CPU's virtualization
    Kvm,
    /// Software emulation
    Tcg,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}
