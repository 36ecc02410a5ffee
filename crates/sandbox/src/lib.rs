//! One sandbox on one node: assemble, run, tear down.
//!
//! [`start`] returns a [`Handle`] immediately and spawns a task that owns everything of the sandbox: folder, overlay,
//! network slot, control group, VM. Handles request a kill of the sandbox and watch its [`State`].
//!
//! ```text
//!   Assembling ──> Running ──> Stopping ──> Stopped(reason)
//!       └──> Failed(error)     also after a kill; nothing of the attempt remains
//! ```
//!
//! Assembly goes through by-value phases ([`assemble`](mod@assemble)), each of which can undo itself. After a failure
//! or a kill everything acquired so far is released in reverse order, before the failure is reported. Resources are
//! released explicitly and the release is awaited; no `Drop` does it. A kill outranks everything: it is checked before
//! the VM is restored and while waiting for the guest.
//!
//! While the sandbox runs, a connection to the guest daemon stays open and carries the guest's log
//! ([`guest_log`](mod@guest_log)). Every few seconds the node requests the guest's metrics ([`metrics`](mod@metrics)).
//!
//! [`starts`](mod@starts) limits concurrent starts, in turns of teams. [`disk`](mod@disk) divides the disk space among
//! sandboxes; [`leftovers`](mod@leftovers) retries removals that failed.
//!
//! Neighbours: `orchestrator` stores the handles in its registry; `network`, `artifact` and `vmm` provide slots,
//! artifact sets and VMs; `envd-api` is the client of the guest daemon; `analytics` stores logs and metrics.

#![forbid(unsafe_code)]

mod assemble;
mod config;
mod connector;
mod disk;
mod error;
mod guest_log;
mod leftovers;
mod metrics;
mod reclaim;
mod starts;
mod state;
mod task;

pub use config::{Config, NodeResources};
pub use connector::GuestConnector;
pub use disk::{DiskConfig, DiskSpace, InsufficientDisk};
pub use error::Error;
pub use guest_log::GuestLogs;
pub use leftovers::Leftovers;
pub use metrics::GuestSamples;
pub use reclaim::reclaim;
pub use starts::StartQueue;
pub use state::{EndReason, State};
pub use task::{Handle, start};
