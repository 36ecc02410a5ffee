//! The reverse proxy that the edge and the nodes are built from.
//!
//! ```text
//! client ──▶ serve ──▶ target, internal ──▶ Engine::forward ──▶ upstream (a node's proxy, or a guest's port)
//!                │            │                   │
//!                │            └── pages ◀─────────┘ what a client reads instead of an answer
//!                └── keeps connections, bounds and drains them
//! ```
//!
//! * [`target`]: which sandbox and port a request is for, from its host or its headers.
//! * [`internal`]: the routes of the guest daemon that are not for clients, in every spelling.
//! * [`pages`]: the answers of the proxy itself, whose sentences clients rely on.
//! * [`headers`]: which headers end at a proxy, and how an edge tells a node what a request is for.
//! * [`DescriptorBudget`]: how many connections of each kind there may be.
//! * [`dial`]: connecting to an upstream, patiently where a server may just be starting.
//! * [`Engine`]: one request to an upstream and its answer back, over pooled connections that can be cut.
//! * [`serve`](mod@serve): accepting connections, HTTP/1.1 and HTTP/2, until they are drained.
//! * [`tls`]: the certificate a listener shows, and how it is changed.
//!
//! Nothing here knows what a catalog or a registry is: callers look up where a request goes. Bodies are never collected,
//! and nothing times out while a stream is silent.

#![forbid(unsafe_code)]

pub mod body;
mod byte_budget;
mod descriptor_budget;
pub mod dial;
mod engine;
pub mod headers;
pub mod internal;
pub mod pages;
pub mod serve;
pub mod target;
pub mod tls;

pub use body::{Body, BoxError};
pub use descriptor_budget::DescriptorBudget;
pub use engine::{Config, Destination, Engine, Error, Key, RequestGuard, UpstreamRequest};
