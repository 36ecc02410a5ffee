//! File systems and devices of the guest.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::Error;
use crate::console::print_error;

/// A file system without a block device.
struct PseudoFileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
}

const NO_PROGRAMS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Mounted in the initramfs and moved to the root file system later.
const FIRST: &[PseudoFileSystem] = &[
    PseudoFileSystem { kind: "proc", target: "/proc", flags: NO_PROGRAMS, options: c"" },
    PseudoFileSystem { kind: "sysfs", target: "/sys", flags: NO_PROGRAMS, options: c"" },
    PseudoFileSystem { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
];

/// Returns the mount points of [`FIRST`].
pub(crate) fn first_targets() -> impl Iterator<Item = &'static str> {
    FIRST.iter().map(|pseudo| pseudo.target)
}

/// Mounted in the root file system. `/tmp` is on the disk instead, because uploads may exceed a guest's memory.
const REST: &[PseudoFileSystem] = &[
    // Group 5 is `tty` in every distribution.
    PseudoFileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"gid=5,mode=0620,ptmxmode=0666",
    },
    PseudoFileSystem { kind: "tmpfs", target: "/dev/shm", flags: NO_DEVICES, options: c"mode=1777" },
    PseudoFileSystem { kind: "mqueue", target: "/dev/mqueue", flags: NO_PROGRAMS, options: c"" },
    PseudoFileSystem { kind: "tmpfs", target: "/run", flags: NO_DEVICES, options: c"mode=0755,size=20%" },
    PseudoFileSystem { kind: "tmpfs", target: "/run/lock", flags: NO_PROGRAMS, options: c"mode=1777,size=5m" },
    // Every command enters its own group: without the second option (Linux 6.0) each would wait for a grace period of
    // the kernel, some 20 ms.
    PseudoFileSystem {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: NO_PROGRAMS,
        options: c"nsdelegate,favordynmods",
    },
];

/// File systems that systemd mounts if the kernel supports them. A guest works without them.
const OPTIONAL: &[PseudoFileSystem] = &[
    PseudoFileSystem { kind: "hugetlbfs", target: "/dev/hugepages", flags: NO_DEVICES, options: c"" },
    PseudoFileSystem { kind: "securityfs", target: "/sys/kernel/security", flags: NO_PROGRAMS, options: c"" },
    PseudoFileSystem { kind: "debugfs", target: "/sys/kernel/debug", flags: NO_PROGRAMS, options: c"" },
    PseudoFileSystem { kind: "tracefs", target: "/sys/kernel/tracing", flags: NO_PROGRAMS, options: c"" },
    PseudoFileSystem { kind: "bpf", target: "/sys/fs/bpf", flags: NO_PROGRAMS, options: c"mode=0700" },
    PseudoFileSystem { kind: "fusectl", target: "/sys/fs/fuse/connections", flags: NO_PROGRAMS, options: c"" },
];

/// Symbolic links that programs expect and that udev or systemd would create. Existing ones are retained.
const LINKS: &[(&str, &str)] = &[
    // fusermount3(1) and older programs read the mounts here.
    ("/etc/mtab", "/proc/self/mounts"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Devices whose driver the kernel loads when they are first opened (devname in modules(5)): name, major, minor.
const ON_DEMAND: &[(&str, u32, u32)] = &[("/dev/net/tun", 10, 200), ("/dev/loop-control", 10, 237)];

/// Devices that every user may open, as with udev.
const FOR_ALL: &[&str] = &["/dev/fuse", "/dev/net/tun"];

/// Mounts the file systems of the initramfs.
pub(crate) fn first() -> Result<(), Error> {
    FIRST.iter().try_for_each(PseudoFileSystem::mount)
}

/// Mounts the other file systems and creates links and devices, in the new root.
pub(crate) fn rest() -> Result<(), Error> {
    REST.iter().try_for_each(PseudoFileSystem::mount)?;
    OPTIONAL.iter().for_each(PseudoFileSystem::try_mount);
    for (link, target) in LINKS {
        // A minimal disk has no /etc.
        let made = Path::new(link).parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(target, link));
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                print_error(&format!("could not create {link}"), &error);
            }
            _ => {}
        }
    }
    for (device, major, minor) in ON_DEMAND {
        if let Err(error) = create_device(Path::new(device), *major, *minor) {
            print_error(&format!("could not create {device}"), &error);
        }
    }
    for device in FOR_ALL.iter().filter(|device| Path::new(device).exists()) {
        if let Err(error) = fs::set_permissions(device, fs::Permissions::from_mode(0o666)) {
            print_error(&format!("could not set the mode of {device}"), &error);
        }
    }
    Ok(())
}

fn create_device(path: &Path, major: u32, minor: u32) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/dev")))?;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(major, minor))?)
}

impl PseudoFileSystem {
    /// Mounts an optional file system. Prints nothing if the kernel does not support it.
    fn try_mount(&self) {
        match self.mount() {
            Err(error) if !error.is_unsupported() => print_error("skipping an optional mount", &error),
            _ => {}
        }
    }

    fn mount(&self) -> Result<(), Error> {
        fs::create_dir_all(self.target).map_err(Error::on("creating", self.target))?;
        match mount(self.kind, self.target, self.kind, self.flags, self.options) {
            // The kernel mounts devtmpfs by itself if it is configured to.
            Ok(()) | Err(Errno::BUSY) => Ok(()),
            Err(errno) => Err(Error::on("mounting", self.target)(errno)),
        }
    }
}
