//! The disk becomes the root.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};

use crate::{Error, mounts};

/// The first virtio disk.
const DISK: &str = "/dev/vda";
/// Where it is mounted in the initramfs.
const NEW_ROOT: &str = "/root";
/// The guest daemon in the initramfs, and its place in the root.
const DAEMON_BROUGHT: &str = "/envd";
/// The contract's place of the daemon.
pub(crate) const DAEMON: &str = "/usr/bin/envd";
/// How long the disk may take to appear after its driver was loaded.
const DISK_PATIENCE: Duration = Duration::from_secs(10);
const DISK_POLL: Duration = Duration::from_millis(2);

/// Mounts the disk, brings the daemon and makes the disk the root. The initramfs is emptied: it is memory.
pub(crate) fn switch() -> Result<(), Error> {
    wait_for_disk()?;
    fs::create_dir_all(NEW_ROOT).map_err(Error::on("creating", NEW_ROOT))?;
    // Reading a file must not write to the disk: every written block is a copy that the sandbox pays for.
    mount(DISK, NEW_ROOT, "ext4", MountFlags::NOATIME, c"").map_err(Error::on("mounting the root disk", DISK))?;
    bring_daemon()?;
    for target in mounts::first_targets() {
        let moved = format!("{NEW_ROOT}{target}");
        fs::create_dir_all(&moved).map_err(Error::on("creating", moved.as_str()))?;
        mount_move(target, &moved).map_err(Error::on("moving to the new root", target))?;
    }
    for file in ["/init", DAEMON_BROUGHT] {
        // The program that runs stays until it ends.
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
        if start.elapsed() > DISK_PATIENCE {
            return Err(Error::on("waiting for the root disk", DISK)(io::Error::from(io::ErrorKind::NotFound)));
        }
        sleep(DISK_POLL);
    }
    Ok(())
}

/// Puts the daemon of the initramfs into the root, unless that has the same one.
fn bring_daemon() -> Result<(), Error> {
    let place = format!("{NEW_ROOT}{DAEMON}");
    let brought = match fs::read(DAEMON_BROUGHT) {
        Ok(brought) => brought,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::on("reading", DAEMON_BROUGHT)(error)),
    };
    if fs::read(&place).is_ok_and(|present| present == brought) {
        return Ok(());
    }
    // Under another name first: a guest that dies half-way has the old daemon.
    let fresh = format!("{place}.new");
    fs::write(&fresh, &brought)
        .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&fresh, &place))
        .map_err(Error::on("writing the guest daemon", DAEMON))
}
