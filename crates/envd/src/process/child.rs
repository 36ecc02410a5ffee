//! Start of a child process with its streams, from a request.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use connectrpc::ConnectError;
use hearth_envd_api::process::{PTY, ProcessConfig, StartRequest};
use rustix::process::{Pid, PidfdFlags};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::process::{ChildStdin, Command};

use crate::cgroups::{Kind, Leaf};
use crate::path_calls::Lane;
use crate::paths;
use crate::state::State;
use crate::sys::{self, ChildSetup};
use crate::users::{RUNTIME_DIRECTORIES, User};

/// Search path of programs if the daemon itself was started without one.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Default locale of programs: UTF-8 texts, otherwise as in `C`. Every libc supports it without locale files.
const LOCALE_DEFAULT: &str = "C.UTF-8";
/// Errors of execve(2) for which a shell has messages and exit codes: missing program or interpreter, no permission.
const SHELL_REPORTED: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
/// ENOEXEC: a script without an interpreter line, which a shell runs itself.
const NOT_A_BINARY: i32 = 8;

/// Directories of a search path whose mounts are determined before a start. The search itself covers all of them.
const SEARCHED_DIRECTORIES_MAX: usize = 32;

/// Tag of the host's own commands. They remain in the daemon's group, so that they run while the others are frozen.
const SYSTEM_TAG: &str = "_system";

/// A newly started child.
pub(super) struct Child {
    pub(super) process: tokio::process::Child,
    pub(super) pid: u32,
    /// Refers to this process and never to a later one with the same pid. `None` on kernels before 5.3.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) config: ProcessConfig,
    pub(super) tag: Option<String>,
    pub(super) streams: Streams,
    /// Control group of the process; `None` if the guest has none.
    pub(super) group: Option<Leaf>,
}

/// The daemon's ends of a child's streams.
pub(super) enum Streams {
    Pipes { stdin: Option<ChildStdin>, stdout: AsyncFd<OwnedFd>, stderr: AsyncFd<OwnedFd> },
    Terminal(AsyncFd<OwnedFd>),
}

impl Child {
    /// Starts the requested program. Blocks while it is loaded; must run inside a Tokio runtime.
    pub(super) fn spawn(request: StartRequest, user: &User, state: &State) -> Result<Self, ConnectError> {
        let config = request.process.into_option().unwrap_or_default();
        if config.cmd.contains('\0') || config.args.iter().any(|arg| arg.contains('\0')) {
            return Err(ConnectError::invalid_argument("the command contains a NUL byte"));
        }
        let workdir = workdir(&config, user, state)?;
        let environment = environment(&config, user, state)?;
        let terminal = match request.pty.into_option() {
            Some(pty) => Some(Terminal::open(&pty, user).map_err(|error| start_error(&error))?),
            None => None,
        };
        let wants_stdin = request.stdin.unwrap_or(true);
        let kind = if terminal.is_some() { Kind::Terminal } else { Kind::User };
        let group = match state.groups().filter(|_| request.tag.as_deref() != Some(SYSTEM_TAG)) {
            Some(groups) => Some(groups.leaf(kind).map_err(|error| start_error(&error))?),
            None => None,
        };
        let launch = Launch {
            config: &config,
            user,
            workdir: &workdir,
            environment: &environment,
            group: group.as_ref(),
            state,
        };
        let program = executable(&config.cmd, &environment, &workdir);
        let mut process = launch.run(program, terminal.as_ref(), wants_stdin).map_err(|error| start_error(&error))?;
        let pid = process.id().ok_or_else(|| ConnectError::internal("the process has no number"))?;
        // The child has not been waited for yet, so the pid is still its own.
        let pidfd = pid_of(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        let streams = match terminal {
            Some(terminal) => Ok(Streams::Terminal(terminal.daemon_side)),
            None => pipes(&mut process),
        };
        let streams = streams.map_err(|error| {
            // No client knows the process.
            let _ = process.start_kill();
            start_error(&error)
        })?;
        Ok(Self { process, pid, pidfd, config, tag: request.tag, streams, group })
    }
}

/// Returns the slots for a start, by the mounts of the working directory and of the directories of the search path.
///
/// A program on an unresponsive mount does not prevent the start of others.
pub(super) fn lane(request: &StartRequest, user: &User, state: &State) -> Result<Lane, ConnectError> {
    let default = ProcessConfig::default();
    let config = request.process.as_option().unwrap_or(&default);
    let workdir = resolve_workdir(config, user, state)?;
    let mut paths: Vec<PathBuf> = if config.cmd.contains('/') {
        vec![workdir.join(&config.cmd)]
    } else {
        let environment = environment(config, user, state)?;
        let search = environment.get("PATH").map(String::as_str).unwrap_or_default();
        search.split(':').take(SEARCHED_DIRECTORIES_MAX).map(|folder| workdir.join(folder)).collect()
    };
    paths.push(workdir);
    Ok(state.starts.lane(paths.iter().map(PathBuf::as_path)))
}

/// Takes the daemon's ends of a child's pipes.
fn pipes(process: &mut tokio::process::Child) -> io::Result<Streams> {
    let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
        return Err(io::Error::other("the process has no output pipes"));
    };
    let (stdout, stderr) = (sys::pollable(stdout.into_owned_fd()?)?, sys::pollable(stderr.into_owned_fd()?)?);
    Ok(Streams::Pipes { stdin: process.stdin.take(), stdout, stderr })
}

