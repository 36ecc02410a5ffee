//! The domain vocabulary as plain values.
//!
//! Everything the rooms of Hearth say to each other is built from these types: [ids](mod@id), what a sandbox is to be
//! ([`SandboxSpec`], [`Resources`]), where it runs ([`NodeAddress`], [`Route`], [`Machine`]), who may visit it ([`Ingress`]) and
//! which template a caller means ([`TemplateReference`]). No serde, no protobuf, no SQL and no IO: wire, row and config forms are other types, converted
//! at their border.

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
pub use route::{NodeAddress, Route};
pub use secret::Secret;
pub use spec::{Resources, SandboxSpec};
