//! What a VM is made of, in terms that every driver understands.

use std::path::PathBuf;

use hearth_types::Resources;

/// What a guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Version, as `uname -r` says in the guest.
    pub version: String,
    /// The kernel image.
    pub image: PathBuf,
    /// The first root filesystem, with PID 1.
    pub initramfs: PathBuf,
}

/// How the guest's network device is backed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nic {
    /// A tap device that exists in the VMM's network namespace.
    Tap {
        /// Its name.
        name: String,
    },
    /// The VMM's own user-mode network: no rights needed, no isolation from what the host can reach.
    User {
        /// Host ports on loopback and the guest ports they lead to.
        forwards: Vec<(u16, u16)>,
    },
}

impl Nic {
    /// The name of this kind of backend: snapshots are bound to it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tap { .. } => "tap",
            Self::User { .. } => "user",
        }
    }
}

/// One VM: where it lives on the host and which hardware its guest sees.
#[derive(Debug, Clone)]
pub struct Machine {
    /// A folder of the VM's own: monitor socket, console and process log. Exists; its owner removes it.
    pub folder: PathBuf,
    /// Virtual hardware.
    pub resources: Resources,
    /// The root disk: a read-only raw image.
    pub base: PathBuf,
    /// The VM's writable blocks over `base`; `None`: the guest writes to `base` itself.
    pub overlay: Option<PathBuf>,
    /// The network device's backend.
    pub nic: Nic,
    /// The network namespace of the VMM process; `None`: the daemon's.
    pub namespace: Option<PathBuf>,
    /// The control group of the VMM process; `None`: the daemon's.
    pub cgroup: Option<hearth_host::cgroup::Group>,
}

/// How a VM starts from nothing.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Kernel and first root filesystem.
    pub kernel: Kernel,
    /// Words added to the kernel command line.
    pub arguments: Vec<String>,
    /// Guest memory becomes this file, which must not exist. It is the memory image once the VM is paused and saved.
    pub memory: PathBuf,
}

/// The files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Guest memory, mapped privately: many VMs share its unchanged pages.
    pub memory: PathBuf,
    /// Device and CPU state.
    pub state: PathBuf,
}
