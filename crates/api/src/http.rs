//! Everything about HTTP that is not about one resource: the [table of routes](routes), who calls ([`auth`]), what the
//! path names ([`path`]), bodies ([`body`]), what surrounds every request ([`border`]), and how all of it is described to
//! programs ([`document`]).

pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod border;
pub(crate) mod document;
pub(crate) mod path;
pub(crate) mod rate;
pub(crate) mod routes;
