//! Durable rows of the control role, in a SQLite file or in Postgres.
//!
//! It stores teams, users and their logins, API keys, templates with their aliases, tags and builds, the desired state
//! of sandboxes, idempotent requests, and the desired state of nodes. Only the control role and operators' commands
//! write it. Nodes report the observed state, and reconcilers of the control role make it equal to the desired state.
//!
//! ```text
//!   Store ── connection   opening, one writer at a time, every commit synced; closing
//!     ├──── team          teams, their limits and their standing
//!     ├──── user          users, and the teams that they may act for
//!     ├──── password      passwords of users who log in without an identity provider
//!     ├──── login         logins of users
//!     ├──── api_key       authentication by API key             key: secrets, hashes and masks of API keys
//!     ├──── idempotency   requests with an idempotency key
//!     ├──── node          desired state of nodes, set by operators
//!     ├──── template      templates, aliases, tags, builds; resolution of references
//!     └──── sandbox       desired state of sandboxes, fenced by execution id; lists
//!   row                   conversion of column values           entity, migration: the tables
//! ```
//!
//! * **Atomic and durable**: a call that returned `Ok` is on the disk. A call that returned an error changed nothing,
//!   unless [`Error::is_effect_unknown`] is true.
//! * **Cancel safety**: a read may be dropped at any time. A dropped write took effect completely or not at all, and
//!   the caller does not know which: run writes in a task that is not dropped with a connection.
//! * **Time** is stored in microseconds: a value that is read back is the written one, truncated to microseconds.
//! * **No locks for callers**: writes queue for the one writer; reads never wait for it.
//!
//! Both backends store the same rows and give the same guarantees; one test suite runs on both. Rows are sea-orm
//! entities and never leave the crate.

#![forbid(unsafe_code)]

mod api_key;
mod connection;
mod entity;
mod error;
mod idempotency;
pub mod key;
mod login;
mod migration;
mod node;
mod password;
mod row;
mod sandbox;
mod team;
mod template;
mod user;

pub use api_key::{ApiKey, CreateApiKeyError, LOGIN_KEYS_MAX};
pub use connection::{Config, Store};
pub use error::{Cause, Error};
pub use idempotency::{Idempotent, IdempotentRequest, IdempotentTimes};
pub use key::{KeyHash, KeyMask, KeySecret};
pub use login::{Login, LoginTimes, Proof, RefreshToken, Renewal};
pub use node::{DesiredNode, NodeIntent};
pub use password::{PASSWORD_CHARS_MIN, PasswordError, PasswordHash};
pub use sandbox::{
    Expiry, InsertSandboxError, ListedSandbox, Order, PAGE_MAX, Sandbox, SandboxCursor, SandboxPage, SandboxQuery,
    SandboxState, StartedSandbox, StateMove, UpdateSandboxError,
};
pub use team::{CreateTeamError, Limits, NewTeam, Standing, Team};
pub use template::{Alias, Build, BuildStatus, NewBuild, RegisterBuildError, ResolveError, ResolvedTemplate, Template};
pub use user::{CreateUserError, JoinTeamError, Membership, NewUser, User};
