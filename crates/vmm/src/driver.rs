//! The closed set of drivers behind one interface.

use std::path::PathBuf;

use hearth_host::process::Process;
use hearth_types::Platform;

use crate::accelerator::{AcceleratorChoice, Verdict};
use crate::machine::{Boot, Kernel, Machine, Snapshot};
use crate::{Error, qemu};

/// Configuration of a driver.
#[derive(Debug, Clone)]
pub struct Config {
    /// Path of the QEMU program, or a name to look up.
    pub qemu_program: PathBuf,
    pub accelerator: AcceleratorChoice,
    /// File that stores the verdict on the accelerator.
    pub verdict_file: PathBuf,
}

/// A driver that works on this host. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Driver {
    /// QEMU's `microvm` machine.
    Qemu(qemu::Driver),
}

/// A VM whose CPUs run.
#[derive(Debug)]
pub struct Running {
    vm: qemu::Vm,
}

/// A VM whose CPUs are stopped.
#[derive(Debug)]
pub struct Paused {
    vm: qemu::Vm,
}

impl Driver {
    /// Finds the VMM program and chooses an accelerator, by a test boot if necessary: see [`Verdict`].
    ///
    /// Takes milliseconds, or the duration of one test boot after each boot of the host.
    ///
    /// # Errors
    /// The program is missing or too old, or the required accelerator does not work on this host.
    pub async fn open(config: &Config, kernel: &Kernel) -> Result<Self, Error> {
        Ok(Self::Qemu(qemu::Driver::open(config, kernel).await?))
    }

    /// Returns the accelerator in use and the reason for it.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        match self {
            Self::Qemu(driver) => driver.verdict(),
        }
    }

    /// Returns the platform to which a snapshot with this kind of network backend is bound.
    ///
    /// `nic_kind` is [`crate::Nic::kind`].
    #[must_use]
    pub fn platform(&self, nic_kind: &str) -> Platform {
        match self {
            Self::Qemu(driver) => driver.platform(nic_kind),
        }
    }

    /// Starts a VM from its kernel. Returns when the VM runs; the guest may still be booting.
    ///
    /// # Errors
    /// No process of the VM remains, but the files it wrote do.
    pub async fn boot(&self, machine: &Machine, boot: &Boot) -> Result<Running, Error> {
        match self {
            Self::Qemu(driver) => Ok(Running { vm: driver.boot(machine, boot).await? }),
        }
    }

    /// Restores a VM from a snapshot. Its CPUs are stopped at the instruction where it was saved.
    ///
    /// The machine must have the hardware of the snapshot.
    ///
    /// # Errors
    /// No process of the VM remains, but the files it wrote do.
    pub async fn restore(&self, machine: &Machine, snapshot: &Snapshot) -> Result<Paused, Error> {
        match self {
            Self::Qemu(driver) => Ok(Paused { vm: driver.restore(machine, snapshot).await? }),
        }
    }
}

impl Running {
    /// Stops the CPUs.
    pub async fn pause(mut self) -> Result<Paused, (Self, Error)> {
        match self.vm.stop().await {
            Ok(()) => Ok(Paused { vm: self.vm }),
            Err(error) => Err((self, error)),
        }
    }

    #[must_use]
    pub fn process(&self) -> &Process {
        self.vm.process()
    }

    /// Waits until the VMM exits: the guest powered off or crashed, or the VMM failed. Cancel safe.
    pub async fn exited(&self) {
        self.vm.exited().await;
    }

    /// Waits until the VMM stops the CPUs because the disk below the overlay has no space for a write. Cancel safe.
    ///
    /// The guest does not notice: the write is repeated when the CPUs [run again](Self::start_cpus).
    pub async fn out_of_space(&mut self) {
        self.vm.out_of_space().await;
    }

    /// Stops the CPUs until [`start_cpus`](Self::start_cpus). The VM still counts as running.
    pub async fn stop_cpus(&mut self) -> Result<(), Error> {
        self.vm.stop().await
    }

    /// Lets the CPUs run again, after [`stop_cpus`](Self::stop_cpus) or a lack of space. CPUs that run are success.
    pub async fn start_cpus(&mut self) -> Result<(), Error> {
        self.vm.resume().await
    }

    /// Forwards a free loopback port of the host to a guest port and returns the host's port.
    ///
    /// Only for a machine with user-mode network.
    pub async fn forward(&mut self, guest_port: u16) -> Result<u16, Error> {
        self.vm.forward(guest_port).await
    }

    /// Returns the end of the guest's console, for error messages.
    pub async fn console(&mut self) -> String {
        self.vm.console().await
    }

    /// Kills the VMM and waits until its process has exited.
    pub async fn kill(self) {
        self.vm.kill().await;
    }
}

impl Paused {
    /// Lets the CPUs run.
    pub async fn resume(mut self) -> Result<Running, (Self, Error)> {
        match self.vm.resume().await {
            Ok(()) => Ok(Running { vm: self.vm }),
            Err(error) => Err((self, error)),
        }
    }

    /// Writes device and CPU state to `state`, which must not exist.
    ///
    /// Together with the memory file of a booted VM it is a snapshot, provided that the VM does not run again in
    /// between.
    pub async fn save_state(&mut self, state: &std::path::Path) -> Result<(), Error> {
        self.vm.save_state(state).await
    }

    /// Kills the VMM and waits until its process has exited.
    pub async fn kill(self) {
        self.vm.kill().await;
    }
}
