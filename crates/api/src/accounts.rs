//! Handlers of `/teams`, `/api-keys` and `/admin`: teams of a user, API keys, and administration by operators.

pub(crate) mod admin;
pub(crate) mod keys;
pub(crate) mod teams;
