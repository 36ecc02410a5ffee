//! The control role: the public REST interface, and the intended state of all sandboxes.
//!
//! ```text
//!   http ── routes, auth, bodies, deadline ──▶ sandboxes, templates, accounts, health: one module for each thing to ask
//!                                                   │                │
//!   failure: the one place where errors             ▼                ▼
//!   become HTTP answers                     live: one owner       store, analytics (reads)
//!                                           task per sandbox ──▶ store, catalog, node
//!                                                   ▲
//!   nodes ── news and comparisons, placement ───────┤
//!   reconcile ── rows, routes and timers ───────────┘
//!   compared ── texts that clients look for in refusals
//!   usage ── what teams had, counted for analytics
//!   identity ── users log in, and clients renew that ──▶ store
//! ```
//!
//! * The store says which sandboxes *should* be, nodes say which *are*; this crate alone writes the one and follows the
//!   other.
//! * A handler that changes something hands the work to a task and waits for it, so a dropped connection cuts nothing.
//! * No route leads to a sandbox without a row, and no sandbox runs for long without one.
//!
//! It never sees how a node runs a sandbox: the cluster API is the only way there.

#![forbid(unsafe_code)]

mod accounts;
pub mod compared;
mod config;
mod control;
mod failure;
mod health;
mod http;
mod identity;
mod live;
mod nodes;
mod outbound;
mod reconcile;
mod sandboxes;
mod templates;
mod token;
mod usage;

pub use config::{Analytics, Config, Identity, KeySet, Node, Provider, Rate, UserTokens};
pub use control::{Api, StartError};
pub use http::auth::WrongKeys;
pub use http::document::{json as openapi_json, yaml as openapi_yaml};
pub use identity::WrongIdentity;
pub use token::TokenSource;