/// Converts a pid to the kernel's type.
pub(super) fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn start_error(error: &io::Error) -> ConnectError {
    ConnectError::invalid_argument(format!("error starting process: {error}"))
}

/// Returns the working directory of a command. The child enters it with the user's rights, which may still fail.
fn workdir(config: &ProcessConfig, user: &User, state: &State) -> Result<PathBuf, ConnectError> {
    let path = resolve_workdir(config, user, state)?;
    if path.exists() {
        Ok(path)
    } else {
        Err(ConnectError::invalid_argument(format!("cwd '{}' does not exist", path.display())))
    }
}

fn resolve_workdir(config: &ProcessConfig, user: &User, state: &State) -> Result<PathBuf, ConnectError> {
    let default = state.default_workdir();
    paths::resolve(config.cwd.as_deref().unwrap_or_default(), user, default.as_deref())
        .map_err(|error| ConnectError::invalid_argument(error.to_string()))
}

/// Builds the environment of a command. Only the search path is inherited; later sources override earlier ones.
fn environment(config: &ProcessConfig, user: &User, state: &State) -> Result<BTreeMap<String, String>, ConnectError> {
    if let Some((name, _)) = config.envs.iter().find(|(name, value)| !is_variable(name, value)) {
        return Err(ConnectError::invalid_argument(format!("invalid environment variable '{name}'")));
    }
    let path = std::env::var("PATH").unwrap_or_else(|_| PATH_DEFAULT.to_owned());
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), path),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
        ("LANG".to_owned(), LOCALE_DEFAULT.to_owned()),
    ]);
    if state.in_microvm()
        && let Ok(folder) = user.ensure_runtime_directory(Path::new(RUNTIME_DIRECTORIES))
    {
        environment.insert("XDG_RUNTIME_DIR".to_owned(), folder.to_string_lossy().into_owned());
    }
    // Invalid variables of the sandbox must not prevent the start of every command.
    environment.extend(state.envs().into_iter().filter(|(name, value)| is_variable(name, value)));
    environment.extend(config.envs.iter().map(|(name, value)| (name.clone(), value.clone())));
    Ok(environment)
}

/// Returns true if the kernel can pass the variable to a program (environ(7)).
fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['\0', '=']) && !value.contains('\0')
}

/// Returns the path of the command's program if it is executable; otherwise a shell reports the error.
fn executable(command: &str, environment: &BTreeMap<String, String>, workdir: &Path) -> Option<PathBuf> {
    let runs =
        |path: &Path| fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    if command.is_empty() {
        return None;
    }
    if command.contains('/') {
        // The path remains as the client wrote it, so that scripts see it in `$0`; the child resolves it in its working
        // directory.
        return runs(&workdir.join(command)).then(|| command.into());
    }
    let search = environment.get("PATH").map(String::as_str).unwrap_or_default();
    search.split(':').map(|folder| workdir.join(folder).join(command)).find(|path| runs(path))
}

struct Launch<'a> {
    config: &'a ProcessConfig,
    user: &'a User,
    workdir: &'a Path,
    environment: &'a BTreeMap<String, String>,
    group: Option<&'a Leaf>,
    state: &'a State,
}

