//! Durable rows: teams, users and where they are logged in, API keys, templates with their aliases, tags and builds, the
//! sandboxes that should exist, requests that must not be done twice, and what is wanted of nodes. In a SQLite file or in
//! Postgres.
//!
//! The control role is the only writer of these facts, the store is where they are. It says what *should* be; what
//! *is*, nodes say, and reconcilers of the control role close the gap.
//!
//! ```text
//!   Store ── connection   opening, one writer at a time, every commit synced; closing
//!     ├──── team          teams, their limits and their standing
//!     ├──── user          users, and which teams they may act for
//!     ├──── password      what users prove themselves with, where no identity provider does
//!     ├──── login         where users are logged in
//!     ├──── api_key       who presents a key                             key: secrets, hashes and masks of API keys
//!     ├──── idempotency   requests that name themselves
//!     ├──── node          what operators want of nodes
//!     ├──── template      templates, aliases, tags, builds; what a reference means
//!     └──── sandbox       intended state of sandboxes, fenced by execution id; lists
//!   row                   between column values and domain values        entity, migration: the tables
//! ```
//!
//! * **Atomic and durable**: a call that returned `Ok` is on the disk. One that returned an error changed nothing,
//!   except where [`Error::is_effect_unknown`] says otherwise.
//! * **Cancel safety**: a read may be dropped at any time. A dropped write has happened wholly or not at all, and the
//!   caller does not know which: hand writes to a task that is not dropped with a connection.
//! * **Time** is kept in microseconds: what is read back is what was written, cut to those.
//! * **No locks of callers**: writes wait in order for the one writer; reads never wait for it.
//!
//! Both backends keep the same rows and the same promises, and one suite runs on both. Rows are sea-orm entities and
//! never leave the crate.

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
pub use idempotency::{Named, NamedRequest, NamedTimes};
pub use key::{KeyHash, KeyMask, KeySecret};
pub use login::{Login, LoginTimes, Proof, RefreshToken, Renewed};
pub use node::{NodeIntent, WantedNode};
pub use password::{PASSWORD_CHARS_MIN, PasswordError, PasswordHash};
pub use sandbox::{
    Expiry, InsertSandboxError, ListedSandbox, Order, PAGE_MAX, Sandbox, SandboxCursor, SandboxPage, SandboxQuery,
    SandboxState, Started, StateMove, UpdateSandboxError,
};
pub use team::{CreateTeamError, Limits, NewTeam, Standing, Team};
pub use template::{Alias, Build, BuildStatus, NewBuild, RegisterBuildError, ResolveError, Resolved, Template};
pub use user::{CreateUserError, JoinTeamError, Membership, NewUser, User};
