//! The QEMU driver: the `microvm` machine, guest memory in a file, snapshots that do not copy it.
//!
//! A booting VM maps the memory file shared, so that after a stop the file *is* the memory image. A restored VM maps it
//! privately, so that all VMs of one snapshot share the pages they do not write. Device and CPU state are a few
//! kilobytes. The command `xen-save-devices-state` writes them (a misnomer: every QEMU has it, and it saves all device
//! state without memory), and an incoming migration reads them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_types::{Platform, Resources};

use crate::accelerator::{Accelerator, AcceleratorChoice, KvmCheck, Verdict, VerdictKey, check_kvm};
use crate::machine::{Boot, Kernel, Machine, Nic, Snapshot};
use crate::{Config, Error};

mod command;
mod qmp;
mod version;
mod vm;

pub use version::{QemuVersion, version};
pub(crate) use vm::Vm;

use command::Start;

/// Names of the files in a machine's folder.
const MONITOR: &str = "monitor.sock";
const CONSOLE: &str = "console.log";
const LOG: &str = "vmm.log";

/// Limit for the guest kernel to start its first program in a test boot of KVM.
///
/// It takes well below a second with hardware virtualization; without, it never gets there.
const TEST_BOOT_LIMIT: Duration = Duration::from_secs(10);
const TEST_BOOT_RESOURCES: Resources = Resources { vcpus: 1, memory_mib: 256, disk_mib: 1 };

/// The driver, with its program and accelerator.
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
        let with_verdict = |accelerator, reason: String| Self {
            program: program.clone(),
            version,
            verdict: Verdict { accelerator, reason },
            host_cpu: host_cpu.clone(),
        };
        let finding = check_kvm(Path::new("/dev/kvm"), Path::new("/sys/module"));
        match (config.accelerator, finding) {
            (AcceleratorChoice::Tcg, _) => Ok(with_verdict(Accelerator::Tcg, "emulation was configured".to_owned())),
            (AcceleratorChoice::Kvm, KvmCheck::Unusable(reason)) => {
                Err(Error::Accelerator { accelerator: Accelerator::Kvm.name(), reason })
            }
            (AcceleratorChoice::Auto, KvmCheck::Unusable(reason)) => Ok(with_verdict(Accelerator::Tcg, reason)),
            (choice, KvmCheck::Untested) => {
                let candidate = with_verdict(Accelerator::Kvm, "KVM booted the guest kernel".to_owned());
                let verdict = candidate.verify(config, kernel).await;
                if choice == AcceleratorChoice::Kvm && verdict.accelerator != Accelerator::Kvm {
                    return Err(Error::Accelerator { accelerator: "kvm", reason: verdict.reason });
                }
                Ok(Self { verdict, ..candidate })
            }
        }
    }

    /// Returns the stored verdict on this candidate, or boots to find out.
    async fn verify(&self, config: &Config, kernel: &Kernel) -> Verdict {
        let host_boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let vmm_version = self.version.to_string();
        let key = VerdictKey {
            host_boot_id: host_boot_id.trim(),
            kernel_version: &kernel.version,
            vmm_version: &vmm_version,
        };
        if let Some(verdict) = key.load(&config.verdict_file) {
            return verdict;
        }
        let folder = config.verdict_file.with_extension("proof");
        let verdict = match self.test_boot(kernel, &folder).await {
            Ok(()) => self.verdict.clone(),
            Err(error) => {
                let reason = format!("KVM does not run the guest kernel here ({error}); guests are emulated");
                tracing::warn!(error = %error, "KVM does not run the guest kernel here, guests are emulated");
                Verdict { accelerator: Accelerator::Tcg, reason }
            }
        };
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(path = %folder.display(), %error, "could not remove the folder of the test boot");
        }
        key.store(&config.verdict_file, &verdict);
        verdict
    }

    /// Boots the kernel with an empty disk until PID 1 writes to the console, and kills the VM.
    async fn test_boot(&self, kernel: &Kernel, folder: &Path) -> Result<(), Error> {
        let file = |action| move |source| Error::File { action, path: folder.to_owned(), source };
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).map_err(file("creating the folder"))?;
        let disk = folder.join("disk");
        std::fs::File::create(&disk)
            .and_then(|disk| disk.set_len(u64::from(TEST_BOOT_RESOURCES.disk_mib) << 20))
            .map_err(file("creating a disk in"))?;
        let machine = Machine {
            folder: folder.to_owned(),
            resources: TEST_BOOT_RESOURCES,
            base: disk,
            overlay: None,
            nic: Nic::User { forwards: Vec::new() },
            namespace: None,
            cgroup: None,
        };
        let boot = Boot { kernel: kernel.clone(), arguments: Vec::new(), memory: folder.join("memory") };
        let mut vm = self.boot(&machine, &boot).await?;
        let result = vm.wait_for_console("hearth-init", TEST_BOOT_LIMIT).await;
        vm.kill().await;
        result
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
        let mut vm = self.start(machine, &Start::Boot(&boot))?;
        vm.connect("starting the guest").await?;
        Ok(vm)
    }

    pub(crate) async fn restore(&self, machine: &Machine, snapshot: &Snapshot) -> Result<Vm, Error> {
        let mut vm = self.start(machine, &Start::Restore(snapshot))?;
        vm.connect("restoring the guest").await?;
        vm.load_state().await?;
        Ok(vm)
    }

    fn start(&self, machine: &Machine, start: &Start<'_>) -> Result<Vm, Error> {
        Vm::start(&self.program, self.verdict.accelerator, machine, start)
    }
}

/// Kernel arguments about the time stamp counter, for an emulated guest.
///
/// The guest sees the host's counter, and the machine has no other clock to measure it by. Without the frequency, the
/// kernel on a busy host may wait for its first tick for ever. Without `tsc=reliable`, it checks the counter against
/// ticks, of which a busy host loses some, and then uses ticks instead of the counter.
async fn clock_arguments() -> Result<[String; 2], Error> {
    let measured = tokio::task::spawn_blocking(hearth_host::clock::tsc_khz).await;
    let khz = measured.map_err(|error| Error::Monitor { action: "measuring the clock", source: error.into() })?;
    Ok([format!("tsc_early_khz={khz}"), "tsc=reliable".to_owned()])
}

/// Returns the model name of the host's CPU as the kernel reports it, or "unknown".
fn host_cpu() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
