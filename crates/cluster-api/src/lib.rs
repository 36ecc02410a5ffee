//! gRPC between roles.
//!
//! It contains the generated messages and services of `proto/cluster/v1`, a client for a node, and the conversions
//! between wire and domain values. Wire types stay inside of the crates that speak gRPC (`api`, `orchestrator`); other
//! crates use `types`.

#![forbid(unsafe_code)]

mod convert;
mod node;
mod status;

#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, missing_docs)]
#[rustfmt::skip]
mod generated;

pub use convert::{ConvertError, RunningSandbox, parse_id};
pub use generated::hearth::cluster::v1 as proto;
pub use node::{CreatedSandbox, NodeClient, NodeError, NodeEvent};
pub use status::{Daemon, NodeStatus, Sandboxes};
