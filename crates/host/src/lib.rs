//! Every privileged or unsafe Linux call of the host side, and nothing else.
//!
//! [`process`] starts VMMs that outlive the daemon, [`namespace`] makes network namespaces and what is in them, [`conntrack`]
//! deletes their tracked connections, [`cgroup`] groups processes, [`disk`] and [`lock`] deal with files, [`clock`] with the CPU's counter, [`machine`](mod@machine) says what this host has and
//! how busy it is, [`requirement`] what it can do, [`exhaustion`] which errors say that it has run out of something. The other crates forbid unsafe code; here every unsafe block is one call with its
//! reason.

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
