//! The daemon, for ever.
//!
//! ```text
//!   started ──ends──> resting ──pause over──> started
//! ```
//!
//! The pause doubles while the daemon ends soon after its start, so that a broken one does not eat the guest, and starts
//! anew when it ran for a while.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::console::{complain, say};
use crate::root::DAEMON;
use crate::{Error, power};

/// The environment of the daemon; its children inherit `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A daemon that ran this long was well.
const WELL_AFTER: Duration = Duration::from_secs(10);

enum Daemon {
    Started { pid: Pid, at: Instant },
    Resting { until: Instant },
}

/// Runs the daemon and reaps orphans. Returns only when there is no daemon to run at all.
pub(crate) fn forever() -> Result<Infallible, Error> {
    let signals = signals().map_err(Error::on("receiving", "signals"))?;
    let mut pause = PAUSE_FIRST;
    let mut daemon = start(&[])?;
    loop {
        match next_signal(&signals, &daemon) {
            Some(Signal::SIGCHLD) => {}
            Some(signal) => {
                say(&format!("powering off after {signal}"));
                power::off();
            }
            None => {}
        }
        let ended = reap(&daemon);
        daemon = match (daemon, ended) {
            (Daemon::Started { at, .. }, Some(status)) => {
                if at.elapsed() >= WELL_AFTER {
                    pause = PAUSE_FIRST;
                }
                say(&format!("envd ended ({}), starting it again", described(status)));
                let until = Instant::now() + pause;
                pause = (pause * 2).min(PAUSE_MAX);
                Daemon::Resting { until }
            }
            (Daemon::Resting { until }, _) if Instant::now() >= until => match start(&["-restarted"]) {
                Ok(started) => started,
                // It may be about to be replaced: it was there once.
                Err(error) => {
                    complain("envd does not start", &error);
                    Daemon::Resting { until: Instant::now() + PAUSE_MAX }
                }
            },
            (daemon, _) => daemon,
        };
    }
}

fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
        set.add(signal);
    }
    // The daemon inherits it and unblocks everything first of all, for itself and its children.
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Waits for a signal, or for the end of a resting daemon's pause.
fn next_signal(signals: &SignalFd, daemon: &Daemon) -> Option<Signal> {
    let timeout = match daemon {
        Daemon::Started { .. } => PollTimeout::NONE,
        // Rounded up, or the last millisecond would be spent asking.
        Daemon::Resting { until } => {
            let rest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
        }
    };
    let mut waits = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    // An interrupted wait is one that found nothing.
    let _ = poll(&mut waits, timeout);
    let number = signals.read_signal().ok().flatten()?.ssi_signo;
    Signal::try_from(i32::try_from(number).ok()?).ok()
}

/// Reaps all children that ended; the daemon's status, if it is among them. Every process whose parent ended is our child.
fn reap(daemon: &Daemon) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((child, status))) = wait(WaitOptions::NOHANG) {
        if matches!(daemon, Daemon::Started { pid, .. } if *pid == child) {
            ended = Some(status);
        }
    }
    ended
}

/// Starts the daemon. One that is started again is told so: it has lost the guest's identity, and keeps everybody out until the
/// host has told it anew.
fn start(arguments: &[&str]) -> Result<Daemon, Error> {
    let console = || File::options().write(true).open("/dev/console").map_or_else(|_| Stdio::null(), Stdio::from);
    let child = Command::new(DAEMON)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(console())
        .stderr(console())
        .spawn()
        .map_err(Error::on("starting", DAEMON))?;
    let pid = Pid::from_child(&child);
    Ok(Daemon::Started { pid, at: Instant::now() })
}

fn described(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}
