//! Additions to std: error chains, backoff, wake-gated futures and owned tasks.
//!
//! [`chain`] prints an error and its causes in one line. [`Backoff`] computes growing delays between attempts.
//! [`WakeGated`] polls a future only after it was woken. [`TaskSet`] owns tasks: a shutdown cancels them, waits for
//! them, and logs the names of those that do not stop.

#![forbid(unsafe_code)]

mod backoff;
mod chain;
mod tasks;
mod wake_gated;

pub use backoff::Backoff;
pub use chain::{Chain, chain};
pub use tasks::TaskSet;
pub use wake_gated::WakeGated;
