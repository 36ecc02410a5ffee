//! Drive one VM process.
//!
//! A VM is by value what it is in life: [`Driver::boot`] gives a [`Running`], [`Driver::restore`] a [`Paused`]; only a
//! paused VM can be saved, and only a running one pauses. "Snapshot while running" does not compile.
//!
//! ```text
//!   boot ──> Running ──pause──> Paused ──save──> files
//!               ^                 │  ^
//!               └─────resume──────┘  └── restore
//!   Running, Paused ──kill──> nothing
//! ```
//!
//! The VMM is a process of its own that outlives this one. Nothing here kills it on drop: whoever holds a VM ends it with
//! [`kill`](Running::kill), and after a crash of the holder the [`Process`](hearth_host::process::Process) recorded beside
//! the VM is how the next one finds it.
//!
//! Neighbours: `host` starts the process in its namespace and control group; `sandbox` and `builder` call the driver with
//! paths from `artifact` and a [`Nic`] from `network`. Drivers are sibling folders with the same file names; a second one
//! (Firecracker) is a variant of [`Driver`].
//!
//! No method is cancel safe unless it says so: a dropped future leaves a VM that only its process can end.

#![forbid(unsafe_code)]

mod accelerator;
mod driver;
mod error;
mod machine;
mod qemu;

pub use accelerator::{Accelerator, AcceleratorChoice, Verdict, remembered_verdict};
pub use driver::{Config, Driver, Paused, Running};
pub use error::Error;
pub use machine::{Boot, Kernel, Machine, Nic, Saved};
pub use qemu::{QemuVersion, version as qemu_version};
