//! Tests of the server with real kernels, and with a kernel that misbehaves.
//!
//! `cargo xtask kernels` installs the kernels; without them the tests are skipped.

mod contexts;
mod environment;
mod exchanges;
mod hostile;
mod interruption;
mod limits;
mod requests;
mod server;
