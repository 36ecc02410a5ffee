//! The daemon as clients see it: the real program as an ordinary process, driven over HTTP.
//!
//! [`daemon`] starts it, [`http`] and [`connect`] send requests to it. The other modules follow the chapters of the
//! contract. Tests that require root's rights print `skipped:` without them.

mod blocked;
mod client;
mod connect;
mod daemon;
mod download;
mod filesystem;
mod followers;
mod groups;
mod http;
mod identity;
mod input;
mod logs;
mod process;
mod protocol;
mod soak;
mod terminal;
mod upload;
mod watch;
