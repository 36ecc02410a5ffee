//! The instance number of this daemon on its machine, and the names and addresses derived from it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use hearth_host::lock::{self, Lock};
use hearth_host::namespace;

use crate::config::{Config, Error};

/// Daemons on one machine: one per /20 of the block.
const INSTANCES: u32 = 16;
/// Slots of an instance, with two addresses each.
pub(crate) const SLOTS: u32 = 2048;

/// Folder in which daemons lock their instance numbers.
///
/// Names and addresses follow from the number alone, so all daemons of a machine use the same folder. It is empty after
/// a reboot (hier(7), `/run/lock`).
pub const LOCK_FOLDER: &str = "/run/lock/hearth";

/// An instance number, held until the daemon exits.
#[derive(Debug)]
pub(crate) struct Instance {
    number: u32,
    block: Ipv4Addr,
    _lock: Lock,
}

impl Instance {
    /// Claims a number that no other daemon holds.
    ///
    /// Prefers the number that this owner had before, so that its leftovers are removed; then one that was never used;
    /// then any free one.
    pub(crate) fn claim(folder: &Path, config: &Config) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(|source| Error::LockFolder { path: folder.to_owned(), source })?;
        let path = |number: u32| lock_path(folder, number);
        let last_owner = |number: &u32| fs::read_to_string(path(*number)).unwrap_or_default();
        let mut numbers: Vec<u32> = (0..INSTANCES).collect();
        numbers.sort_by_cached_key(|number| match last_owner(number) {
            owner if owner == config.owner => 0,
            owner if owner.is_empty() => 1,
            _ => 2,
        });
        for number in numbers {
            match Lock::acquire(&path(number), &config.owner) {
                Ok(lock) => return Ok(Self { number, block: config.block, _lock: lock }),
                Err(lock::Error::Held { .. }) => {}
                Err(error) => return Err(Error::Lock(error)),
            }
        }
        Err(Error::InstancesExhausted(INSTANCES))
    }

    /// Prefix of all namespaces of the instance.
    pub(crate) fn namespace_prefix(&self) -> String {
        format!("hearth-{}-", self.number)
    }

    /// Name of a slot's namespace.
    pub(crate) fn namespace(&self, slot: u32) -> String {
        format!("{}{slot}", self.namespace_prefix())
    }

    /// Prefix of all links of the instance on the host.
    pub(crate) fn link_prefix(&self) -> String {
        format!("hrt{}-", self.number)
    }

    /// Name of the host's end of a slot's link: at most 15 characters (IFNAMSIZ, netdevice(7)).
    pub(crate) fn link(&self, slot: u32) -> String {
        format!("{}{slot}", self.link_prefix())
    }

    /// Name of the instance's nftables table on the host.
    pub(crate) fn table(&self) -> String {
        format!("hearth-{}", self.number)
    }

    /// Addresses of the host's end and the slot's end of a link, a /31 (RFC 3021).
    pub(crate) fn addresses(&self, slot: u32) -> (Ipv4Addr, Ipv4Addr) {
        let first = u32::from(self.block) + (self.number * SLOTS + slot) * 2;
        (Ipv4Addr::from(first), Ipv4Addr::from(first + 1))
    }

    /// Returns true if another instance runs in the current network namespace. Blocks.
    pub(crate) fn has_other_instance(&self, folder: &Path) -> Result<bool, namespace::Error> {
        let tables = namespace::nft_tables()?;
        let numbers = tables.iter().filter_map(|table| table.strip_prefix("inet hearth-")?.parse::<u32>().ok());
        // The table of a killed daemon remains, but its lock is free. The owner's name stays in the lock file.
        let is_held = |number: u32| {
            let path = lock_path(folder, number);
            let owner = fs::read_to_string(&path).unwrap_or_default();
            matches!(Lock::acquire(&path, &owner), Err(lock::Error::Held { .. }))
        };
        Ok(numbers.filter(|number| *number != self.number && *number < INSTANCES).any(is_held))
    }

    /// Address range of the instance, in CIDR notation.
    pub(crate) fn range(&self) -> String {
        format!("{}/20", self.addresses(0).0)
    }
}

fn lock_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("instance-{number}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;

    fn config(owner: &str) -> Config {
        Config {
            mode: Mode::Auto,
            owner: owner.to_owned(),
            block: Ipv4Addr::new(10, 11, 0, 0),
            prepared_target: 0,
            guests_max: 1,
            egress_denied: Vec::new(),
        }
    }

    #[test]
    fn numbers_are_unique_and_an_owner_gets_its_number_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let a = Instance::claim(folder.path(), &config("a")).expect("free");
        let b = Instance::claim(folder.path(), &config("b")).expect("free");
        assert_ne!(a.number, b.number);
        let was = b.number;
        drop((a, b));
        let b = Instance::claim(folder.path(), &config("b")).expect("free");
        assert_eq!(b.number, was);
        let all: Vec<Instance> =
            (1..INSTANCES).map(|_| Instance::claim(folder.path(), &config("c")).expect("free")).collect();
        assert!(matches!(Instance::claim(folder.path(), &config("d")), Err(Error::InstancesExhausted(INSTANCES))));
        let last = all.iter().map(|instance| instance.number).max().expect("some");
        assert!(last < INSTANCES);
    }

    #[test]
    fn addresses_fit_the_block() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let first = Instance::claim(folder.path(), &config("a")).expect("free");
        assert_eq!(first.addresses(0), (Ipv4Addr::new(10, 11, 0, 0), Ipv4Addr::new(10, 11, 0, 1)));
        assert_eq!(first.range(), "10.11.0.0/20");
        let last = Instance { number: INSTANCES - 1, ..first };
        assert_eq!(last.addresses(SLOTS - 1).1, Ipv4Addr::new(10, 11, 255, 255));
        assert!(last.link(SLOTS - 1).len() <= 15);
    }
}
