//! What executes a guest's instructions, decided by proof.
//!
//! A `/dev/kvm` that opens is not proof: a paravirtual KVM module (`kvm_pvm`) accepts every call and then emulates an
//! ordinary kernel instruction by instruction until it dies. So `auto` looks at the host's modules first and then boots the
//! guest kernel once, with a short deadline, and remembers the verdict for this boot of the host, this kernel and this VMM.

use std::path::Path;

use serde_json::{Value, json};

/// What executes guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The CPU's virtualization, through `/dev/kvm`.
    Kvm,
    /// QEMU's software emulation: works everywhere, several times slower.
    Tcg,
}

impl Accelerator {
    /// The name that configuration, manifests and people use.
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

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM if it proves itself, emulation otherwise.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The accelerator in use.
    pub accelerator: Accelerator,
    /// Why, in one sentence for people.
    pub reason: String,
}

/// What the host's files say, before anything is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hint {
    /// KVM cannot work, for this reason.
    Impossible(String),
    /// KVM may work: prove it.
    Possible,
}

/// Judges by the device file and the loaded modules below `sys_module` (normally `/sys/module`).
pub(crate) fn hint(kvm_device: &Path, sys_module: &Path) -> Hint {
    if !kvm_device.exists() {
        return Hint::Impossible(format!(
            "{} does not exist: the CPU's virtualization is off, or this is a VM without nested virtualization",
            kvm_device.display()
        ));
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(kvm_device) {
        return Hint::Impossible(format!(
            "{} cannot be opened ({error}): run as root or join the group that owns it",
            kvm_device.display()
        ));
    }
    let hardware = ["kvm_intel", "kvm_amd"].iter().any(|module| sys_module.join(module).exists());
    if sys_module.join("kvm_pvm").exists() && !hardware {
        return Hint::Impossible(
            "this host's KVM is paravirtual (module kvm_pvm): it cannot run an ordinary guest kernel".to_owned(),
        );
    }
    // KVM may also be built into the kernel, without modules: only the proof tells.
    Hint::Possible
}

/// For which circumstances a remembered verdict holds.
pub(crate) struct Circumstances<'a> {
    pub(crate) host_boot_id: &'a str,
    pub(crate) kernel_version: &'a str,
    pub(crate) vmm_version: &'a str,
}

impl Circumstances<'_> {
    fn key(&self) -> String {
        format!("{} {} {}", self.host_boot_id, self.kernel_version, self.vmm_version)
    }

    /// The verdict that was remembered for these circumstances.
    pub(crate) fn recall(&self, file: &Path) -> Option<Verdict> {
        let (key, verdict) = read(file)?;
        (key == self.key()).then_some(verdict)
    }

    /// Remembers a verdict. Not being able to is no failure: the next start proves again.
    pub(crate) fn remember(&self, file: &Path, verdict: &Verdict) {
        let value = json!({
            "key": self.key(),
            "accelerator": verdict.accelerator.name(),
            "reason": verdict.reason,
        });
        let fresh = file.with_extension("new");
        let write = std::fs::write(&fresh, value.to_string()).and_then(|()| std::fs::rename(&fresh, file));
        if let Err(error) = write {
            tracing::warn!(path = %file.display(), %error, "could not remember which accelerator works");
        }
    }
}

/// What is remembered in a file, and for which circumstances.
fn read(file: &Path) -> Option<(String, Verdict)> {
    let value: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    let accelerator = Accelerator::parse(&text("accelerator")?)?;
    Some((text("key")?, Verdict { accelerator, reason: text("reason")? }))
}

/// The verdict that the last proof left in `file`, whatever has changed since. For people who ask what was found out; nothing
/// is booted.
#[must_use]
pub fn remembered_verdict(file: &Path) -> Option<Verdict> {
    read(file).map(|(_, verdict)| verdict)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_device_file_is_no_proof() {
        let root = tempfile::tempdir().expect("temporary folder");
        let device = root.path().join("kvm");
        let modules = root.path().join("module");
        fs::create_dir(&modules).expect("creates");
        assert!(matches!(hint(&device, &modules), Hint::Impossible(reason) if reason.contains("does not exist")));
        fs::write(&device, "").expect("writes");
        assert_eq!(hint(&device, &modules), Hint::Possible);
        fs::create_dir(modules.join("kvm_pvm")).expect("creates");
        assert!(matches!(hint(&device, &modules), Hint::Impossible(reason) if reason.contains("paravirtual")));
        fs::create_dir(modules.join("kvm_amd")).expect("creates");
        assert_eq!(hint(&device, &modules), Hint::Possible);
    }

    #[test]
    fn a_verdict_holds_for_its_circumstances_only() {
        let root = tempfile::tempdir().expect("temporary folder");
        let file = root.path().join("verdict");
        let here = Circumstances { host_boot_id: "a", kernel_version: "b", vmm_version: "c" };
        assert_eq!(here.recall(&file), None);
        let verdict = Verdict { accelerator: Accelerator::Tcg, reason: "because".to_owned() };
        here.remember(&file, &verdict);
        assert_eq!(here.recall(&file), Some(verdict.clone()));
        assert_eq!(remembered_verdict(&file), Some(verdict));
        let rebooted = Circumstances { host_boot_id: "z", kernel_version: "b", vmm_version: "c" };
        assert_eq!(rebooted.recall(&file), None);
        fs::write(&file, "nonsense").expect("writes");
        assert_eq!(here.recall(&file), None);
    }
}
