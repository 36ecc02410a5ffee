//! The code interpreter in the guest: language kernels, their messages, and events for clients.

#![forbid(unsafe_code)]
#![expect(dead_code, reason = "the server that uses these modules comes with the next change")]

mod ascii;
mod content;
mod event;
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
