//! Wire types of the public REST API.
//!
//! They are the request and response bodies ([`sandbox`], [`template`], [`logs`], [`metrics`], [`account`], [`node`],
//! [`ErrorBody`]), the query of lists ([`list`]) and the encodings it uses ([`form`], [`page`]).
//!
//! Field names follow the contract, which is irregular; a name that `rename_all` does not produce is spelled out.
//! Unknown members of a request are ignored. Members without a value are omitted, unless clients need a `null`. No type
//! contains a default value of the contract, because defaults differ between the two generations of routes: an absent
//! member is `None`, and the control role picks the default.

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
