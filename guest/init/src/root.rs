//! Switch of the root from the initramfs to the disk.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};

use crate::{Error, declarations, mounts};

/// The first virtio disk.
const DISK: &str = "/dev/vda";
/// Mount point in the initramfs.
const NEW_ROOT: &str = "/root";
/// Path of the guest daemon in the initramfs.
const INITRAMFS_DAEMON: &str = "/envd";
/// Path of the interpreter in the initramfs.
const INITRAMFS_INTERPRETER: &str = "/hearth-interpreter";
/// Path of the interpreter in a root that declares its service.
const INTERPRETER: &str = "/usr/bin/hearth-interpreter";
/// Name of the interpreter's service.
const INTERPRETER_SERVICE: &str = "interpreter";
/// Path of the daemon in the root, fixed by the contract.
pub(crate) const DAEMON: &str = "/usr/bin/envd";
/// Time within which the disk must appear after its driver was loaded.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
const DISK_POLL: Duration = Duration::from_millis(2);

/// Mounts the disk, installs the programs and makes the disk the root. The initramfs is emptied to free its memory.
pub(crate) fn switch() -> Result<(), Error> {
    wait_for_disk()?;
    fs::create_dir_all(NEW_ROOT).map_err(Error::on("creating", NEW_ROOT))?;
    // Reading a file must not write to the disk: every written block is copied for the sandbox.
    mount(DISK, NEW_ROOT, "ext4", MountFlags::NOATIME, c"").map_err(Error::on("mounting the root disk", DISK))?;
    install(INITRAMFS_DAEMON, DAEMON)?;
    if Path::new(&format!("{NEW_ROOT}{}/{INTERPRETER_SERVICE}", declarations::FOLDER)).exists() {
        install(INITRAMFS_INTERPRETER, INTERPRETER)?;
    }
    for target in mounts::first_targets() {
        let moved = format!("{NEW_ROOT}{target}");
        fs::create_dir_all(&moved).map_err(Error::on("creating", moved.as_str()))?;
        mount_move(target, &moved).map_err(Error::on("moving to the new root", target))?;
    }
    for file in ["/init", INITRAMFS_DAEMON, INITRAMFS_INTERPRETER] {
        // The running program remains in memory until it exits.
        let _ = fs::remove_file(file);
    }
    let _ = fs::remove_dir_all("/modules");
    let switched = rustix::process::chdir(NEW_ROOT)
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    switched.map_err(Error::on("making the new root", DISK))
}

fn wait_for_disk() -> Result<(), Error> {
    let start = Instant::now();
    while !Path::new(DISK).exists() {
        if start.elapsed() > DISK_TIMEOUT {
            return Err(Error::on("waiting for the root disk", DISK)(io::Error::from(io::ErrorKind::NotFound)));
        }
        sleep(DISK_POLL);
    }
    Ok(())
}

/// Installs a program of the initramfs in the root, unless the root has the same one.
fn install(source: &str, target: &'static str) -> Result<(), Error> {
    let installed_path = format!("{NEW_ROOT}{target}");
    let program = match fs::read(source) {
        Ok(program) => program,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::on("reading", source)(error)),
    };
    if fs::read(&installed_path).is_ok_and(|present| present == program) {
        return Ok(());
    }
    // Written under another name first: a guest that crashes meanwhile still has the old program.
    let fresh = format!("{installed_path}.new");
    fs::write(&fresh, &program)
        .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&fresh, &installed_path))
        .map_err(Error::on("writing the guest program", target))
}
