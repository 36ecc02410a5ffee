//! `/teams`, `/api-keys` and `/admin`: who may use this server, and how operators step in.

pub(crate) mod admin;
pub(crate) mod keys;
pub(crate) mod teams;
