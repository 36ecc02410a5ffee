//! Drives one VM process.
//!
//! A VM's state is its type: [`Driver::boot`] returns a [`Running`], [`Driver::restore`] a [`Paused`]. Only a paused VM
//! can be saved, and only a running one can be paused. "Snapshot while running" does not compile.
//!
//! ```text
//!   boot ──> Running ──pause──> Paused ──save──> files
//!               ^                 │  ^
//!               └─────resume──────┘  └── restore
//!   Running, Paused ──kill──> nothing
//! ```
//!
//! The VMM is a separate process that outlives this one, and dropping a VM does not kill it: the owner calls
//! [`kill`](Running::kill). If the owner crashes, the next daemon finds the VMM by the path of its folder among the
//! process arguments ([`Process::find_by_argument`](hearth_host::process::Process::find_by_argument)) and kills it;
//! adoption is planned.
//!
//! Neighbours: `host` starts the process in its namespace and control group; `sandbox` and `builder` call the driver
//! with paths from `artifact` and a [`Nic`] for the slot from `network`. Each driver is a module of its own. A second
//! one (Firecracker) is planned, as another variant of [`Driver`].
//!
//! No method is cancel safe unless its documentation says so: a dropped future leaves a VM that can only be killed by
//! its process.

#![forbid(unsafe_code)]

mod accelerator;
mod driver;
mod error;
mod machine;
mod qemu;

pub use accelerator::{Accelerator, AcceleratorChoice, Verdict, stored_verdict};
pub use driver::{Config, Driver, Paused, Running};
pub use error::Error;
pub use machine::{Boot, Kernel, Machine, Nic, Snapshot};
pub use qemu::{QemuVersion, version as qemu_version};
