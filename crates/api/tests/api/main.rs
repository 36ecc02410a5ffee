//! Tests of the control role through its public API.
//!
//! They use real HTTP, a real SQLite store and the real catalog. The node implements the real cluster API, but stores
//! its sandboxes in a map.

mod accounts;
mod client;
mod compared;
mod contract;
mod creates;
mod document;
mod fake_node;
mod full_disk;
mod idempotency;
mod isolation;
mod lifetimes;
mod lists;
mod logins;
mod logs;
mod metrics;
mod middleware;
mod node_failures;
mod nodes;
mod preparations;
mod providers;
mod races;
mod rates;
mod replies;
mod restarts;
mod routes;
#[path = "../../../store/tests/conformance/small_disk.rs"]
mod small_disk;
mod user_tokens;
mod world;
