//! One sandbox on one node: assemble, drive, tear down.
//!
//! [`start`] gives a [`Handle`] at once and a task that owns everything of the sandbox: folder, overlay, network slot,
//! control group, VM. Others hold handles: they ask the task to end the sandbox, and watch its [`State`].
//!
//! ```text
//!   Assembling ──> Running ──> Stopping ──> Stopped(why)
//!       └──────────────────────────┘
//!   Assembling ──> Failed(why)          nothing is left of the attempt
//! ```
//!
//! Assembling goes through by-value phases ([`assemble`](mod@assemble)), each of which can undo itself; whatever fails or is
//! killed half-way is released in reverse order before the failure is told. Release is explicit and awaited; nothing here
//! relies on `Drop`. A kill outranks everything: it is looked at between phases and while waiting for the guest.
//!
//! While it runs, one connection to its daemon is kept: the guest's log comes over it ([`link`](mod@link)). Every few seconds
//! the daemon is asked what the guest uses ([`metrics`](mod@metrics)).
//!
//! Starts wait for their team's turn in [`starts`](mod@starts). Disk space is shared out by [`disk`](mod@disk); what cannot be removed at an end is tried again by [`remains`](mod@remains).
//!
//! Neighbours: `orchestrator` keeps the handles in its registry; `network`, `artifact` and `vmm` give the parts;
//! `envd-api` speaks to the guest; `analytics` keeps what guests say and use.

#![forbid(unsafe_code)]

mod assemble;
mod config;
mod disk;
mod error;
mod link;
mod metrics;
mod reach;
mod reclaim;
mod remains;
mod starts;
mod state;
mod task;

pub use config::{Config, Parts};
pub use disk::{DiskConfig, DiskRoom, NoRoom};
pub use error::Error;
pub use link::GuestLogs;
pub use metrics::GuestSamples;
pub use reach::Reach;
pub use reclaim::reclaim;
pub use remains::Remains;
pub use starts::StartQueue;
pub use state::{EndReason, State};
pub use task::{Handle, start};
