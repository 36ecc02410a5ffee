//! Network slots: prepared namespaces in which a guest has a network of its own.
//!
//! ```text
//!   guest 169.254.0.21 ── tap0 169.254.0.22 │ namespace │ uplink a.b.c.1 ── veth a.b.c.0 │ host ── internet
//! ```
//!
//! Every guest has the same addresses. Outside, its slot's uplink address stands for it: the host reaches any port of
//! the guest at [`Slot::guest_address`], and packets of the guest appear to come from there. From the start a guest
//! cannot reach the host, other slots or private ranges, and cannot send from an address that is not its own; [`rules`]
//! contains the packet rules and their reasons.
//!
//! A [`Pool`] prepares slots in advance, so that acquiring one takes no time. It belongs to one *instance*: a number
//! that is locked machine-wide and determines all addresses and names, so that several daemons on a machine do not
//! collide. Leftovers of a dead daemon are removed before its number is used again.
//!
//! If the process may not create namespaces, slots have [`Attachment::User`]: the VMM's own network, with fewer
//! protections. `hearth doctor` reports this.

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