impl Launch<'_> {
    /// Starts the program, or a shell that runs it.
    ///
    /// The shell's messages and its exit codes 126 and 127 are those that clients expect for commands that cannot be
    /// run. It also runs scripts without an interpreter line. If the working directory caused the error, the start of
    /// the shell fails too.
    fn run(
        &self,
        program: Option<PathBuf>,
        terminal: Option<&Terminal>,
        wants_stdin: bool,
    ) -> io::Result<tokio::process::Child> {
        if let Some(program) = program {
            let mut command = Command::new(program);
            command.arg0(&self.config.cmd);
            match self.prepared(command, terminal, wants_stdin)?.spawn() {
                Err(error) if SHELL_REPORTED.contains(&error.kind()) || error.raw_os_error() == Some(NOT_A_BINARY) => {}
                result => return result,
            }
        }
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "exec \"$0\" \"$@\"", &self.config.cmd]);
        self.prepared(shell, terminal, wants_stdin)?.spawn()
    }

    fn prepared(&self, mut command: Command, terminal: Option<&Terminal>, wants_stdin: bool) -> io::Result<Command> {
        command.args(&self.config.args).env_clear().envs(self.environment);
        match terminal {
            Some(terminal) => {
                command.stdin(terminal.child_side.try_clone()?);
                command.stdout(terminal.child_side.try_clone()?);
                command.stderr(terminal.child_side.try_clone()?);
            }
            None => {
                command.stdin(if wants_stdin { Stdio::piped() } else { Stdio::null() });
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        let group_procs = self.group.map(Leaf::open_procs).transpose()?;
        let setup =
            ChildSetup::new(self.user, self.workdir, terminal.is_some(), self.state.child_descriptors(), group_procs)?;
        sys::set_up_child(&mut command, setup);
        Ok(command)
    }
}

/// A pseudoterminal.
struct Terminal {
    daemon_side: AsyncFd<OwnedFd>,
    child_side: OwnedFd,
}

impl Terminal {
    fn open(pty: &PTY, user: &User) -> io::Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let daemon_side = openpt(flags)?;
        grantpt(&daemon_side)?;
        unlockpt(&daemon_side)?;
        let child_side = ioctl_tiocgptpeer(&daemon_side, flags)?;
        // The user owns the terminal, as after a login, because programs open it by its name. The group does not
        // change.
        let _ = std::os::unix::fs::fchown(&child_side, Some(user.uid), None);
        let size = pty.size.as_option().cloned().unwrap_or_default();
        rustix::termios::tcsetwinsize(&daemon_side, window(size.cols, size.rows))?;
        Ok(Self { daemon_side: sys::pollable(daemon_side)?, child_side })
    }
}

/// Converts a terminal size; the contract truncates the numbers to 16 bits.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn window(cols: u32, rows: u32) -> Winsize {
    Winsize { ws_row: rows as u16, ws_col: cols as u16, ws_xpixel: 0, ws_ypixel: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User { name: "user".to_owned(), uid: 1000, gid: 1000, home: PathBuf::from("/home/user") }
    }

    fn config(envs: &[(&str, &str)]) -> ProcessConfig {
        let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        ProcessConfig { envs: envs.collect(), ..Default::default() }
    }

    #[test]
    fn later_sources_of_the_environment_have_precedence() {
        let state = State::outside();
        let vars = [("A", "sandbox"), ("HOME", "/sandbox"), ("", "odd"), ("B=", "odd")];
        state.set_env_vars(vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        let built = environment(&config(&[("A", "request"), ("E2B_SANDBOX", "maybe")]), &user(), &state);
        let built = built.expect("valid");
        for (name, value) in
            [("A", "request"), ("HOME", "/sandbox"), ("USER", "user"), ("LOGNAME", "user"), ("E2B_SANDBOX", "maybe")]
        {
            assert_eq!(built[name], value, "{name}");
        }
        assert_eq!(built["LANG"], LOCALE_DEFAULT);
        assert_eq!(built.len(), 7, "with PATH and no other variable: {built:?}");
    }

    #[test]
    fn invalid_environment_variables_are_rejected() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            assert!(environment(&config(&[(name, value)]), &user(), &State::outside()).is_err(), "{name:?}={value:?}");
        }
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        for (name, mode) in [("tool", 0o755), ("text", 0o644)] {
            let path = folder.path().join(name);
            fs::write(&path, "").expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        }
        let search = BTreeMap::from([("PATH".to_owned(), format!("/nonexistent:{}", folder.path().display()))]);
        let find = |command: &str| executable(command, &search, folder.path());
        assert_eq!(find("tool"), Some(folder.path().join("tool")));
        assert_eq!(find("./tool"), Some("./tool".into()));
        for missing in ["", "text", "./text", "other", "/nonexistent/tool"] {
            assert_eq!(find(missing), None, "{missing}");
        }
    }

    #[test]
    fn window_sizes_are_truncated_to_16_bits() {
        let size = window(65_536 + 80, 24);
        assert_eq!((size.ws_col, size.ws_row), (80, 24));
    }
}
