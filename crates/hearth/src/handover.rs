//! Listening sockets that outlive a restart of the daemon.
//!
//! ```text
//! SIGUSR2 ─▶ requests under way are answered, everything stops ─▶ exec: the same process, the program that is on the disk now
//!            └─────── the sockets stay open: whoever connects meanwhile waits in their queues ───────┘
//! ```
//!
//! The sockets are passed on as a service manager does it (`sd_listen_fds(3)`: `LISTEN_FDS`, `LISTEN_FDNAMES`), so that one can
//! also open them before the first start. `LISTEN_FDS_FIRST_FD` says where ours begin, because the usual place may be taken.

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

/// Names of sockets: of the REST API, of the edge, and of the names of the domain.
pub(crate) const API: &str = "api";
pub(crate) const EDGE: &str = "edge";
pub(crate) const TLS: &str = "tls";
/// Where the numbers of passed sockets begin. Above what a daemon that has just stopped still has open.
const FIRST_FD: i32 = 200;
/// How long a program may take to tell its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(10);

/// The listening sockets of this daemon.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    inherited: BTreeMap<String, TcpListener>,
    kept: Vec<(&'static str, OwnedFd)>,
}

impl Sockets {
    /// With what whoever started this process passed to it.
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
                bail!("a passed socket is called `{name}`: FileDescriptorName has to be `{API}`, `{EDGE}` or `{TLS}`");
            }
            inherited.extend(taken.map(|listener| (name, listener)));
        }
        Ok(Self { inherited, kept: Vec::new() })
    }

    /// The socket of this name that was passed, or a new one at the first of these addresses that can be had.
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
                format!("listening on {addresses}: stop what uses it, or choose another address with {flag}")
            })?,
        };
        self.kept.push((name, listener.as_fd().try_clone_to_owned()?));
        Ok(listener)
    }

    /// Passes them to the program.
    pub(crate) fn to(self, program: Program) -> Successor {
        Successor { program, sockets: self.kept }
    }
}

/// This program, as it was started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// To be asked early: the path of a program that was replaced cannot be found out any more.
    pub(crate) fn of_this_process() -> Result<Self> {
        let path = std::env::current_exe().context("finding out where this program is")?;
        Ok(Self { path, arguments: std::env::args_os().skip(1).collect() })
    }

    /// What the program at this path, which may be another one meanwhile, calls its version.
    ///
    /// # Errors
    /// It does not run, so nothing should stop for it.
    pub(crate) async fn version(&self) -> Result<String> {
        let tried = || format!("asking {} for its version", self.path.display());
        let mut command = tokio::process::Command::new(&self.path);
        let output = command.arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(VERSION_PATIENCE, output).await.with_context(tried)?.with_context(tried)?;
        if !output.status.success() {
            bail!("{} ended with {}", tried(), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// What this process becomes.
#[derive(Debug)]
pub(crate) struct Successor {
    program: Program,
    sockets: Vec<(&'static str, OwnedFd)>,
}

impl Successor {
    /// Becomes it. Returns only why that failed. Everything else of this process has to be closed.
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
                // Only one number can be told, so the others have to follow it.
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
        anyhow::Error::new(error).context(format!("becoming {}", program.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_does_not_run_is_told() {
        let of = |path: &str| Program { path: path.into(), arguments: Vec::new() };
        for path in ["/nowhere/hearth", "/bin/false"] {
            let error = of(path).version().await.expect_err("it tells no version");
            assert!(format!("{error:#}").contains(path), "{error:#}");
        }
        assert!(of("/bin/echo").version().await.expect("it says something").contains("echo"));
    }

    #[tokio::test]
    async fn a_socket_is_opened_once() {
        let mut sockets = Sockets::default();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let address =
            sockets.open(API, &[any], "--api-listen").await.expect("a free port").local_addr().expect("bound");
        // The copy for the next program keeps it open.
        let error = Sockets::default().open(API, &[address], "--api-listen").await.expect_err("it is in use");
        assert!(format!("{error:#}").contains("--api-listen"), "{error:#}");
        let next = Sockets::default().open(TLS, &[address, any], "--tls-listen").await.expect("one is free");
        assert_ne!(next.local_addr().expect("bound"), address, "the second address serves where the first is taken");
        drop(sockets);
        let listener = TcpListener::bind(address).expect("it is closed");
        let mut sockets = Sockets { inherited: [(API.to_owned(), listener)].into(), ..Sockets::default() };
        let inherited = sockets.open(API, &[any], "--api-listen").await.expect("passed");
        assert_eq!(inherited.local_addr().expect("bound"), address);
    }
}
