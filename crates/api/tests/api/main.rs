//! The control role through its public face: real HTTP, a real SQLite store, the real catalog, and a node that speaks
//! the real cluster API but keeps its sandboxes in a map.

mod accidents;
mod accounts;
mod answers;
mod borders;
mod client;
mod compared;
mod contract;
mod creates;
mod document;
mod ends;
mod fake_node;
mod full;
mod idempotency;
mod lists;
mod logins;
mod logs;
mod metrics;
mod nodes;
mod providers;
mod races;
mod rates;
mod restarts;
mod routes;
#[path = "../../../store/tests/conformance/small_disk.rs"]
mod small_disk;
mod teams_apart;
mod user_tokens;
mod world;
