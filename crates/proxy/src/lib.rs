//! Reverse proxy used by the edge and by nodes.
//!
//! ```text
//! client ──▶ serve ──▶ target, internal ──▶ Engine::forward ──▶ upstream (a node's proxy, or a guest's port)
//!                │            │                   │
//!                │            └── pages ◀─────────┘ the proxy's own responses, such as 502
//!                └── accepts, limits and drains connections
//! ```
//!
//! * [`target`]: sandbox and port of a request, from its host or its headers.
//! * [`internal`]: routes of the guest daemon that clients must not reach, in every spelling.
//! * [`pages`]: responses of the proxy itself, whose messages clients rely on.
//! * [`headers`]: hop-by-hop headers, forwarding headers, and the header by which an edge names a request's target to a
//!   node.
//! * [`DescriptorBudget`]: limits of connections and requests, derived from the limit of open files.
//! * [`dial`]: connecting to an upstream, with retries while a server may still be starting.
//! * [`Engine`]: forwards a request over pooled connections and returns the response; aborts all requests of a group.
//! * [`serve`](mod@serve): accepts HTTP/1.1 and HTTP/2 connections and serves them until they are drained.
//! * [`tls`]: the certificate of a listener, which can be replaced, and TLS connections to guests.
//!
//! The crate does not depend on the catalog or the registry: callers look up routes. Bodies are streamed and never
//! collected, and a silent stream never times out.

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
