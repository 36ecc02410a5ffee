//! Where a running daemon can be reached, for other commands and for tools.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, read_secret, write_secret};
use crate::options::Settings;

/// What SDKs need to find an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) api_key: String,
}

impl Endpoints {
    /// Of the daemon that runs on this data directory, or of the one that would by these settings.
    pub(crate) fn of(layout: &Layout, settings: &Settings) -> Result<Self> {
        let path = layout.endpoints();
        if let Ok(text) = fs::read_to_string(&path) {
            return serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()));
        }
        let key = read_secret(&layout.api_key())?;
        let key =
            key.context("there is no API key yet: start `hearth up` once, which makes the first team and its key")?;
        Ok(Self {
            api_url: format!("http://{}", settings.api_listen),
            sandbox_url: format!("http://{}", settings.edge_listen),
            api_key: key.expose().to_owned(),
        })
    }

    /// Tells them to others; the file has the key in it.
    pub(crate) fn publish(&self, layout: &Layout) -> Result<()> {
        write_secret(&layout.endpoints(), &serde_json::to_string_pretty(self)?)
    }

    /// The daemon stops.
    pub(crate) fn withdraw(layout: &Layout) {
        let _ = fs::remove_file(layout.endpoints());
    }

    /// Lines for a shell.
    pub(crate) fn exports(&self) -> String {
        let Self { api_url, sandbox_url, api_key } = self;
        format!("export E2B_API_KEY={api_key}\nexport E2B_API_URL={api_url}\nexport E2B_SANDBOX_URL={sandbox_url}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_what_a_shell_takes() {
        let endpoints = Endpoints {
            api_url: "http://127.0.0.1:3000".to_owned(),
            sandbox_url: "http://127.0.0.1:3002".to_owned(),
            api_key: "e2b_00".to_owned(),
        };
        let expected = "export E2B_API_KEY=e2b_00\nexport E2B_API_URL=http://127.0.0.1:3000\n\
                        export E2B_SANDBOX_URL=http://127.0.0.1:3002";
        assert_eq!(endpoints.exports(), expected);
    }
}
