//! Start of a kernel's process: this program again, which sets its process up and becomes the kernel.
//!
//! A kernel must not survive the server: the next one knows nothing of it. The parent-death signal (prctl(2)) is set
//! between fork and exec without unsafe code by executing this program in between.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal};

/// First argument of this program when it becomes a kernel.
pub(crate) const WORD: &str = "become-kernel";
/// Score that makes the kernel kill kernels before the system's processes when memory is short, as for commands.
const KERNEL_OOM_SCORE: &str = "100";
/// Score that exempts the server: with a dead server all contexts are lost, with a dead kernel one.
const SERVER_OOM_SCORE: &str = "-1000";
/// Open files of a kernel, as for commands: few enough for programs that close every possible one.
const KERNEL_FILES: u64 = 65_536;
/// Open files of the server and upper limit of a kernel: each connection and each socket of a kernel is one.
const FILES_MAX: u64 = 1 << 20;
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Exempts the server from being killed when memory is short, and raises its limit of open files.
///
/// Only root may; errors are ignored.
pub(crate) fn protect_server() {
    let _ = fs::write(OOM_SCORE, SERVER_OOM_SCORE);
    limit_files(FILES_MAX);
}

/// Sets the limit of open files, below the upper limit if that cannot be raised.
fn limit_files(files: u64) {
    let raised = Rlimit { current: Some(files), maximum: Some(FILES_MAX) };
    if rustix::process::setrlimit(Resource::Nofile, raised).is_err() {
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        let current = Some(maximum.map_or(files, |maximum| files.min(maximum)));
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum });
    }
}

/// Returns the command that starts `argv` as a process group of its own, which ends with this process.
///
/// Must be spawned by the main thread: the signal is sent when the parent's thread ends.
pub(crate) fn command(argv: &[String]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg(WORD).arg(std::process::id().to_string()).args(argv);
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Becomes the kernel; `arguments` are the server's process id and the kernel's command.
pub(crate) fn become_kernel(arguments: &[String]) -> ExitCode {
    let Some((parent, argv)) = arguments.split_first() else { return ExitCode::from(2) };
    let Some((program, arguments)) = argv.split_first() else { return ExitCode::from(2) };
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // The server may have exited before the signal was set.
    let is_orphan =
        rustix::process::getppid().map(Pid::as_raw_nonzero).map(|pid| pid.to_string()).as_ref() != Some(parent);
    if is_orphan {
        return ExitCode::FAILURE;
    }
    let _ = fs::write(OOM_SCORE, KERNEL_OOM_SCORE);
    limit_files(KERNEL_FILES);
    let error = Command::new(program).args(arguments).exec();
    eprintln!("starting {}: {error}", Path::new(&OsString::from(program)).display());
    ExitCode::from(127)
}
