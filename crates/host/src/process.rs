//! Processes that outlive the daemon.
//!
//! A VMM starts in its own session, network namespace and control group, with its output in a file, so nothing ties it
//! to the daemon. The daemon holds it by a pidfd (pidfd_open(2)): a signal cannot reach another process that got the
//! same process id later, and the exit is an event.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;

use crate::cgroup::Group;

/// Failure to start a process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("`{program}` was not found")]
    ProgramMissing {
        /// Path or name of the program.
        program: String,
    },
    /// A file that the process needs could not be opened.
    #[error("opening `{}` for a new process", path.display())]
    Prepare { path: PathBuf, source: io::Error },
    /// A system call failed.
    #[error("starting `{program}`")]
    Start { program: String, source: io::Error },
}

impl SpawnError {
    /// Returns true if the program is not installed, which an operator can fix.
    #[must_use]
    pub fn is_program_missing(&self) -> bool {
        matches!(self, Self::ProgramMissing { .. })
    }
}

/// A process to start.
#[derive(Debug)]
pub struct Spawn {
    program: PathBuf,
    args: Vec<OsString>,
    output: Option<OwnedFd>,
    inherited: Vec<OwnedFd>,
    namespace: Option<PathBuf>,
    cgroup: Option<Group>,
}

impl Spawn {
    /// Creates a process of `program`: a path, or a name to look up in `PATH`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            output: None,
            inherited: Vec::new(),
            namespace: None,
            cgroup: None,
        }
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = OsString>) -> &mut Self {
        self.args.extend(args);
        self
    }

    /// Sets the file for standard output and standard error; without it both are `/dev/null`.
    pub fn output(&mut self, file: OwnedFd) -> &mut Self {
        self.output = Some(file);
        self
    }

    /// Passes a descriptor to the process under the number that it has here.
    pub fn inherit(&mut self, descriptor: OwnedFd) -> &mut Self {
        self.inherited.push(descriptor);
        self
    }

    /// Sets the network namespace in which the process starts.
    pub fn namespace(&mut self, path: &Path) -> &mut Self {
        self.namespace = Some(path.to_owned());
        self
    }

    /// Sets the control group in which the process starts.
    pub fn cgroup(&mut self, group: &Group) -> &mut Self {
        self.cgroup = Some(group.clone());
        self
    }

    /// Starts the process.
    ///
    /// All descriptors except the inherited ones are closed, the environment is empty, standard input is `/dev/null`,
    /// the process cannot gain privileges (`no_new_privs`, prctl(2)) and leaves no core file. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// No process runs.
    pub fn spawn(self) -> Result<Process, SpawnError> {
        let name = self.program.display().to_string();
        let prepare = |path: &Path| {
            let path = path.to_owned();
            move |source| SpawnError::Prepare { path, source }
        };
        let namespace = match &self.namespace {
            Some(path) => Some(File::open(path).map_err(prepare(path))?),
            None => None,
        };
        let group = match &self.cgroup {
            Some(group) => {
                let path = group.procs();
                Some(File::options().write(true).open(&path).map_err(prepare(&path))?)
            }
            None => None,
        };
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().stdin(Stdio::null());
        match self.output {
            Some(file) => {
                let copy = file.try_clone().map_err(|source| SpawnError::Start { program: name.clone(), source })?;
                command.stdout(copy).stderr(file);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        let numbers: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: the closure runs between fork and exec and makes only system calls: it allocates nothing, takes no
        // lock and accesses no memory except its own captures, which the fork copied.
        unsafe {
            command.pre_exec(move || in_child(namespace.as_ref(), group.as_ref(), &numbers));
        }
        let child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SpawnError::ProgramMissing { program: name.clone() },
            _ => SpawnError::Start { program: name.clone(), source },
        })?;
        // The child has not been waited for, so its process id cannot belong to another process yet.
        let pid = Pid::from_child(&child);
        drop(self.inherited);
        Process::open(pid, true).map_err(|source| SpawnError::Start { program: name, source })
    }
}

/// Prepares the child between fork and exec. Makes only system calls: see the caller.
fn in_child(namespace: Option<&File>, group: Option<&File>, inherited: &[RawFd]) -> io::Result<()> {
    use std::io::Write;

    nix::unistd::setsid()?;
    if let Some(mut group) = group {
        // 0 means the writing process (cgroups(7)).
        group.write_all(b"0")?;
    }
    if let Some(namespace) = namespace {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
    }
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_no_new_privs()?;
    // The daemon's parent may have left descriptors open that the daemon does not know of.
    close_on_exec()?;
    for number in inherited {
        // SAFETY: the parent keeps the descriptor open until the fork is over, and the child has its own descriptor
        // table.
        let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(*number) };
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}

/// Marks all descriptors except the three standard ones as close-on-exec.
///
/// This includes descriptors that this process inherited. Makes only system calls.
pub fn close_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call takes no pointers, and the mark has no effect on this process.
    let result = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    let error = io::Error::last_os_error();
    match (result, error.raw_os_error()) {
        (0, _) => Ok(()),
        // Linux before 5.9 has no such call, before 5.11 not this flag.
        (_, Some(libc::ENOSYS | libc::EINVAL)) => {
            let (open_max, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
            for number in 3..RawFd::try_from(open_max).unwrap_or(RawFd::MAX) {
                // SAFETY: the call takes no pointers; a number that is not open is an error, which is ignored.
                unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        _ => Err(error),
    }
}

/// Raises the soft limit of open files to the hard limit (`RLIMIT_NOFILE`, getrlimit(2)); returns the limit.
///
/// Child processes inherit it. Each connection needs a descriptor, and the default soft limit is for programs that use
/// `select(2)`.
pub fn raise_open_files() -> io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let (_, allowed) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, allowed, allowed)?;
    Ok(allowed)
}

