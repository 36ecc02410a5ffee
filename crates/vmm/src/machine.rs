//! Parts of a VM, in terms that every driver understands.

use std::path::PathBuf;

use hearth_types::Resources;

/// Kernel that a guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Release, as `uname -r` prints it in the guest.
    pub version: String,
    /// Path of the kernel image.
    pub image: PathBuf,
    /// Path of the initial root filesystem, which contains PID 1.
    pub initramfs: PathBuf,
}

/// Backend of the guest's network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nic {
    /// A tap device that exists in the VMM's network namespace.
    Tap { name: String },
    /// The VMM's own user-mode network.
    ///
    /// Needs no privileges; the guest can reach everything that the host can reach.
    User {
        /// Pairs of a loopback port of the host and the guest port it is forwarded to.
        forwards: Vec<(u16, u16)>,
    },
}

impl Nic {
    /// Returns the name of this kind of backend, to which snapshots are bound.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tap { .. } => "tap",
            Self::User { .. } => "user",
        }
    }
}

/// A VM: its files on the host, and the hardware that its guest sees.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Folder for the monitor socket, console and VMM log. It must exist; the caller removes it.
    pub folder: PathBuf,
    /// Virtual hardware.
    pub resources: Resources,
    /// Root disk: a raw image, read-only if there is an overlay.
    pub base: PathBuf,
    /// Writable blocks over `base`; `None`: the guest writes to `base` itself.
    pub overlay: Option<PathBuf>,
    pub nic: Nic,
    /// Network namespace of the VMM process; `None`: the daemon's.
    pub namespace: Option<PathBuf>,
    /// Control group of the VMM process; `None`: the daemon's.
    pub cgroup: Option<hearth_host::cgroup::Group>,
}

/// Parameters of a boot from a kernel.
#[derive(Debug, Clone)]
pub struct Boot {
    pub kernel: Kernel,
    /// Arguments appended to the kernel command line.
    pub arguments: Vec<String>,
    /// File that holds guest memory; must not exist. After pause and save it is the snapshot's memory image.
    pub memory: PathBuf,
}

/// Files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Guest memory, mapped privately: VMs of the same snapshot share its unchanged pages.
    pub memory: PathBuf,
    /// Device and CPU state.
    pub state: PathBuf,
}
