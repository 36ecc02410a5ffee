//! Requirements of Hearth on a host, checked for `hearth doctor`.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::process::find_program;

/// Importance of a requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No sandbox runs without it.
    Required,
    /// Without it sandboxes run slower or with less protection.
    Recommended,
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub name: &'static str,
    pub need: Need,
    /// The requirement is met.
    pub found: bool,
    /// Observed facts.
    pub detail: String,
    /// Effect for users when the requirement is not met.
    pub cost: &'static str,
    /// Instruction for the operator; empty when there is nothing to do.
    pub fix: &'static str,
}

/// Checks that a program is in the search path.
#[must_use]
pub fn program(name: &'static str, need: Need, cost: &'static str, fix: &'static str) -> Finding {
    let found = find_program(OsStr::new(name));
    let detail = found.as_ref().map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    Finding { name, need, found: found.is_some(), detail, cost, fix }
}

/// Returns true if this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Checks that this process can create network namespaces and tap devices.
#[must_use]
pub fn network_namespaces() -> Finding {
    let tun = Path::new("/dev/net/tun").exists();
    let found = is_root() && tun;
    let detail = match (is_root(), tun) {
        (true, true) => "running as root, /dev/net/tun exists".to_owned(),
        (true, false) => "/dev/net/tun is missing".to_owned(),
        (false, _) => "not running as root".to_owned(),
    };
    Finding {
        name: "network namespaces",
        need: Need::Recommended,
        found,
        detail,
        cost: "sandboxes use the VMM's user-mode network: slower, a guest can reach whatever this user can reach \
               (also services on this machine), and a closed port looks like a dropped connection",
        fix: "run hearth as root; load the module `tun`",
    }
}

/// Checks for hardware virtualization by device file and modules. Only booting a guest proves that it works.
#[must_use]
pub fn kvm() -> Finding {
    let modules: Vec<&str> = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .filter(|module| Path::new("/sys/module").join(module).exists())
        .collect();
    let device = Path::new("/dev/kvm");
    let usable = fs::File::options().read(true).write(true).open(device).is_ok();
    let paravirtual = modules == ["kvm_pvm"];
    let detail = match (device.exists(), usable, paravirtual) {
        (false, _, _) => "/dev/kvm does not exist".to_owned(),
        (true, false, _) => "/dev/kvm cannot be opened".to_owned(),
        (true, true, true) => {
            "/dev/kvm opens, but this host's KVM is paravirtual (kvm_pvm) and cannot run an ordinary kernel".to_owned()
        }
        (true, true, false) => format!("/dev/kvm opens, modules: {}", modules.join(", ")),
    };
    Finding {
        name: "KVM",
        need: Need::Recommended,
        found: usable && !paravirtual,
        detail,
        cost: "guests are emulated in software: everything in them is several times slower",
        fix: "enable virtualization in the firmware, or nested virtualization in the hypervisor below; \
              as a user, join the group kvm",
    }
}

/// Checks that packets of guests can be forwarded.
///
/// A daemon that runs as root enables forwarding on the uplinks while it runs.
#[must_use]
pub fn forwarding() -> Finding {
    let value = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    let found = value.trim() == "1" || is_root();
    Finding {
        name: "IPv4 forwarding",
        need: Need::Recommended,
        found,
        detail: match value.trim() {
            "1" => "on for all interfaces".to_owned(),
            _ if found => "off; hearth switches it on for uplinks and guests only, while it runs".to_owned(),
            _ => "off".to_owned(),
        },
        cost: "guests cannot reach the internet",
        fix: "run hearth as root",
    }
}

/// Returns the host's total memory in MiB (proc(5), meminfo); `None` if the kernel does not report it.
#[must_use]
pub fn memory_mib() -> Option<u64> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_reported_with_its_fix() {
        let finding = program("hearth-no-such-program", Need::Required, "nothing works", "install it");
        assert!(!finding.found);
        assert_eq!((finding.detail.as_str(), finding.fix), ("not found", "install it"));
        assert!(program("sh", Need::Required, "", "").found);
    }
}
