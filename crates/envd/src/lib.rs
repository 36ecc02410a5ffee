//! The daemon inside every guest: processes, files and identity, for clients outside.
//!
//! One HTTP/1.1 server on port 49983 serves the Connect protocol (processes and the file system) and plain HTTP (file
//! contents, identity, health). Every request is untrusted input: the daemon is root in the guest and no request may
//! crash it.
//!
//! - [`server`]: routes, and the order of a request's checks ([`guard`]: CORS, token, user; [`rpc`]: the protocol).
//! - [`state`]: the state that [`init`] sets: token, environment, defaults. [`users`] and [`paths`]: resolution of user
//!   and path.
//! - [`process`]: children, their streams and their followers.
//! - [`filesystem`]: unary calls on files, and watches; [`files`]: download and upload of contents.
//! - [`path_calls`]: bounded blocking calls on paths; [`regular`]: files of the machine, opened without blocking.
//! - [`temporary`] and [`attributes`]: atomic replacement of files.
//! - [`cgroups`] and [`freeze`]: groups of processes, to limit, kill and freeze them. [`relay`]: services on loopback.
//!   [`connections`] and [`sockets`]: connections that a restore has broken.
//! - [`identity`] and [`certificates`]: changes to the machine at the start of a sandbox. [`log`]: the guest's events.
//! - [`sys`]: the only unsafe code. [`fuzz`]: entry points for the fuzz targets.
//!
//! Nothing is stored on disk. All state survives a pause, because it is in memory.
//!
//! Tasks: one per connection, which ends with it; one per process, and one for its deadline, which end with the
//! process; one per polled watcher, which ends when the watcher is removed. Calls on paths run on the runtime's
//! blocking threads, within the bounds of [`path_calls`]; none runs on a worker. There is no orderly shutdown: the
//! daemon runs until the guest stops or the daemon is replaced, and has nothing to save.

#![deny(unsafe_code)]

mod attributes;
mod certificates;
mod cgroups;
mod collapse;
mod connections;
mod failure;
mod files;
mod filesystem;
mod freeze;
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod identity;
mod idle;
mod init;
mod log;
mod metrics;
mod options;
mod path_calls;
mod paths;
mod process;
mod regular;
mod relay;
mod rpc;
mod server;
mod sockets;
mod state;
mod sys;
mod temporary;
mod unread;
mod users;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;

use crate::cgroups::Groups;
use crate::options::Action;
use crate::state::{DaemonConfig, State};

/// Version reported to clients, which enable features by it: the contract's, not the package's.
const VERSION: &str = "0.6.13";
/// Worker threads of the runtime.
///
/// The daemon mostly waits, and every thread costs memory of the guest. A second one keeps `/health` responsive during
/// long replies.
const WORKER_THREADS: usize = 2;
/// Blocking threads beside file calls and process starts: for freezes, collapses and the release of memory.
const OTHER_THREADS_MAX: usize = 16;
/// Limit of blocking threads: one per slot, so that no kind of call ever waits for the threads of another.
const BLOCKING_THREADS_MAX: usize = path_calls::FILE_CALLS_MAX + path_calls::STARTS_MAX + OTHER_THREADS_MAX;
/// Time after which an idle blocking thread exits.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);
/// Stack size of a thread. Only used pages take memory; the deepest use is a walk through directories.
const STACK_BYTES: usize = 1 << 20;

/// Runs the daemon with `arguments` (without the program's name) until the process exits.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let options = match options::parse(arguments) {
        Ok(Action::Serve(options)) => options,
        Ok(Action::Print(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("envd: {message}");
            return ExitCode::from(2);
        }
    };
    // Created files must be readable by the guest's users, whatever umask the daemon inherited.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Err(error) = sys::unblock_signals() {
        eprintln!("envd: unblocking signals: {error}");
        return ExitCode::FAILURE;
    }
    sys::close_inherited_on_exec();
    sys::tune_allocator();
    let child_descriptors = Some(sys::raise_descriptor_limit());
    if options.in_microvm {
        sys::raise_io_priority();
    }
    let state = State::new(DaemonConfig {
        in_microvm: options.in_microvm,
        child_descriptors,
        groups: options.cgroup_root.as_deref().and_then(Groups::open),
        is_restart: options.is_restart,
        is_verbose: options.is_verbose,
    });
    log_panics(Arc::clone(&state));
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

/// Writes a panic to the log for the host, beside the console. A panic ends one request or one process's streams.
fn log_panics(state: Arc<State>) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        state.log().error("envd", format!("panic: {panic}"));
        before(panic);
    }));
}
