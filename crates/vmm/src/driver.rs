//! The closed set of drivers behind one interface.

use std::path::PathBuf;

use hearth_host::process::Process;
use hearth_types::Platform;

use crate::accelerator::{AcceleratorChoice, Verdict};
use crate::machine::{Boot, Kernel, Machine, Saved};
use crate::{Error, qemu};

/// How to drive VMs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The QEMU program: a path, or a name to be looked up.
    pub qemu_program: PathBuf,
    /// What executes guest instructions.
    pub accelerator: AcceleratorChoice,
    /// Where verdicts on accelerators are remembered.
    pub verdict_file: PathBuf,
}

/// A driver, proved to work on this host. Cheap to clone.
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
    /// Finds the VMM program and settles on an accelerator, by proof where there is doubt: see
    /// [`Verdict`]. Takes milliseconds, or the length of one probe boot after each start of the host.
    ///
    /// # Errors
    /// The program is missing or too old, or the accelerator that was demanded does not work here.
    pub async fn open(config: &Config, kernel: &Kernel) -> Result<Self, Error> {
        Ok(Self::Qemu(qemu::Driver::open(config, kernel).await?))
    }

    /// What was found out about this host's accelerators.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        match self {
            Self::Qemu(driver) => driver.verdict(),
        }
    }

    /// What a snapshot of a machine with this kind of network backend is bound to (see [`crate::Nic::kind`]).
    #[must_use]
    pub fn platform(&self, nic_kind: &str) -> Platform {
        match self {
            Self::Qemu(driver) => driver.platform(nic_kind),
        }
    }

    /// Starts a VM from its kernel. It runs when this returns; what its guest does is another question.
    ///
    /// # Errors
    /// Nothing of the VM is left then but the files it wrote.
    pub async fn boot(&self, machine: &Machine, boot: &Boot) -> Result<Running, Error> {
        match self {
            Self::Qemu(driver) => Ok(Running { vm: driver.boot(machine, boot).await? }),
        }
    }

    /// Brings a saved VM back, stopped where it was saved. The machine must have the hardware it was saved with.
    ///
    /// # Errors
    /// Nothing of the VM is left then but the files it wrote.
    pub async fn restore(&self, machine: &Machine, saved: &Saved) -> Result<Paused, Error> {
        match self {
            Self::Qemu(driver) => Ok(Paused { vm: driver.restore(machine, saved).await? }),
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

    /// The VMM process.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.vm.process()
    }

    /// Waits until the VMM ends, which happens when the guest powers off, crashes or the VMM fails. Cancel safe.
    pub async fn ended(&self) {
        self.vm.ended().await;
    }

    /// Waits until the VMM stops the CPUs because the disk below the overlay has no space for a write of the guest. The guest
    /// notices nothing: the write is done again when the VM [goes on](Self::go_on). Cancel safe.
    pub async fn out_of_space(&mut self) {
        self.vm.out_of_space().await;
    }

    /// Stops the CPUs until the VM [goes on](Self::go_on), which its owner still counts as running.
    pub async fn hold(&mut self) -> Result<(), Error> {
        self.vm.stop().await
    }

    /// Lets the CPUs run again, after [`hold`](Self::hold) or a lack of space. A VM that runs is success.
    pub async fn go_on(&mut self) -> Result<(), Error> {
        self.vm.resume().await
    }

    /// Opens a way from a free loopback port of the host to a guest port, for a machine with user-mode network, and
    /// returns the host's port.
    pub async fn forward(&mut self, guest_port: u16) -> Result<u16, Error> {
        self.vm.forward(guest_port).await
    }

    /// The end of the guest's console, for people.
    pub async fn console(&mut self) -> String {
        self.vm.console().await
    }

    /// Ends the VM and waits until its process is gone.
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

    /// Writes device and CPU state to `state`, which must not exist. With the memory file of a booted VM it is a
    /// snapshot, provided the VM does not run again in between.
    pub async fn save_state(&mut self, state: &std::path::Path) -> Result<(), Error> {
        self.vm.save_state(state).await
    }

    /// Ends the VM and waits until its process is gone.
    pub async fn kill(self) {
        self.vm.kill().await;
    }
}
