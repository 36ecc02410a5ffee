//! The QEMU driver: the `microvm` machine, guest memory in a file, snapshots without a copy of it.
//!
//! Guest memory is a file. A booting VM maps it shared, so that once the VM is stopped the file *is* the memory image; a
//! restored VM maps it privately, so that all VMs of one snapshot share the pages they do not write. Device and CPU state
//! are a few kilobytes, written by `xen-save-devices-state` (a misnomer: every QEMU has it, it saves all device state
//! without memory) and read back as an incoming migration of exactly that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_types::{Platform, Resources};

use crate::accelerator::{Accelerator, AcceleratorChoice, Circumstances, Hint, Verdict, hint};
use crate::machine::{Boot, Kernel, Machine, Nic, Saved};
use crate::{Config, Error};

mod command;
mod qmp;
mod version;
mod vm;

pub use version::{QemuVersion, version};
pub(crate) use vm::Vm;

use command::Origin;

/// Names of the files in a machine's folder.
const MONITOR: &str = "monitor.sock";
const CONSOLE: &str = "console.log";
const LOG: &str = "vmm.log";

/// How long the guest kernel may take to reach its first program in a proof of KVM. With hardware it takes well below a
/// second; where it does not work it never gets there.
const PROOF_DEADLINE: Duration = Duration::from_secs(10);
const PROOF_RESOURCES: Resources = Resources { vcpus: 1, memory_mib: 256, disk_mib: 1 };

/// The driver, with the program it found and the accelerator it settled on.
#[derive(Debug, Clone)]
pub struct Driver {
    program: PathBuf,
    version: QemuVersion,
    verdict: Verdict,
    host_cpu: String,
}

impl Driver {
    pub(crate) async fn open(config: &Config, kernel: &Kernel) -> Result<Self, Error> {
        let program = config.qemu_program.clone();
        let version = version(&program).await?;
        let host_cpu = host_cpu();
        let proposed = |accelerator, reason: String| Self {
            program: program.clone(),
            version,
            verdict: Verdict { accelerator, reason },
            host_cpu: host_cpu.clone(),
        };
        let finding = hint(Path::new("/dev/kvm"), Path::new("/sys/module"));
        match (config.accelerator, finding) {
            (AcceleratorChoice::Tcg, _) => Ok(proposed(Accelerator::Tcg, "emulation was asked for".to_owned())),
            (AcceleratorChoice::Kvm, Hint::Impossible(reason)) => {
                Err(Error::Accelerator { accelerator: Accelerator::Kvm.name(), reason })
            }
            (AcceleratorChoice::Auto, Hint::Impossible(reason)) => Ok(proposed(Accelerator::Tcg, reason)),
            (choice, Hint::Possible) => {
                let candidate = proposed(Accelerator::Kvm, "KVM booted the guest kernel".to_owned());
                let verdict = candidate.proved(config, kernel).await;
                if choice == AcceleratorChoice::Kvm && verdict.accelerator != Accelerator::Kvm {
                    return Err(Error::Accelerator { accelerator: "kvm", reason: verdict.reason });
                }
                Ok(Self { verdict, ..candidate })
            }
        }
    }

    /// The verdict on this candidate, from memory or by a boot.
    async fn proved(&self, config: &Config, kernel: &Kernel) -> Verdict {
        let host_boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let vmm_version = self.version.to_string();
        let circumstances = Circumstances {
            host_boot_id: host_boot_id.trim(),
            kernel_version: &kernel.version,
            vmm_version: &vmm_version,
        };
        if let Some(verdict) = circumstances.recall(&config.verdict_file) {
            return verdict;
        }
        let folder = config.verdict_file.with_extension("proof");
        let verdict = match self.boots(kernel, &folder).await {
            Ok(()) => self.verdict.clone(),
            Err(error) => {
                let reason = format!("KVM does not run the guest kernel here ({error}); guests are emulated");
                tracing::warn!(error = %error, "KVM does not run the guest kernel here, guests are emulated");
                Verdict { accelerator: Accelerator::Tcg, reason }
            }
        };
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(path = %folder.display(), %error, "could not remove the folder of the proof boot");
        }
        circumstances.remember(&config.verdict_file, &verdict);
        verdict
    }

    /// Boots the kernel without a disk until PID 1 speaks, and ends it.
    async fn boots(&self, kernel: &Kernel, folder: &Path) -> Result<(), Error> {
        let file = |action| move |source| Error::File { action, path: folder.to_owned(), source };
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).map_err(file("creating the folder"))?;
        let disk = folder.join("disk");
        std::fs::File::create(&disk)
            .and_then(|disk| disk.set_len(u64::from(PROOF_RESOURCES.disk_mib) << 20))
            .map_err(file("creating a disk in"))?;
        let machine = Machine {
            folder: folder.to_owned(),
            resources: PROOF_RESOURCES,
            base: disk,
            overlay: None,
            nic: Nic::User { forwards: Vec::new() },
            namespace: None,
            cgroup: None,
        };
        let boot = Boot { kernel: kernel.clone(), arguments: Vec::new(), memory: folder.join("memory") };
        let mut vm = self.boot(&machine, &boot).await?;
        let spoke = vm.console_shows("hearth-init", PROOF_DEADLINE).await;
        vm.kill().await;
        spoke
    }

    pub(crate) fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    pub(crate) fn platform(&self, nic_kind: &str) -> Platform {
        let cpu_model = match self.verdict.accelerator {
            // The guest sees the host's CPU, so a snapshot is bound to it.
            Accelerator::Kvm => format!("host ({})", self.host_cpu),
            Accelerator::Tcg => command::cpu_model(Accelerator::Tcg).to_owned(),
        };
        Platform {
            driver: "qemu".to_owned(),
            vmm_version: self.version.to_string(),
            machine: format!("microvm/{}", command::LAYOUT),
            cpu_model,
            accelerator: self.verdict.accelerator.name().to_owned(),
            nic: nic_kind.to_owned(),
        }
    }

    pub(crate) async fn boot(&self, machine: &Machine, boot: &Boot) -> Result<Vm, Error> {
        let mut boot = boot.clone();
        if self.verdict.accelerator == Accelerator::Tcg {
            boot.arguments.extend(clock_arguments().await?);
        }
        let mut vm = self.start(machine, &Origin::Boot(&boot))?;
        vm.connected("starting the guest").await?;
        Ok(vm)
    }

    pub(crate) async fn restore(&self, machine: &Machine, saved: &Saved) -> Result<Vm, Error> {
        let mut vm = self.start(machine, &Origin::Restore(saved))?;
        vm.connected("restoring the guest").await?;
        vm.load_state().await?;
        Ok(vm)
    }

    fn start(&self, machine: &Machine, origin: &Origin<'_>) -> Result<Vm, Error> {
        Vm::start(&self.program, self.verdict.accelerator, machine, origin)
    }
}

/// An emulated guest sees the host's time stamp counter, and this machine has no other clock to measure it by. Unless it is
/// told the frequency, a kernel that finds the host busy waits for its first tick for ever; and unless it is told to trust
/// the counter, it checks it by counting ticks, of which a busy host loses some, and then counts ticks instead.
async fn clock_arguments() -> Result<[String; 2], Error> {
    let measured = tokio::task::spawn_blocking(hearth_host::clock::tsc_khz).await;
    let khz = measured.map_err(|error| Error::Monitor { action: "measuring the clock", source: error.into() })?;
    Ok([format!("tsc_early_khz={khz}"), "tsc=reliable".to_owned()])
}

/// The host CPU's name, as far as the kernel tells.
fn host_cpu() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
