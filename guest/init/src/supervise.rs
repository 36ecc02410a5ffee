//! Supervision of the daemon and of the template's services.
//!
//! Each program is restarted when it exits, by the rules of [`schedule`]. The daemon starts first. Only a daemon that
//! cannot be started at all ends the guest; services never do.

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
use crate::declarations::{self, Declaration};
use crate::root::DAEMON;
use crate::{Error, power};

mod schedule;

use schedule::Schedule;

/// Search path of the daemon and the services, which their children inherit.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// This program, also after the initramfs was emptied (proc_pid_exe(5)).
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A supervised program.
struct Program {
    kind: Kind,
    schedule: Schedule,
}

enum Kind {
    /// The daemon; `started` is true after its first start.
    Daemon {
        started: bool,
    },
    Declared(Declaration),
}

/// Runs the daemon and the services and reaps orphans. Returns only if the daemon cannot be started at all.
pub(crate) fn run() -> Result<Infallible, Error> {
    let signals = signals().map_err(Error::on("receiving", "signals"))?;
    let kinds = [Kind::Daemon { started: false }].into_iter();
    let kinds = kinds.chain(declarations::declared().into_iter().map(Kind::Declared));
    let now = Instant::now();
    let mut programs: Vec<Program> = kinds.map(|kind| Program { kind, schedule: Schedule::due(now) }).collect();
    loop {
        for program in &mut programs {
            program.start_if_due()?;
        }
        match next_signal(&signals, &programs) {
            Some(Signal::SIGCHLD) | None => {}
            Some(signal) => {
                print_line(&format!("powering off after {signal}"));
                power::off();
            }
        }
        reap(&mut programs);
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

/// Waits for a signal, or until the pause of a program that is backing off is over.
fn next_signal(signals: &SignalFd, programs: &[Program]) -> Option<Signal> {
    let next_start = programs.iter().filter_map(|program| program.schedule.next_start()).min();
    let timeout = next_start.map_or(PollTimeout::NONE, |next_start| {
        // Rounded up, because a truncated timeout would poll repeatedly in the last millisecond.
        let rest = next_start.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
    });
    let mut waits = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    // An interrupted wait returns no signal.
    let _ = poll(&mut waits, timeout);
    let number = signals.read_signal().ok().flatten()?.ssi_signo;
    Signal::try_from(i32::try_from(number).ok()?).ok()
}

/// Reaps all exited children, orphans included, and records the end of programs.
fn reap(programs: &mut [Program]) {
    while let Ok(Some((child, status))) = wait(WaitOptions::NOHANG) {
        if let Some(program) = programs.iter_mut().find(|program| program.schedule.pid() == Some(child)) {
            print_line(&format!("{} ended ({}), starting it again", program.kind.name(), describe(status)));
            program.schedule.ended(Instant::now());
        }
    }
}

impl Program {
    fn start_if_due(&mut self) -> Result<(), Error> {
        if self.schedule.next_start().is_none_or(|time| time > Instant::now()) {
            return Ok(());
        }
        match self.kind.start() {
            Ok(pid) => self.schedule.started(pid, Instant::now()),
            Err(error) if matches!(self.kind, Kind::Daemon { started: false }) => return Err(error),
            // The daemon may be in the middle of a replacement: it was started before.
            Err(error) => {
                print_error(&format!("{} does not start", self.kind.name()), &error);
                self.schedule.ended(Instant::now());
            }
        }
        if let Kind::Daemon { started } = &mut self.kind {
            *started = true;
        }
        Ok(())
    }
}

impl Kind {
    fn name(&self) -> &str {
        match self {
            Self::Daemon { .. } => "envd",
            Self::Declared(service) => &service.name,
        }
    }

    fn start(&self) -> Result<Pid, Error> {
        let mut command = match self {
            // A restarted daemon has lost the guest's identity, and rejects requests until the host has sent it again.
            Self::Daemon { started } => {
                let mut command = Command::new(DAEMON);
                command.args(started.then_some("-restarted"));
                command
            }
            Self::Declared(service) => {
                let mut command = Command::new(THIS_PROGRAM);
                command.args([declarations::ENTER, &service.program]).args(&service.arguments);
                command
            }
        };
        let console = || File::options().write(true).open("/dev/console").map_or_else(|_| Stdio::null(), Stdio::from);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(console())
            .stderr(console());
        let child = command.spawn().map_err(Error::on("starting", self.name()))?;
        Ok(Pid::from_child(&child))
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}
