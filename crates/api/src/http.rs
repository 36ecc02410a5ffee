//! Everything about HTTP that is not about one resource: the [table of routes](routes), who calls ([`auth`]), what the
//! path names ([`path`]), bodies ([`body`]), and what surrounds every request ([`border`]).

pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod border;
pub(crate) mod path;
pub(crate) mod rate;
pub(crate) mod routes;
