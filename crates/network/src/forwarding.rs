//! Packet forwarding, on the interfaces that need it and nowhere else.
//!
//! A packet is forwarded if the interface it *arrives* on forwards (ip-sysctl, `conf/interface/forwarding`): a guest's comes
//! in on its slot's link, and the answer on an uplink of the host. The global switch `ip_forward` would turn the host into a
//! router between all its networks, and stay on. Only uplinks that did not forward before are switched, each is recorded
//! first, and the instance's rules keep others from using it (`rules::host`).
//!
//! The record is a file for each interface in the lock folder, which a start of the machine empties like the switches
//! themselves. It outlives a daemon that is killed; whichever instance stops last restores what is recorded.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hearth_host::namespace;

use crate::config::Error;

/// The switch of all interfaces at once. Whoever turns it on wants a router, and keeps it.
const GLOBAL: &str = "net/ipv4/ip_forward";

/// Forwarding of the host's uplinks.
#[derive(Debug)]
pub(crate) struct Forwarding {
    folder: PathBuf,
    /// Interfaces of another network namespace may have the same names.
    namespace: u64,
}

impl Forwarding {
    /// With records in `folder`, for the current network namespace.
    pub(crate) fn new(folder: &Path) -> Result<Self, Error> {
        let setup = |source| Error::Setup { action: "identifying the network namespace", source };
        Ok(Self { folder: folder.to_owned(), namespace: namespace::current().map_err(setup)? })
    }

    /// Switches forwarding on for every uplink of the host that does not forward, and returns all uplinks that only forward
    /// because of Hearth. Blocks.
    pub(crate) fn ensure(&self) -> Result<BTreeSet<String>, Error> {
        let setup = |source| Error::Setup { action: "switching IPv4 forwarding on", source };
        for link in namespace::uplinks().map_err(setup)? {
            if !is_plain(&link) {
                tracing::warn!(link, "an uplink with an unusual name does not forward");
                continue;
            }
            let switch = switch(&link);
            match namespace::read_sysctl(&switch) {
                Ok(value) if value == "0" => {
                    self.record(&link)?;
                    namespace::sysctl(&switch, "1").map_err(setup)?;
                    tracing::info!(link, "IPv4 forwarding of an uplink switched on");
                }
                Ok(_) => {}
                // It went away since the routes were read.
                Err(error) => tracing::debug!(link, %error, "an uplink is gone"),
            }
        }
        Ok(self.recorded())
    }

    /// Restores every recorded interface, unless somebody has made the whole host a router meanwhile. Blocks.
    pub(crate) fn restore(&self) {
        let is_router = namespace::read_sysctl(GLOBAL).is_ok_and(|value| value == "1");
        for link in self.recorded() {
            let switch = switch(&link);
            if !is_router
                && namespace::has_sysctl(&switch)
                && let Err(error) = namespace::sysctl(&switch, "0")
            {
                tracing::warn!(link, %error, "could not switch IPv4 forwarding of an uplink off");
                continue;
            }
            let path = self.path(&link);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove the record of an uplink");
            }
        }
    }

    fn prefix(&self) -> String {
        format!("forwarding-{}-", self.namespace)
    }

    fn path(&self, link: &str) -> PathBuf {
        self.folder.join(format!("{}{link}", self.prefix()))
    }

    fn record(&self, link: &str) -> Result<(), Error> {
        let path = self.path(link);
        match File::create_new(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::Record { path, source }),
            _ => Ok(()),
        }
    }

    fn recorded(&self) -> BTreeSet<String> {
        let prefix = self.prefix();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect()
    }
}

fn switch(link: &str) -> String {
    format!("net/ipv4/conf/{link}/forwarding")
}

/// Whether a name means the same as a file, in a path below `/proc/sys` and between quotes of nftables.
fn is_plain(link: &str) -> bool {
    let usual = |character: char| character.is_ascii_alphanumeric() || "-_.:@".contains(character);
    !link.is_empty() && link != "." && link != ".." && link.chars().all(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_mean_something_else_are_left_alone() {
        for (name, plain) in [("eth0", true), ("eth0.12", true), ("..", false), ("a\"b", false), ("a*", false)] {
            assert_eq!(is_plain(name), plain, "{name}");
        }
    }
}
