//! Power-off of the guest.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use crate::console::{print_error, print_line};

/// Time that processes have to exit after a signal.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// Stops all processes, writes all data to the disk and powers off.
pub(crate) fn off() -> ! {
    // -1: every process except this one (kill(2)). There may be none.
    let all_processes = Pid::from_raw(-1);
    let _ = kill(all_processes, Signal::SIGTERM);
    if !reap_all(EXIT_TIMEOUT) {
        let _ = kill(all_processes, Signal::SIGKILL);
        reap_all(EXIT_TIMEOUT);
    }
    rustix::fs::sync();
    if let Err(errno) = mount_remount("/", MountFlags::RDONLY, c"") {
        print_error("could not make the root read-only", &std::io::Error::from(errno));
    }
    print_line("power off");
    if let Err(errno) = reboot(RebootCommand::PowerOff) {
        print_error("could not power off", &std::io::Error::from(errno));
    }
    // Exiting PID 1 makes the kernel panic, which the host detects as the guest's end.
    std::process::exit(1);
}

/// Reaps processes until none is left or `timeout` has passed. Returns true if none is left.
fn reap_all(timeout: Duration) -> bool {
    let start = Instant::now();
    loop {
        match wait(WaitOptions::NOHANG) {
            Err(_) => return true,
            Ok(Some(_)) => {}
            Ok(None) if start.elapsed() > timeout => return false,
            Ok(None) => sleep(POLL),
        }
    }
}
