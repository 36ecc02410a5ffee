//! Rust client of Hearth: sandboxes through the REST API, commands and files through the edge and the guest daemon.
//!
//! It uses the same public contract as the official SDKs and no internal interfaces. `hearth` creates its first sandbox
//! with it; the benchmark and the end-to-end tests use it, too.
//!
//! ```no_run
//! # async fn example() -> Result<(), hearth_sdk::Error> {
//! use hearth_sdk::{Client, NewSandbox};
//!
//! let client = Client::new("http://127.0.0.1:3000", "http://127.0.0.1:3002", hearth_types::Secret::new("e2b_…"))?;
//! let sandbox = client.create(&NewSandbox::of("base")).await?;
//! let output = sandbox.run("echo hello").await?;
//! assert_eq!(output.stdout, b"hello\n");
//! sandbox.kill().await?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod client;
mod endpoint;
mod error;
mod files;
mod sandbox;

pub use client::{Client, NewSandbox, SandboxDetail};
pub use error::Error;
pub use hearth_envd_api::Output;
pub use sandbox::Sandbox;
