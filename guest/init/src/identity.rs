//! Files in memory that replace those which identify a machine.
//!
//! A snapshot is restored many times, and every sandbox has its own name and ids. The daemon writes them after each
//! restore; here they are mounted, so that this writes no block of the disk. The certificates are in memory for the
//! same reason: the host may add one of its own, different for each sandbox.
//!
//! Nothing is mounted over `/proc`: the kernel would then reject every new procfs in a user namespace, which bubblewrap
//! and rootless containers need (`mount_too_revealing`, mount_namespaces(7)). The kernel's boot id needs no file: the
//! kernel draws it when it is first read (random(4)), and nothing reads it before the snapshot that sandboxes are
//! restored from.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use crate::console::print_error;

/// Directory of the files. The daemon uses the same path.
const DIRECTORY: &str = "/run/hearth";
/// Name of each file, and the file that it replaces.
const OVERLAID: [(&str, &str); 2] = [("hostname", "/etc/hostname"), ("machine-id", "/etc/machine-id")];
/// Returns a random UUID at each read; never waits for the random pool.
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

const CERTIFICATES: &str = "/etc/ssl/certs";
/// Limit of copied certificates. A distribution has some hundreds.
const CERTIFICATES_MAX: usize = 8192;

/// Mounts all files. A guest runs without them, but is hard to distinguish from others of its snapshot.
pub(crate) fn overlay() {
    if let Err(error) = fs::create_dir_all(DIRECTORY) {
        return print_error("could not create the directory of the guest's ids", &error);
    }
    for (name, target) in OVERLAID {
        if let Err(error) = overlay_file(name, target) {
            print_error(&format!("could not mount a file in memory over {target}"), &error);
        }
    }
    if Path::new(CERTIFICATES).is_dir()
        && let Err(error) = overlay_certificates()
    {
        print_error("could not mount the certificates in memory", &error);
    }
}

fn overlay_file(name: &str, target: &str) -> io::Result<()> {
    if !Path::new(target).parent().is_some_and(Path::is_dir) {
        // A root file system without this directory needs no file.
        return Ok(());
    }
    let content = match name {
        "machine-id" => fs::read_to_string(RANDOM_UUID)?.replace('-', ""),
        _ => fs::read_to_string(target).unwrap_or_default(),
    };
    let file = Path::new(DIRECTORY).join(name);
    fs::write(&file, content)?;
    if !Path::new(target).exists() {
        fs::write(target, "")?;
    }
    Ok(mount_bind(&file, target)?)
}

fn overlay_certificates() -> io::Result<()> {
    let copy = Path::new(DIRECTORY).join("certificates");
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
