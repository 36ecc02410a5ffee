//! Bodies of requests and replies about sandboxes.
//!
//! Requests are [`NewSandbox`], [`Connect`], [`Timeout`] and [`Refresh`]; replies are [`Sandbox`], [`ListedSandbox`]
//! and [`SandboxDetail`].

mod described;
mod network;
mod requested;

pub use described::{Lifecycle, ListedSandbox, OnTimeout, Sandbox, SandboxDetail, SandboxState};
pub use network::Network;
pub use requested::{AutoResume, Connect, ConnectV1, Iam, NewSandbox, NewSandboxV1, Refresh, Timeout, VolumeMount};