/// A process held by a pidfd. Cheap to clone. Dropping it does not affect the process.
#[derive(Debug, Clone)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pid: Pid,
    descriptor: AsyncFd<OwnedFd>,
    is_child: bool,
}

impl Process {
    fn open(pid: Pid, is_child: bool) -> io::Result<Self> {
        let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: the descriptor must stay open until the reactor has deregistered it; `AsyncFd` owns it and closes it
        // last.
        let descriptor = unsafe { AsyncFd::register(descriptor) }?;
        Ok(Self { inner: Arc::new(Inner { pid, descriptor, is_child }) })
    }

    /// Returns all processes with an argument that contains `text`, except this process.
    ///
    /// Processes start and exit during the search. Each returned process had the argument while its pidfd was already
    /// held.
    #[must_use]
    pub fn find_by_argument(text: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        numbers
            .filter(|number| *number != own && has_argument(*number, text))
            .filter_map(|number| {
                let process = Self::open(Pid::from_raw(number)?, false).ok()?;
                // Checked again with the pidfd held: from here on the process id cannot pass to another process
                // unnoticed.
                has_argument(number, text).then_some(process)
            })
            .collect()
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.pid.as_raw_nonzero().get()
    }

    /// Waits until the process has exited, and reaps it if it is a child. Cancel safe.
    ///
    /// Returns immediately if it has exited already.
    pub async fn wait(&self) {
        // A pidfd becomes readable when its process exits. An error of the reactor means that the runtime is shutting
        // down.
        let _ = self.inner.descriptor.readable().await;
        if self.inner.is_child {
            // Fails if a clone of this has reaped the process already.
            let _ = waitid(WaitId::PidFd(self.descriptor()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }

    /// Sends SIGKILL. A process that has exited already is success.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.inner.descriptor.get_ref(), Signal::KILL) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.inner.descriptor.get_ref().as_fd()
    }
}

fn has_argument(pid: i32, text: &str) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| contains(argument, text.as_bytes()))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle)
}

/// Finds a program: a path is checked as it is, a name is searched in `PATH`, `/usr/sbin` and `/sbin`.
///
/// A user's `PATH` may lack the last two.
#[must_use]
pub fn find_program(name: &OsStr) -> Option<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return path.is_file().then(|| path.to_owned());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&folders).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(path)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_killed_process_exits_and_is_reaped() {
        let mut spawn = Spawn::new("sleep");
        spawn.args(["1000".into()]);
        let process = spawn.spawn().expect("sleep exists");
        assert!(Path::new(&format!("/proc/{}", process.pid())).exists());
        process.kill().expect("kills");
        tokio::time::timeout(Duration::from_secs(10), process.wait()).await.expect("exits");
        assert!(!Path::new(&format!("/proc/{}", process.pid())).exists(), "a zombie remains");
        process.kill().expect("killing twice is success");
        process.wait().await;
    }

    #[tokio::test]
    async fn a_missing_program_is_reported_as_missing() {
        let error = Spawn::new("/nonexistent/program").spawn().expect_err("missing");
        assert!(error.is_program_missing(), "{error}");
    }

    #[tokio::test]
    async fn only_inherited_descriptors_reach_the_child() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let (mut secret_reader, secret) = io::pipe().expect("pipe");
        let number = writer.as_raw_fd();
        // Not every shell accepts descriptors of two digits.
        let mut spawn = Spawn::new("bash");
        let script = format!("echo hello >&{number}; echo leak >&{} 2>/dev/null", secret.as_raw_fd());
        spawn.args(["-c".into(), script.into()]).inherit(writer.into());
        spawn.spawn().expect("bash exists").wait().await;
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "hello\n");
        let mut own = secret;
        own.write_all(b"own").expect("writes");
        drop(own);
        text.clear();
        secret_reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "own");
    }

    /// A shell or a supervisor may start the daemon with files of its own open.
    #[tokio::test]
    async fn descriptors_of_the_daemon_s_parent_are_not_passed_on() {
        let (mut reader, stray) = io::pipe().expect("pipe");
        fcntl(&stray, FcntlArg::F_SETFD(FdFlag::empty())).expect("is inheritable");
        let mut spawn = Spawn::new("bash");
        spawn.args(["-c".into(), format!("echo leak >&{} 2>/dev/null", stray.as_raw_fd()).into()]);
        spawn.spawn().expect("bash exists").wait().await;
        fcntl(&stray, FcntlArg::F_SETFD(FdFlag::empty())).expect("is inheritable");
        close_on_exec().expect("marks");
        let marked = fcntl(&stray, FcntlArg::F_GETFD).expect("is open");
        assert_eq!(marked, FdFlag::FD_CLOEXEC.bits());
        drop(stray);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "");
    }

    #[tokio::test]
    async fn a_process_is_found_by_its_argument() {
        let mark = format!("1000.{}", std::process::id());
        let mut spawn = Spawn::new("sleep");
        spawn.args([mark.clone().into()]);
        let started = spawn.spawn().expect("sleep exists");
        // spawn returns after exec: the child has its own arguments.
        let found = Process::find_by_argument(&mark);
        assert_eq!(found.iter().map(Process::pid).collect::<Vec<_>>(), [started.pid()]);
        found[0].kill().expect("kills");
        started.wait().await;
        assert!(Process::find_by_argument(&mark).is_empty());
    }
}
