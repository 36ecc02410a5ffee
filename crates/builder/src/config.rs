//! Configuration of template builds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// Configuration of template builds.
#[derive(Debug, Clone)]
pub struct Config {
    /// The builder's folder, below the data directory. Created if missing.
    pub folder: PathBuf,
    pub guest: GuestPrograms,
    /// Release of Debian that the kernel and the templates come from.
    ///
    /// The promised contents of the templates (Python 3.13, Node.js 20) are those of [`SUITE`].
    pub suite: String,
    /// Debian mirror, such as `http://mirror.example/debian`.
    ///
    /// `None` means the mirror that this host uses if it runs Debian, otherwise Debian's own. A configured mirror is
    /// the only one used: security updates come from its sibling `debian-security`, or not at all if its name is not
    /// `debian`.
    pub mirror: Option<String>,
    /// Environment variables of this process.
    ///
    /// Those of pip, npm and proxies that concern the network apply while Python and Node packages are fetched.
    pub variables: BTreeMap<String, String>,
    /// DNS server of guests.
    pub nameserver: IpAddr,
}

/// Hearth's programs for every guest, statically linked for its architecture.
#[derive(Debug, Clone)]
pub struct GuestPrograms {
    /// Path of PID 1.
    pub init: PathBuf,
    /// Path of the guest daemon.
    pub envd: PathBuf,
    /// Path of the interpreter, for templates that declare its service. Without it, these templates cannot be built.
    pub interpreter: Option<PathBuf>,
}

/// Debian 13.
pub const SUITE: &str = "trixie";
/// DNS server of E2B's guests, which is public because guests cannot reach a local resolver.
pub const NAMESERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8));
