//! Whole instances of `hearth up` for tests and benchmarks.
//!
//! An [`Instance`] runs real microVMs, on free ports and in a temporary data directory. A [`PreparedDataDir`] has kernel
//! and base template, which are built once per checkout; every instance gets hard links to them. [`Leftovers`] lists the
//! resources of an instance on the machine, by names that only this instance uses. An [`Issuer`] is an ACME server that
//! issues certificates to instances.

#![forbid(unsafe_code)]

mod instance;
mod issuer;
mod leftovers;
mod prepared;
mod wait;

pub use instance::Instance;
pub use issuer::Issuer;
pub use leftovers::Leftovers;
pub use prepared::PreparedDataDir;
pub use wait::until;
