//! Whole instances for tests and benchmarks: `hearth up` as its users run it, with real microVMs, on free ports and in a
//! temporary data directory.
//!
//! [`Prepared`] makes kernel and base template once per checkout; every [`Instance`] gets them by hard links. [`Leftovers`]
//! counts what an instance left on the machine, by the names that only it uses. An [`Issuer`] gives it certificates.

#![forbid(unsafe_code)]

mod instance;
mod issuer;
mod leftovers;
mod prepared;
mod wait;

pub use instance::Instance;
pub use issuer::Issuer;
pub use leftovers::Leftovers;
pub use prepared::Prepared;
pub use wait::until;
