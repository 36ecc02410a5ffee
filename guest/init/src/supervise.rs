//! Supervision of the daemon.
//!
//! ```text
//!   running ──exits──> backing off ──pause over──> running
//! ```
//!
//! The pause doubles while the daemon exits soon after its start, so that a broken daemon does not use up the guest's
//! CPU. It is reset once the daemon has run for a while.

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

use crate::console::{print_error, print_line};
use crate::root::DAEMON;
use crate::{Error, power};

/// Search path of the daemon, which its children inherit.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Time after which a running daemon counts as healthy, which resets the pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

enum Daemon {
    Running { pid: Pid, at: Instant },
    BackingOff { until: Instant },
}

/// Runs the daemon and reaps orphans. Returns only if the daemon cannot be started at all.
pub(crate) fn run() -> Result<Infallible, Error> {
    let signals = signals().map_err(Error::on("receiving", "signals"))?;
    let mut pause = PAUSE_FIRST;
    let mut daemon = start(&[])?;
    loop {
        match next_signal(&signals, &daemon) {
            Some(Signal::SIGCHLD) => {}
            Some(signal) => {
                print_line(&format!("powering off after {signal}"));
                power::off();
            }
            None => {}
        }
        let ended = reap(&daemon);
        daemon = match (daemon, ended) {
            (Daemon::Running { at, .. }, Some(status)) => {
                if at.elapsed() >= HEALTHY_AFTER {
                    pause = PAUSE_FIRST;
                }
                print_line(&format!("envd ended ({}), starting it again", describe(status)));
                let until = Instant::now() + pause;
                pause = (pause * 2).min(PAUSE_MAX);
                Daemon::BackingOff { until }
            }
            (Daemon::BackingOff { until }, _) if Instant::now() >= until => match start(&["-restarted"]) {
                Ok(started) => started,
                // The daemon may be in the middle of a replacement: it was started before.
                Err(error) => {
                    print_error("envd does not start", &error);
                    Daemon::BackingOff { until: Instant::now() + PAUSE_MAX }
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
    // The daemon inherits the mask; it unblocks all signals first, for itself and its children.
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Waits for a signal, or until the pause of a daemon that is backing off is over.
fn next_signal(signals: &SignalFd, daemon: &Daemon) -> Option<Signal> {
    let timeout = match daemon {
        Daemon::Running { .. } => PollTimeout::NONE,
        // Rounded up, because a truncated timeout would poll repeatedly in the last millisecond.
        Daemon::BackingOff { until } => {
            let rest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
        }
    };
    let mut waits = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    // An interrupted wait returns no signal.
    let _ = poll(&mut waits, timeout);
    let number = signals.read_signal().ok().flatten()?.ssi_signo;
    Signal::try_from(i32::try_from(number).ok()?).ok()
}

/// Reaps all exited children, orphans included. Returns the daemon's status if it is one of them.
fn reap(daemon: &Daemon) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((child, status))) = wait(WaitOptions::NOHANG) {
        if matches!(daemon, Daemon::Running { pid, .. } if *pid == child) {
            ended = Some(status);
        }
    }
    ended
}

/// Starts the daemon.
///
/// A restarted daemon is started with `-restarted`: it has lost the guest's identity, and rejects requests until the
/// host has sent it again.
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
    Ok(Daemon::Running { pid, at: Instant::now() })
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}
