//! The daemon inside of every guest: processes, files, identity, for clients outside.
//!
//! One HTTP/1.1 server on port 49983 speaks the Connect protocol (processes and the file system) and plain HTTP (file
//! contents, identity, health). Whatever a request says, it is input: the daemon is root in the guest and must not die of it.
//!
//! - [`server`]: routes, and the order in which a request is judged ([`guard`]: CORS, token, user; [`rpc`]: the protocol).
//! - [`state`]: what [`init`] changes: token, environment, defaults. [`users`] and [`paths`]: who, and where.
//! - [`process`]: children, their streams and their subscribers.
//! - [`filesystem`]: unary calls on files and watches; [`files`]: contents up and down.
//! - [`sys`]: the only unsafe code.
//!
//! Nothing is kept on disk. All state survives a pause, because the memory does.
//!
//! Tasks: one per connection, which ends with it; one per process, and one for its deadline, which end with the process; one
//! per polled watcher, which ends when the watcher is removed. Calls that may wait for a disk run on the runtime's blocking
//! threads. There is no orderly shutdown: the daemon ends when the guest does, or is replaced, and has nothing to save.

#![deny(unsafe_code)]

mod failure;
mod files;
mod filesystem;
mod guard;
mod init;
mod metrics;
mod paths;
mod process;
mod rpc;
mod server;
mod state;
mod sys;
mod users;

use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::Mode;

use crate::state::{State, Surroundings};

/// The version that is reported to clients, which switch features by it: the contract's, not the package's.
const VERSION: &str = "0.6.13";
const PORT: u16 = hearth_envd_api::PORT;
/// The daemon waits, it does not compute, and every thread costs a guest memory. One would do, were it not that long
/// answers must not keep `/health` waiting.
const WORKER_THREADS: usize = 2;
/// Calls that wait for a disk at once. Enough for a client with all its connections; a bound on memory.
const BLOCKING_THREADS_MAX: usize = 256;
/// How long an idle thread is kept for the next call.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);
/// The stack of a thread. It is touched as far as it is used; the deepest use is a walk through folders.
const STACK_BYTES: usize = 1 << 20;

/// What the command line says. Long options with one dash are accepted, as the contract wants.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    port: u16,
    in_microvm: bool,
    is_restart: bool,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Print(&'static str),
    Serve(Options),
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Request::Serve(options)) => options,
        Ok(Request::Print(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("envd: {message}");
            return ExitCode::from(2);
        }
    };
    // What is made must be readable for the guest's users, whoever started the daemon.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Err(error) = sys::block_no_signals() {
        eprintln!("envd: unblocking signals: {error}");
        return ExitCode::FAILURE;
    }
    sys::keep_inherited_files();
    sys::tame_allocator();
    let child_descriptors = Some(sys::raise_descriptor_limit());
    let state =
        State::new(Surroundings { in_microvm: options.in_microvm, child_descriptors, is_restart: options.is_restart });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .thread_stack_size(STACK_BYTES)
        .thread_name("envd")
        .enable_all()
        .build();
    let served = runtime.and_then(|runtime| runtime.block_on(server::serve(options.port, state)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("envd: serving on port {}: {error}", options.port);
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Request, String> {
    let mut options = Options { port: PORT, in_microvm: true, is_restart: false };
    while let Some(arg) = args.next() {
        let name = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or(&arg);
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        match name {
            "version" => return Ok(Request::Print(VERSION)),
            "commit" => return Ok(Request::Print(option_env!("HEARTH_COMMIT").unwrap_or("unknown"))),
            "isnotfc" => options.in_microvm = false,
            // Ours: PID 1 says that an earlier daemon ended.
            "restarted" => options.is_restart = true,
            // There are none that could be disabled.
            "no-cgroups" => {}
            "port" => {
                let value = value.or_else(|| args.next()).ok_or("-port needs a number")?;
                options.port = value.parse().map_err(|_| format!("`{value}` is not a port"))?;
            }
            _ => {
                return Err(format!(
                    "unknown option `{arg}`; known are -version, -commit, -port N, -isnotfc, -no-cgroups and -restarted"
                ));
            }
        }
    }
    Ok(Request::Serve(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &[&str]) -> Result<Request, String> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn options_with_one_and_two_dashes() {
        assert_eq!(request(&[]), Ok(Request::Serve(Options { port: PORT, in_microvm: true, is_restart: false })));
        assert_eq!(
            request(&["-restarted"]),
            Ok(Request::Serve(Options { port: PORT, in_microvm: true, is_restart: true }))
        );
        for args in [&["-port", "1234", "-isnotfc"][..], &["--port=1234", "--isnotfc", "-no-cgroups"]] {
            assert_eq!(request(args), Ok(Request::Serve(Options { port: 1234, in_microvm: false, is_restart: false })));
        }
        for version in ["-version", "--version"] {
            assert_eq!(request(&[version]), Ok(Request::Print(VERSION)));
        }
        for odd in [&["-port", "x"][..], &["-port"], &["-port", "70000"], &["-wat"]] {
            assert!(request(odd).is_err(), "{odd:?}");
        }
    }
}
