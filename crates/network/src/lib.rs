//! Network slots: prepared namespaces in which a guest has a network of its own.
//!
//! ```text
//!   guest 169.254.0.21 ── tap0 169.254.0.22 │ namespace │ uplink a.b.c.1 ── veth a.b.c.0 │ host ── internet
//! ```
//!
//! Every guest has the same addresses; its slot's uplink address stands for it outside: the host reaches any port of the
//! guest at [`Slot::guest_address`], and what the guest sends appears to come from there. From the start a guest cannot
//! reach the host, other slots or private ranges, and cannot send from an address that is not its own ([`rules`] has the
//! rules and why).
//!
//! A [`Pool`] keeps slots ready, so that taking one costs nothing. It belongs to one *instance*: a number that is locked
//! machine-wide, from which the addresses and names follow, so that several daemons on a machine do not meet. What a dead
//! daemon left under the number is removed before it is used again.
//!
//! Where the process may not make namespaces, slots say [`Attachment::User`]: the VMM's own network then, with fewer
//! protections, which `hearth doctor` tells.

#![forbid(unsafe_code)]

mod config;
mod forwarding;
mod instance;
mod pool;
mod rules;
mod slot;

pub use config::{Config, Error, Mode};
pub use instance::LOCK_FOLDER;
pub use pool::Pool;
pub use slot::{Attachment, Slot};
