//! What is mounted where.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::Error;
use crate::console::complain;

/// A file system without a device behind it.
struct Pseudo {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
}

const NO_PROGRAMS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Wanted before the root filesystem is there; they move to it.
const FIRST: &[Pseudo] = &[
    Pseudo { kind: "proc", target: "/proc", flags: NO_PROGRAMS, options: c"" },
    Pseudo { kind: "sysfs", target: "/sys", flags: NO_PROGRAMS, options: c"" },
    Pseudo { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
];

/// The targets of [`FIRST`].
pub(crate) fn first_targets() -> impl Iterator<Item = &'static str> {
    FIRST.iter().map(|pseudo| pseudo.target)
}

/// `/tmp` is not among them: it is on the disk, because a guest's memory is small and uploads are not.
const REST: &[Pseudo] = &[
    // Group 5 is `tty` in every distribution.
    Pseudo {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"gid=5,mode=0620,ptmxmode=0666",
    },
    Pseudo { kind: "tmpfs", target: "/dev/shm", flags: NO_DEVICES, options: c"mode=1777" },
    Pseudo { kind: "mqueue", target: "/dev/mqueue", flags: NO_PROGRAMS, options: c"" },
    Pseudo { kind: "tmpfs", target: "/run", flags: NO_DEVICES, options: c"mode=0755,size=20%" },
    Pseudo { kind: "tmpfs", target: "/run/lock", flags: NO_PROGRAMS, options: c"mode=1777,size=5m" },
    // Every command enters a group of its own: without the second option (Linux 6.0) each would wait out a grace period of the
    // kernel's, some 20 ms.
    Pseudo { kind: "cgroup2", target: "/sys/fs/cgroup", flags: NO_PROGRAMS, options: c"nsdelegate,favordynmods" },
];

/// What systemd mounts where the kernel has it. A guest without it works.
const OPTIONAL: &[Pseudo] = &[
    Pseudo { kind: "hugetlbfs", target: "/dev/hugepages", flags: NO_DEVICES, options: c"" },
    Pseudo { kind: "securityfs", target: "/sys/kernel/security", flags: NO_PROGRAMS, options: c"" },
    Pseudo { kind: "debugfs", target: "/sys/kernel/debug", flags: NO_PROGRAMS, options: c"" },
    Pseudo { kind: "tracefs", target: "/sys/kernel/tracing", flags: NO_PROGRAMS, options: c"" },
    Pseudo { kind: "bpf", target: "/sys/fs/bpf", flags: NO_PROGRAMS, options: c"mode=0700" },
    Pseudo { kind: "fusectl", target: "/sys/fs/fuse/connections", flags: NO_PROGRAMS, options: c"" },
];

/// Names that programs expect and that udev or systemd would make, unless the root filesystem has them.
const LINKS: &[(&str, &str)] = &[
    // fusermount3(1) and older programs look here for what is mounted.
    ("/etc/mtab", "/proc/self/mounts"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Devices whose driver the kernel loads when they are first opened (devname in modules(5)): name, major, minor.
const ON_DEMAND: &[(&str, u32, u32)] = &[("/dev/net/tun", 10, 200), ("/dev/loop-control", 10, 237)];

/// Devices that every user may use, as udev would have it.
const FOR_ALL: &[&str] = &["/dev/fuse", "/dev/net/tun"];

/// Mounts what the initramfs needs.
pub(crate) fn first() -> Result<(), Error> {
    FIRST.iter().try_for_each(Pseudo::mount)
}

/// Mounts the rest, in the new root.
pub(crate) fn rest() -> Result<(), Error> {
    REST.iter().try_for_each(Pseudo::mount)?;
    OPTIONAL.iter().for_each(Pseudo::try_mount);
    for (link, target) in LINKS {
        // A bare disk has no /etc.
        let made = Path::new(link).parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(target, link));
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                complain(&format!("could not make {link}"), &error);
            }
            _ => {}
        }
    }
    for (device, major, minor) in ON_DEMAND {
        if let Err(error) = make_device(Path::new(device), *major, *minor) {
            complain(&format!("could not make {device}"), &error);
        }
    }
    for device in FOR_ALL.iter().filter(|device| Path::new(device).exists()) {
        if let Err(error) = fs::set_permissions(device, fs::Permissions::from_mode(0o666)) {
            complain(&format!("could not open {device} for all"), &error);
        }
    }
    Ok(())
}

fn make_device(path: &Path, major: u32, minor: u32) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/dev")))?;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(major, minor))?)
}

impl Pseudo {
    /// Mounts what the kernel may lack, and says nothing if it does.
    fn try_mount(&self) {
        match self.mount() {
            Err(error) if !error.is_absence() => complain("going on without a mount", &error),
            _ => {}
        }
    }

    fn mount(&self) -> Result<(), Error> {
        fs::create_dir_all(self.target).map_err(Error::on("creating", self.target))?;
        match mount(self.kind, self.target, self.kind, self.flags, self.options) {
            // The kernel mounts devtmpfs by itself when it is told to.
            Ok(()) | Err(Errno::BUSY) => Ok(()),
            Err(errno) => Err(Error::on("mounting", self.target)(errno)),
        }
    }
}
