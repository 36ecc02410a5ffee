//! The code interpreter in the guest: messages of language kernels, and events for clients.

#![forbid(unsafe_code)]
#![expect(dead_code, reason = "the server that uses these modules comes with the next change")]

mod ascii;
mod content;
mod event;
mod lenient;
mod message;
mod stream;
mod zmtp;
