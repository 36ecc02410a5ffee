//! The end of the guest.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use crate::console::{complain, say};

/// How long processes may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// Ends all processes, writes everything to the disk and switches the machine off.
pub(crate) fn off() -> ! {
    // -1: every process but this one (kill(2)). There may be none.
    let everybody = Pid::from_raw(-1);
    let _ = kill(everybody, Signal::SIGTERM);
    if !all_gone(PATIENCE) {
        let _ = kill(everybody, Signal::SIGKILL);
        all_gone(PATIENCE);
    }
    rustix::fs::sync();
    if let Err(errno) = mount_remount("/", MountFlags::RDONLY, c"") {
        complain("could not make the root read-only", &std::io::Error::from(errno));
    }
    say("power off");
    if let Err(errno) = reboot(RebootCommand::PowerOff) {
        complain("could not power off", &std::io::Error::from(errno));
    }
    // The kernel could not: a PID 1 that ends makes it panic, which the host sees as the end too.
    std::process::exit(1);
}

/// Reaps until no process is left, at most for `patience`.
fn all_gone(patience: Duration) -> bool {
    let start = Instant::now();
    loop {
        match wait(WaitOptions::NOHANG) {
            Err(_) => return true,
            Ok(Some(_)) => {}
            Ok(None) if start.elapsed() > patience => return false,
            Ok(None) => sleep(POLL),
        }
    }
}
