//! Privileged and unsafe Linux calls of the host side, and nothing else.
//!
//! [`process`] starts VMMs that outlive the daemon, [`namespace`] creates and configures network namespaces,
//! [`conntrack`] deletes tracked connections, [`cgroup`] groups processes, [`disk`] and [`lock`] operate on files,
//! [`clock`] measures the CPU's time stamp counter, [`machine`](mod@machine) reads the host's hardware and load,
//! [`requirement`] checks what Hearth needs of a host, and [`exhaustion`] recognises errors that mean a temporary lack
//! of resources.
//!
//! All other crates of the host side forbid unsafe code; each unsafe block here is one call, with the reason why it is
//! sound.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod cgroup;
pub mod clock;
pub mod conntrack;
pub mod disk;
pub mod exhaustion;
pub mod lock;
pub mod machine;
pub mod namespace;
pub mod process;
pub mod requirement;
