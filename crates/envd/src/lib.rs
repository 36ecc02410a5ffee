//! The daemon inside of every guest: processes, files, identity, for clients outside.
//!
//! One HTTP/1.1 server on port 49983 speaks the Connect protocol (processes and the file system) and plain HTTP (file
//! contents, identity, health). Whatever a request says, it is input: the daemon is root in the guest and must not die of it.
//!
//! - [`server`]: routes, and the order in which a request is judged ([`guard`]: CORS, token, user; [`rpc`]: the protocol).
//! - [`state`]: what [`init`] changes: token, environment, defaults. [`users`] and [`paths`]: who, and where.
//! - [`process`]: children, their streams and their subscribers.
//! - [`filesystem`]: unary calls on files and watches; [`files`]: contents up and down.
//! - [`path_calls`]: what may block on a path, bounded; [`regular`]: files of the machine, opened without blocking.
//! - [`temporary`] and [`attributes`]: how a file takes another's place.
//! - [`cgroups`] and [`freeze`]: groups of processes, to bound, kill and stop them whole. [`relay`]: services on loopback.
//!   [`connections`] and [`sockets`]: what a restore has cut.
//! - [`identity`] and [`certificates`]: what becomes of the machine when it becomes a sandbox. [`log`]: what happened.
//! - [`sys`]: the only unsafe code. [`fuzz`]: entry points for the fuzz targets.
//!
//! Nothing is kept on disk. All state survives a pause, because the memory does.
//!
//! Tasks: one per connection, which ends with it; one per process, and one for its deadline, which end with the process; one
//! per polled watcher, which ends when the watcher is removed. Calls on paths run on the runtime's blocking threads, within the
//! bounds of [`path_calls`]; none runs on a worker. There is no orderly shutdown: the daemon ends when the guest does, or is replaced, and has nothing to save.

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
use crate::options::Request;
use crate::state::{State, Surroundings};

/// The version that is reported to clients, which switch features by it: the contract's, not the package's.
const VERSION: &str = "0.6.13";
/// The daemon waits, it does not compute, and every thread costs a guest memory. One would do, were it not that long
/// answers must not keep `/health` waiting.
const WORKER_THREADS: usize = 2;
/// Threads for work that is neither a file call nor the start of a command: freezing, collapsing, giving memory back.
const OTHER_THREADS_MAX: usize = 16;
/// Threads that may block: one for each slot, so that no kind of call ever waits for the threads of another.
const BLOCKING_THREADS_MAX: usize = path_calls::FILE_CALLS_MAX + path_calls::STARTS_MAX + OTHER_THREADS_MAX;
/// How long an idle thread is kept for the next call.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);
/// The stack of a thread. It is touched as far as it is used; the deepest use is a walk through folders.
const STACK_BYTES: usize = 1 << 20;

/// The whole program: reads the arguments (without the program's name), serves until the process ends.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let options = match options::parse(arguments) {
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
    if options.in_microvm {
        sys::raise_io_priority();
    }
    let state = State::new(Surroundings {
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

/// Has a mistake of ours told to the host, beside the console. It ends one request, or one process's streams.
fn log_panics(state: Arc<State>) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        state.log().error("envd", format!("the daemon panicked: {panic}"));
        before(panic);
    }));
}
