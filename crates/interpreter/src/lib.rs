//! The code interpreter in the guest: runs code in contexts of several languages, for clients outside.
//!
//! One HTTP/1.1 server on port 49999. It starts language kernels itself and speaks Jupyter's messaging protocol to them
//! over ZeroMQ. Requests and kernels are both untrusted: no message of either may crash the server.
//!
//! - [`http`]: routes, validation of bodies, CORS. [`stream`]: events to a client.
//! - [`contexts`]: all contexts; [`context`]: one of them, and the requests to its kernel.
//! - [`kernelspec`], [`launch`], [`kernel`]: how a kernel is found, started and reached.
//! - [`zmtp`], [`message`], [`content`]: frames, messages and contents of kernels, from outside to inside.
//! - [`event`], [`ascii`], [`lenient`]: the lines that clients receive.
//! - [`fuzz`]: entry points for the fuzz targets.
//! - [`language`]: code that prepares a kernel. [`environment`]: the sandbox's variables.
//!
//! Tasks: one per connection, which ends with it; one per context, which ends when the context is deleted; one per kernel
//! for its standard error, which ends with the kernel; one per creation. There is no orderly shutdown: kernels are killed
//! with the server, and all of its state is lost.

#![forbid(unsafe_code)]

mod ascii;
mod content;
mod context;
mod contexts;
mod environment;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod http;
mod kernel;
mod kernelspec;
mod language;
mod launch;
mod lenient;
mod log;
mod message;
mod options;
mod stream;
mod zmtp;

use std::process::ExitCode;
use std::time::Duration;

/// Threads for blocking calls: name resolution, which the server does not need.
const BLOCKING_THREADS_MAX: usize = 2;
/// Time after which an idle blocking thread exits.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);

/// Runs the server with `arguments` (without the program's name) until the process exits.
pub fn main(arguments: Vec<String>) -> ExitCode {
    if let Some((launch::WORD, arguments)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return launch::become_kernel(arguments);
    }
    let options = match options::parse(arguments) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("interpreter: {message}");
            return ExitCode::from(2);
        }
    };
    launch::protect_server();
    // One thread: kernels do the work, and the parent of their processes must be a thread that never ends.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .enable_all()
        .build();
    let listen = options.listen;
    match runtime.and_then(|runtime| runtime.block_on(http::serve(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("interpreter: serving on {listen}: {error}");
            ExitCode::FAILURE
        }
    }
}
