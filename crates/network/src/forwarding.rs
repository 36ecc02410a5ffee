//! Packet forwarding on the interfaces that need it, and on no others.
//!
//! The kernel forwards a packet if forwarding is enabled on the interface where the packet *arrives* (ip-sysctl,
//! `conf/interface/forwarding`): a guest's packet arrives on its slot's link, the answer on an uplink of the host. The
//! global switch `ip_forward` would turn the host into a router between all its networks, and would stay on. Therefore
//! only uplinks with forwarding off are switched on, each is recorded first, and the instance's rules prevent other
//! traffic from using it (`rules::host`).
//!
//! The record is one file per interface in the lock folder. A reboot empties that folder and resets the switches. The
//! record survives a killed daemon; the instance that stops last restores all recorded interfaces.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hearth_host::namespace;

use crate::config::Error;

/// Forwarding switch for all interfaces. If an operator turns it on, the host is meant to be a router and stays one.
const GLOBAL: &str = "net/ipv4/ip_forward";

#[derive(Debug)]
pub(crate) struct Forwarding {
    folder: PathBuf,
    /// Inode number of the network namespace: interfaces of other namespaces may have the same names.
    namespace: u64,
}

impl Forwarding {
    /// Creates an instance for the current network namespace, with records in `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self, Error> {
        let setup = |source| Error::Setup { action: "identifying the network namespace", source };
        Ok(Self { folder: folder.to_owned(), namespace: namespace::current().map_err(setup)? })
    }

    /// Enables forwarding on every uplink of the host where it is off. Blocks.
    ///
    /// Returns all uplinks that forward only because of Hearth.
    pub(crate) fn ensure(&self) -> Result<BTreeSet<String>, Error> {
        let setup = |source| Error::Setup { action: "switching IPv4 forwarding on", source };
        for link in namespace::uplinks().map_err(setup)? {
            if !is_safe_name(&link) {
                tracing::warn!(link, "uplink skipped: its name is unusual");
                continue;
            }
            let switch = switch(&link);
            match namespace::read_sysctl(&switch) {
                Ok(value) if value == "0" => {
                    self.record(&link)?;
                    namespace::sysctl(&switch, "1").map_err(setup)?;
                    tracing::info!(link, "IPv4 forwarding enabled on an uplink");
                }
                Ok(_) => {}
                // The uplink was removed since the routes were read.
                Err(error) => tracing::debug!(link, %error, "uplink removed"),
            }
        }
        Ok(self.recorded())
    }

    /// Disables forwarding on every recorded interface, unless the whole host has become a router meanwhile. Blocks.
    pub(crate) fn restore(&self) {
        let is_router = namespace::read_sysctl(GLOBAL).is_ok_and(|value| value == "1");
        for link in self.recorded() {
            let switch = switch(&link);
            if !is_router
                && namespace::has_sysctl(&switch)
                && let Err(error) = namespace::sysctl(&switch, "0")
            {
                tracing::warn!(link, %error, "could not disable IPv4 forwarding of an uplink");
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

/// Returns true if the name is safe as a file name, in a path below `/proc/sys`, and between quotes in nftables.
fn is_safe_name(link: &str) -> bool {
    let usual = |character: char| character.is_ascii_alphanumeric() || "-_.:@".contains(character);
    !link.is_empty() && link != "." && link != ".." && link.chars().all(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_names_are_rejected() {
        for (name, safe) in [("eth0", true), ("eth0.12", true), ("..", false), ("a\"b", false), ("a*", false)] {
            assert_eq!(is_safe_name(name), safe, "{name}");
        }
    }
}
