//! The words that options take.

use std::net::SocketAddr;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Where names are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum TlsListen {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl TlsListen {
    /// The port, where names are served.
    pub(crate) fn port(self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address.port()),
        }
    }
}

impl FromStr for TlsListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => match address.parse() {
                Ok(address) => Ok(Self::At(address)),
                Err(_) => Err(format!("`{address}` is neither an address with a port nor `off`")),
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
