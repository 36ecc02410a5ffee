//! Domain vocabulary as plain values.
//!
//! The crates of Hearth exchange values of these types: [ids](mod@id), the specification of a sandbox ([`SandboxSpec`],
//! [`Resources`]), its location ([`NodeAddress`], [`Route`], [`Machine`]), its rules for visitors ([`Ingress`]) and
//! references to templates ([`TemplateReference`]). There is no serde, protobuf, SQL or IO here: wire, row and
//! configuration forms are separate types, converted where they enter or leave.

#![forbid(unsafe_code)]

pub mod guest;
pub mod id;
mod ingress;
mod machine;
mod platform;
mod reference;
mod route;
mod secret;
mod spec;

pub use id::{ApiKeyId, BuildId, ExecutionId, LoginId, NodeId, SandboxId, TeamId, TemplateId, UserId};
pub use ingress::{HostMask, HostMaskError, Ingress};
pub use machine::{Disk, HugePages, Load, Machine};
pub use platform::Platform;
pub use reference::{ReferenceError, Tag, TemplateReference};
pub use route::{NodeAddress, Route, Visitors};
pub use secret::Secret;
pub use spec::{Resources, SandboxSpec};
