//! Client of the guest daemon: Connect RPC messages and HTTP requests.
//!
//! Contains the generated messages and services of `proto/envd`, and a small [`Client`] for the host's side of the
//! daemon's contract.

#![forbid(unsafe_code)]

mod bounded;
mod client;
mod logs;
mod metrics;

#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, missing_docs)]
#[rustfmt::skip]
mod generated;

pub use client::{Client, Dial, Error, Init, Output};
pub use generated::{filesystem, process};
pub use logs::{Batch, BatchSize, GuestLine, LINE_COST, LogStream};
pub use metrics::GuestMetrics;
