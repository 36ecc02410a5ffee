//! Handover of the listening sockets when the daemon restarts in place.
//!
//! ```text
//! SIGUSR2 ─▶ requests in progress finish, all roles stop ─▶ exec of the program on disk, in the same process
//!            └── the sockets stay open: new clients wait in their accept queues ──┘
//! ```
//!
//! The sockets are passed as a service manager passes them (`sd_listen_fds(3)`: `LISTEN_FDS`, `LISTEN_FDNAMES`), so a
//! service manager can also open them before the first start. `LISTEN_FDS_FIRST_FD` is the first passed descriptor,
//! because the usual first one (3) may be in use.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

/// Socket name of the REST API, in `LISTEN_FDNAMES`.
pub(crate) const API: &str = "api";
/// Socket name of the edge.
pub(crate) const EDGE: &str = "edge";
/// Socket name of the listener for the domain.
pub(crate) const TLS: &str = "tls";
/// First descriptor for passed sockets, above those that a just stopped daemon still has open.
const FIRST_FD: i32 = 200;
/// Time limit for a program to print its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(10);

/// Listening sockets of this daemon.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    inherited: BTreeMap<String, TcpListener>,
    handed_over: Vec<(&'static str, OwnedFd)>,
}

impl Sockets {
    /// Takes the sockets that the parent process passed, if any.
    ///
    /// # Errors
    /// A passed socket is not a TCP listener, or its name is unknown.
    pub(crate) fn inherit() -> Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut inherited = BTreeMap::new();
        for index in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let taken =
                passed.take_tcp_listener(index).with_context(|| format!("taking the passed socket `{name}`"))?;
            let known = [API, EDGE, TLS].contains(&name.as_str());
            if !known {
                bail!("a passed socket has the name `{name}`: FileDescriptorName must be `{API}`, `{EDGE}` or `{TLS}`");
            }
            inherited.extend(taken.map(|listener| (name, listener)));
        }
        Ok(Self { inherited, handed_over: Vec::new() })
    }

    /// Returns the passed socket with this name, or binds a new one to the first free address of `addresses`.
    pub(crate) async fn open(
        &mut self,
        name: &'static str,
        addresses: &[SocketAddr],
        flag: &str,
    ) -> Result<tokio::net::TcpListener> {
        let listener = match self.inherited.remove(name) {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)?
            }
            None => tokio::net::TcpListener::bind(addresses).await.with_context(|| {
                let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
                let addresses = addresses.join(" or ");
                format!(
                    "listening on {addresses}: stop the program that uses it, or choose another address with {flag}"
                )
            })?,
        };
        self.handed_over.push((name, listener.as_fd().try_clone_to_owned()?));
        Ok(listener)
    }

    /// Combines the sockets with the program that inherits them.
    pub(crate) fn into_successor(self, program: Program) -> Successor {
        Successor { program, sockets: self.handed_over }
    }
}

/// Path and arguments that this process was started with.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Reads both. Call it early: once the file was replaced on disk, its path is no longer available.
    pub(crate) fn of_this_process() -> Result<Self> {
        let path = std::env::current_exe().context("reading the path of this program")?;
        Ok(Self { path, arguments: std::env::args_os().skip(1).collect() })
    }

    /// Runs the program on disk, which may have been replaced since the start, and returns its version.
    ///
    /// # Errors
    /// It does not run. A restart must then be refused.
    pub(crate) async fn version(&self) -> Result<String> {
        let tried = || format!("running {} --version", self.path.display());
        let mut command = tokio::process::Command::new(&self.path);
        let output = command.arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(VERSION_PATIENCE, output).await.with_context(tried)?.with_context(tried)?;
        if !output.status.success() {
            bail!("{} failed: {}", tried(), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Program and sockets that replace this process.
#[derive(Debug)]
pub(crate) struct Successor {
    program: Program,
    sockets: Vec<(&'static str, OwnedFd)>,
}

impl Successor {
    /// Executes the program in this process; returns only if that fails.
    ///
    /// All other files and tasks of this process must be closed before.
    pub(crate) fn exec(self) -> anyhow::Error {
        let Self { program, sockets } = self;
        let mut passed: Vec<OwnedFd> = Vec::new();
        for (_, socket) in &sockets {
            let next = passed.last().map_or(FIRST_FD, |last| last.as_raw_fd() + 1);
            let copy = fcntl_dupfd_cloexec(socket, next)
                .and_then(|copy| fcntl_setfd(&copy, FdFlags::empty()).map(|()| copy))
                .context("copying a listening socket");
            match copy {
                Ok(copy) if passed.is_empty() || copy.as_raw_fd() == next => passed.push(copy),
                // Only the first descriptor is passed by number, so the others must follow it without a gap.
                Ok(copy) => return anyhow::anyhow!("the file descriptor {} is in use", copy.as_raw_fd() - 1),
                Err(error) => return error,
            }
        }
        let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
        let first = passed.first().map_or(FIRST_FD, AsRawFd::as_raw_fd);
        let error = Command::new(&program.path)
            .args(&program.arguments)
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", passed.len().to_string())
            .env("LISTEN_FDS_FIRST_FD", first.to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .exec();
        anyhow::Error::new(error).context(format!("executing {}", program.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_does_not_run_is_an_error() {
        let of = |path: &str| Program { path: path.into(), arguments: Vec::new() };
        for path in ["/nowhere/hearth", "/bin/false"] {
            let error = of(path).version().await.expect_err("no version");
            assert!(format!("{error:#}").contains(path), "{error:#}");
        }
        assert!(of("/bin/echo").version().await.expect("a version").contains("echo"));
    }

    #[tokio::test]
    async fn a_passed_socket_is_reused_and_a_free_address_bound() {
        let mut sockets = Sockets::default();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let address =
            sockets.open(API, &[any], "--api-listen").await.expect("a free port").local_addr().expect("bound");
        // The duplicate for the next program keeps the socket open.
        let error = Sockets::default().open(API, &[address], "--api-listen").await.expect_err("it is in use");
        assert!(format!("{error:#}").contains("--api-listen"), "{error:#}");
        let next = Sockets::default().open(TLS, &[address, any], "--tls-listen").await.expect("one is free");
        assert_ne!(next.local_addr().expect("bound"), address, "the second address is used if the first is taken");
        drop(sockets);
        let listener = TcpListener::bind(address).expect("it is closed");
        let mut sockets = Sockets { inherited: [(API.to_owned(), listener)].into(), ..Sockets::default() };
        let inherited = sockets.open(API, &[any], "--api-listen").await.expect("passed");
        assert_eq!(inherited.local_addr().expect("bound"), address);
    }
}
