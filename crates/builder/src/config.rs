//! How templates are built.

use std::net::IpAddr;
use std::path::PathBuf;

use hearth_types::Resources;

/// How templates are built.
#[derive(Debug, Clone)]
pub struct Config {
    /// A folder of the builder's own, below the data directory. Made when missing.
    pub folder: PathBuf,
    /// Our programs that go into every guest.
    pub guest: GuestPrograms,
    /// The release of Debian that the kernel and the base template come from. The base template's contract (Python 3,
    /// Node.js 20) holds for [`SUITE`].
    pub suite: String,
    /// The mirror of Debian to use, such as `http://mirror.example/debian`. `None`: the one that this host uses itself if it
    /// is a Debian, otherwise Debian's own. A named mirror is the only one asked: security updates come from its sibling
    /// `debian-security`, or not at all if it is not called `debian`.
    pub mirror: Option<String>,
    /// What guests ask for names.
    pub nameserver: IpAddr,
    /// Virtual hardware of the base template.
    pub resources: Resources,
}

/// Our programs that go into every guest, static for its architecture.
#[derive(Debug, Clone)]
pub struct GuestPrograms {
    /// PID 1.
    pub init: PathBuf,
    /// The guest daemon.
    pub envd: PathBuf,
}

/// Debian 13.
pub const SUITE: &str = "trixie";
/// What E2B's guests ask: they have no address that a local resolver could be reached from.
pub const NAMESERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8));
/// E2B's base template has 2 CPUs and 512 MiB of memory.
pub const RESOURCES: Resources = Resources { vcpus: 2, memory_mib: 512, disk_mib: 8192 };
