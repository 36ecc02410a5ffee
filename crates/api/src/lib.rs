//! The control role: the public REST API, and the desired state of all sandboxes.
//!
//! ```text
//!   http ── routes, auth, bodies, deadline ──▶ sandboxes, templates, accounts, health: one module per resource
//!                                                   │                │
//!   failure: maps errors                            ▼                ▼
//!   to HTTP replies                         live: one owner       store, analytics (reads)
//!                                           task per sandbox ──▶ store, catalog, node
//!                                                   ▲
//!   nodes ── events, comparisons, placement ────────┤
//!   reconcile ── rows, routes and timers ───────────┘
//!   compared ── error texts that clients match on
//!   usage ── sandbox counts of teams ──▶ analytics
//!   preparation ── creates of templates that do not exist yet
//!   identity ── logins of users and their renewal ──▶ store
//! ```
//!
//! * The store has the desired state of sandboxes, nodes report the observed state. Only this crate writes the desired
//!   state.
//! * A handler that changes a sandbox passes the work to a task and waits for it, so a dropped connection does not
//!   interrupt the change.
//! * No route leads to a sandbox without a row, and no sandbox runs for long without one.
//!
//! This crate does not depend on how a node runs a sandbox; it uses only the cluster API.

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
mod preparation;
mod reconcile;
mod sandboxes;
mod templates;
mod token;
mod usage;

pub use config::{Analytics, Config, Identity, KeySet, Node, Provider, Rate, UserTokens};
pub use control::{Api, StartError};
pub use http::auth::KeySetError;
pub use http::document::{json as openapi_json, yaml as openapi_yaml};
pub use identity::IdentityError;
pub use preparation::{Preparation, Preparations};
pub use token::TokenSource;
