//! HTTP code that is shared by all resources.
//!
//! It consists of the [table of routes](routes), authentication ([`auth`]), path parameters ([`path`]), request bodies
//! ([`body`]), rate limits ([`rate`]), the [`middleware`] of every request, and the OpenAPI [`document`].

pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod document;
pub(crate) mod middleware;
pub(crate) mod path;
pub(crate) mod rate;
pub(crate) mod routes;
