//! Platform that a snapshot is bound to.

use std::fmt;

/// Properties of the machine that took a snapshot.
///
/// Device state and memory of one platform are not valid on another, so an artifact set records its platform and is
/// only restored on an equal one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The driver, such as `qemu`.
    pub driver: String,
    /// Version of the VMM program.
    pub vmm_version: String,
    /// Machine type with the revision of Hearth's device layout.
    pub machine: String,
    /// CPU model that the guest sees.
    pub cpu_model: String,
    /// Executes the guest's instructions, such as `kvm` or `tcg`.
    pub accelerator: String,
    /// Kind of network device backend; offloads negotiated with one are unknown to another.
    pub nic: String,
}

impl Platform {
    /// Returns the first property in which two platforms differ: its name, the value of `self`, the value of `other`.
    #[must_use]
    pub fn difference<'a>(&'a self, other: &'a Self) -> Option<(&'static str, &'a str, &'a str)> {
        let Self { driver, vmm_version, machine, cpu_model, accelerator, nic } = self;
        [
            ("driver", driver, &other.driver),
            ("VMM version", vmm_version, &other.vmm_version),
            ("machine type", machine, &other.machine),
            ("CPU model", cpu_model, &other.cpu_model),
            ("accelerator", accelerator, &other.accelerator),
            ("network backend", nic, &other.nic),
        ]
        .into_iter()
        .find(|(_, own, theirs)| own != theirs)
        .map(|(property, own, theirs)| (property, own.as_str(), theirs.as_str()))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { driver, vmm_version, machine, cpu_model, accelerator, nic } = self;
        write!(
            f,
            "{driver} {vmm_version}, machine {machine}, CPU {cpu_model}, accelerator {accelerator}, network {nic}"
        )
    }
}
