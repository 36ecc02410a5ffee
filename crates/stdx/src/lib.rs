//! What std lacks: [error chains](chain) in one line, [backoff](Backoff) with jitter, and [owned tasks](TaskSet) that a
//! shutdown cancels, waits for and names.

#![forbid(unsafe_code)]

mod backoff;
mod chain;
mod tasks;

pub use backoff::Backoff;
pub use chain::{Chain, chain};
pub use tasks::TaskSet;
