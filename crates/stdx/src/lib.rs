//! What std lacks: [error chains](chain) in one line, [backoff](Backoff) with jitter, [futures that are seldom ready](Seldom)
//! beside others, and [owned tasks](TaskSet) that a shutdown cancels, waits for and names.

#![forbid(unsafe_code)]

mod backoff;
mod chain;
mod seldom;
mod tasks;

pub use backoff::Backoff;
pub use chain::{Chain, chain};
pub use seldom::Seldom;
pub use tasks::TaskSet;
