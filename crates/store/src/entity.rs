//! Tables as sea-orm entities. They never leave the crate.
//!
//! The derives generate public items that are unreachable from outside.
#![allow(unreachable_pub)]

pub(crate) mod api_key;
pub(crate) mod build;
pub(crate) mod idempotency;
pub(crate) mod login;
pub(crate) mod node;
pub(crate) mod sandbox;
pub(crate) mod tag_assignment;
pub(crate) mod team;
pub(crate) mod team_member;
pub(crate) mod template;
pub(crate) mod template_alias;
pub(crate) mod user_account;
pub(crate) mod user_password;
