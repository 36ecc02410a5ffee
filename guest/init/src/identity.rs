//! Files in memory in the place of those that tell one machine from another.
//!
//! A snapshot is restored many times, and every sandbox shall have a name and ids of its own. The daemon writes them after
//! each restore; here they get their place, so that this costs no block of the disk. The certificates are in memory for the
//! same reason: the host may add one of its own, another for each sandbox.
//!
//! Nothing is mounted over `/proc`: the kernel would then refuse every new procfs in a user namespace, which bubblewrap and
//! rootless containers need (`mount_too_revealing`, mount_namespaces(7)). The kernel's boot id needs no file: the kernel draws
//! it when it is first read (random(4)), and nothing reads it before the snapshot that sandboxes are restored from.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use crate::console::complain;

/// Where the files are. The daemon knows their names.
const FOLDER: &str = "/run/hearth";
/// A file of ours and what it stands in for.
const OVERLAID: [(&str, &str); 2] = [("hostname", "/etc/hostname"), ("machine-id", "/etc/machine-id")];
/// A random UUID at each look; never waits for the random pool.
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

const CERTIFICATES: &str = "/etc/ssl/certs";
/// Entries of that directory that are taken along. A distribution has some hundreds.
const CERTIFICATES_MAX: usize = 8192;

/// Puts everything in place. A guest without it works; its siblings are then harder to tell apart.
pub(crate) fn overlay() {
    if let Err(error) = fs::create_dir_all(FOLDER) {
        return complain("could not make the folder of the guest's ids", &error);
    }
    for (name, target) in OVERLAID {
        if let Err(error) = overlay_file(name, target) {
            complain(&format!("could not put a file in memory over {target}"), &error);
        }
    }
    if Path::new(CERTIFICATES).is_dir()
        && let Err(error) = overlay_certificates()
    {
        complain("could not put the certificates in memory", &error);
    }
}

fn overlay_file(name: &str, target: &str) -> io::Result<()> {
    if !Path::new(target).parent().is_some_and(Path::is_dir) {
        // A root filesystem that keeps no such thing.
        return Ok(());
    }
    let content = match name {
        "machine-id" => fs::read_to_string(RANDOM_UUID)?.replace('-', ""),
        _ => fs::read_to_string(target).unwrap_or_default(),
    };
    let file = Path::new(FOLDER).join(name);
    fs::write(&file, content)?;
    if !Path::new(target).exists() {
        fs::write(target, "")?;
    }
    Ok(mount_bind(&file, target)?)
}

fn overlay_certificates() -> io::Result<()> {
    let copy = Path::new(FOLDER).join("certificates");
    fs::create_dir_all(&copy)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", &copy, "tmpfs", flags, c"mode=0755,size=16m")?;
    for entry in fs::read_dir(CERTIFICATES)?.take(CERTIFICATES_MAX) {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, copy.join(entry.file_name()));
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, to)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to)?;
        }
    }
    mount_move(&copy, CERTIFICATES)?;
    fs::remove_dir(&copy)
}
