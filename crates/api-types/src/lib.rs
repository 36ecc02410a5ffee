//! The public REST API as it stands on the wire: request and response bodies ([`sandbox`], [`template`],
//! [`logs`], [`metrics`], [`account`], [`node`], [`ErrorBody`]), the query language of lists ([`list`]) and its encodings ([`form`],
//! [`page`]).
//!
//! Field names are irregular because the contract's are; they are spelled out where a rule does not produce them.
//! Members a server does not know are ignored, members without a value are left out, unless clients need to see a
//! `null`. No type here has a default of the contract in it (they differ between the two generations of routes): an
//! absent member is `None`, and the control role decides.

#![forbid(unsafe_code)]

pub mod account;
mod error;
pub mod form;
pub mod list;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod page;
pub mod sandbox;
pub mod template;

pub use error::{ErrorBody, ErrorCode};
