//! Sandboxes: what clients ask for ([`NewSandbox`], [`Connect`], [`Timeout`], [`Refresh`]) and what they are told
//! ([`Sandbox`], [`ListedSandbox`], [`SandboxDetail`]).

mod described;
mod network;
mod requested;

pub use described::{Lifecycle, ListedSandbox, OnTimeout, Sandbox, SandboxDetail, SandboxState};
pub use network::Network;
pub use requested::{AutoResume, Connect, ConnectV1, Iam, NewSandbox, NewSandboxV1, Refresh, Timeout, VolumeMount};
