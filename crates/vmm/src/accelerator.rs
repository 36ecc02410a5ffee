//! Choice of the accelerator that executes a guest's instructions.
//!
//! A `/dev/kvm` that opens is no proof that KVM works: a paravirtual KVM module (`kvm_pvm`) accepts every call and then
//! emulates an ordinary kernel instruction by instruction until it crashes. Unless emulation is configured, the driver
//! checks the host's modules first, then boots the guest kernel once with a short deadline, and stores the verdict for
//! this boot of the host, this kernel and this VMM.

use std::path::Path;

use serde_json::{Value, json};

/// Executor of guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The CPU's virtualization, through `/dev/kvm`.
    Kvm,
    /// QEMU's software emulation: works on every host, several times slower.
    Tcg,
}

impl Accelerator {
    /// Returns the name used in configuration, manifests and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg].into_iter().find(|accelerator| accelerator.name() == name)
    }
}

/// Accelerator that the operator requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM if a test boot succeeds, emulation otherwise.
    #[default]
    Auto,
    /// KVM, or an error if it does not work.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Accelerator in use, and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub accelerator: Accelerator,
    /// One sentence for operators.
    pub reason: String,
}

/// Result of the checks that boot nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KvmCheck {
    /// KVM cannot work, for this reason.
    Unusable(String),
    /// KVM may work; only a test boot proves it.
    Untested,
}

/// Checks the device file and the loaded modules below `sys_module` (normally `/sys/module`).
pub(crate) fn check_kvm(kvm_device: &Path, sys_module: &Path) -> KvmCheck {
    if !kvm_device.exists() {
        return KvmCheck::Unusable(format!(
            "{} does not exist: the CPU's virtualization is off, or this is a VM without nested virtualization",
            kvm_device.display()
        ));
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(kvm_device) {
        return KvmCheck::Unusable(format!(
            "{} cannot be opened ({error}): run as root or join the group that owns it",
            kvm_device.display()
        ));
    }
    let hardware = ["kvm_intel", "kvm_amd"].iter().any(|module| sys_module.join(module).exists());
    if sys_module.join("kvm_pvm").exists() && !hardware {
        return KvmCheck::Unusable(
            "this host's KVM is paravirtual (module kvm_pvm): it cannot run an ordinary guest kernel".to_owned(),
        );
    }
    // KVM may be built into the kernel, without modules: only a test boot proves that it works.
    KvmCheck::Untested
}

/// Conditions under which a stored verdict is valid.
pub(crate) struct VerdictKey<'a> {
    pub(crate) host_boot_id: &'a str,
    pub(crate) kernel_version: &'a str,
    pub(crate) vmm_version: &'a str,
}

impl VerdictKey<'_> {
    fn key(&self) -> String {
        format!("{} {} {}", self.host_boot_id, self.kernel_version, self.vmm_version)
    }

    /// Loads the verdict stored in `file`, if it was stored under the same conditions.
    pub(crate) fn load(&self, file: &Path) -> Option<Verdict> {
        let (key, verdict) = read(file)?;
        (key == self.key()).then_some(verdict)
    }

    /// Stores a verdict. If that fails, the next start repeats the test boot.
    pub(crate) fn store(&self, file: &Path, verdict: &Verdict) {
        let value = json!({
            "key": self.key(),
            "accelerator": verdict.accelerator.name(),
            "reason": verdict.reason,
        });
        let fresh = file.with_extension("new");
        let write = std::fs::write(&fresh, value.to_string()).and_then(|()| std::fs::rename(&fresh, file));
        if let Err(error) = write {
            tracing::warn!(path = %file.display(), %error, "could not store the accelerator verdict");
        }
    }
}

/// Reads a stored verdict and the key of its conditions.
fn read(file: &Path) -> Option<(String, Verdict)> {
    let value: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    let accelerator = Accelerator::parse(&text("accelerator")?)?;
    Some((text("key")?, Verdict { accelerator, reason: text("reason")? }))
}

/// Returns the verdict stored in `file`, without checking its conditions and without booting anything.
///
/// For reports such as `hearth doctor`.
#[must_use]
pub fn stored_verdict(file: &Path) -> Option<Verdict> {
    read(file).map(|(_, verdict)| verdict)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_device_file_alone_does_not_make_kvm_usable() {
        let root = tempfile::tempdir().expect("temporary folder");
        let device = root.path().join("kvm");
        let modules = root.path().join("module");
        fs::create_dir(&modules).expect("creates");
        assert!(
            matches!(check_kvm(&device, &modules), KvmCheck::Unusable(reason) if reason.contains("does not exist"))
        );
        fs::write(&device, "").expect("writes");
        assert_eq!(check_kvm(&device, &modules), KvmCheck::Untested);
        fs::create_dir(modules.join("kvm_pvm")).expect("creates");
        assert!(matches!(check_kvm(&device, &modules), KvmCheck::Unusable(reason) if reason.contains("paravirtual")));
        fs::create_dir(modules.join("kvm_amd")).expect("creates");
        assert_eq!(check_kvm(&device, &modules), KvmCheck::Untested);
    }

    #[test]
    fn a_verdict_is_valid_under_the_same_conditions_only() {
        let root = tempfile::tempdir().expect("temporary folder");
        let file = root.path().join("verdict");
        let here = VerdictKey { host_boot_id: "a", kernel_version: "b", vmm_version: "c" };
        assert_eq!(here.load(&file), None);
        let verdict = Verdict { accelerator: Accelerator::Tcg, reason: "because".to_owned() };
        here.store(&file, &verdict);
        assert_eq!(here.load(&file), Some(verdict.clone()));
        assert_eq!(stored_verdict(&file), Some(verdict));
        let rebooted = VerdictKey { host_boot_id: "z", kernel_version: "b", vmm_version: "c" };
        assert_eq!(rebooted.load(&file), None);
        fs::write(&file, "nonsense").expect("writes");
        assert_eq!(here.load(&file), None);
    }
}
