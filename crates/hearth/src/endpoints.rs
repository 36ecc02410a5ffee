//! Addresses and API key of the running daemon, published in a file for other commands and for tools.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cli::Addressing;
use crate::domain::Domain;
use crate::layout::{Layout, read_secret, write_secret};
use crate::options::Settings;
use crate::tls::TrustFiles;

/// Connection data for SDKs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) api_key: String,
    /// Domain whose names resolve to this instance; `None` if names are not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    /// Certificate of the instance's own authority; `None` if it does not use one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The same certificate together with all that this host trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_bundle: Option<PathBuf>,
}

impl Endpoints {
    /// Reads the endpoints of the daemon on this data directory, or derives them from the settings if none runs.
    pub(crate) fn load(layout: &Layout, settings: &Settings) -> Result<Self> {
        let path = layout.endpoints();
        if let Ok(text) = fs::read_to_string(&path) {
            return serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()));
        }
        let key = read_secret(&layout.api_key())?;
        let key =
            key.context("there is no API key yet: start `hearth up` once, which creates the first team and its key")?;
        let endpoints = Self {
            api_url: format!("http://{}", settings.api_listen),
            sandbox_url: format!("http://{}", settings.edge_listen),
            api_key: key.expose().to_owned(),
            domain: None,
            ca_file: None,
            ca_bundle: None,
        };
        Ok(endpoints.with_names(layout, settings, settings.tls_listen.port()))
    }

    /// Adds the domain and the files to trust, for names served on this port or by a proxy in front of Hearth.
    pub(crate) fn with_names(self, layout: &Layout, settings: &Settings, tls_port: Option<u16>) -> Self {
        let domain = settings.domain_at(tls_port);
        let has_own_authority = settings.uses_own_authority() && tls_port.is_some();
        let files = domain.as_ref().filter(|_| has_own_authority).map(|domain| TrustFiles::of(layout, domain));
        let (ca_file, ca_bundle) = files.map(|TrustFiles { ca, bundle }| (ca, bundle)).unzip();
        Self { domain: domain.map(|domain| domain.to_string()), ca_file, ca_bundle, ..self }
    }

    /// Returns `Names` if names of the domain resolve on this machine, otherwise `Addresses`.
    pub(crate) async fn preferred_addressing(&self) -> Addressing {
        match self.domain.as_deref().map(str::parse::<Domain>) {
            Some(Ok(domain)) if domain.resolves().await => Addressing::Names,
            _ => Addressing::Addresses,
        }
    }

    /// Writes the endpoints to a file that only the owner can read, because it contains the API key.
    pub(crate) fn publish(&self, layout: &Layout) -> Result<()> {
        write_secret(&layout.endpoints(), &serde_json::to_string_pretty(self)?)
    }

    /// Removes the file, when the daemon stops.
    pub(crate) fn unpublish(layout: &Layout) {
        let _ = fs::remove_file(layout.endpoints());
    }

    /// Returns the shell commands that set the variables of SDKs, one per line.
    ///
    /// # Errors
    /// Names were requested, and there is no domain.
    pub(crate) fn exports(&self, by: Addressing) -> Result<String> {
        let Self { api_url, sandbox_url, api_key, domain, ca_file, ca_bundle } = self;
        let mut lines = vec![format!("export E2B_API_KEY={api_key}")];
        match by {
            Addressing::Names => {
                let domain = domain.as_ref();
                let domain = domain.context("no names are served: --tls-listen is off, and there is no --domain")?;
                // These variables would take precedence over the domain.
                lines.push("unset E2B_API_URL E2B_SANDBOX_URL E2B_DOCS_BASE".to_owned());
                lines.push(format!("export E2B_DOMAIN={domain}"));
                // Node.js adds the file to its list of authorities; Python replaces its list by the file.
                for (variable, path) in [("NODE_EXTRA_CA_CERTS", ca_file), ("SSL_CERT_FILE", ca_bundle)] {
                    if let Some(path) = path {
                        lines.push(format!("export {variable}={}", quoted(&path.to_string_lossy())));
                    }
                }
            }
            Addressing::Addresses => {
                lines.push(format!("export E2B_API_URL={api_url}"));
                lines.push(format!("export E2B_SANDBOX_URL={sandbox_url}"));
                // Base URL of the login page that the E2B command line opens.
                lines.push(format!("export E2B_DOCS_BASE={api_url}/docs"));
            }
        }
        Ok(lines.join("\n"))
    }
}

/// Quotes a text as one word of a shell, if needed.
pub(crate) fn quoted(word: &str) -> String {
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte)) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_shell_commands() {
        let endpoints = Endpoints {
            api_url: "http://127.0.0.1:3000".to_owned(),
            sandbox_url: "http://127.0.0.1:3002".to_owned(),
            api_key: "e2b_00".to_owned(),
            domain: Some("hearth.localhost:3443".to_owned()),
            ca_file: Some("/data/ca.pem".into()),
            ca_bundle: Some("/my data/bundle.pem".into()),
        };
        let expected = "export E2B_API_KEY=e2b_00\nexport E2B_API_URL=http://127.0.0.1:3000\n\
                        export E2B_SANDBOX_URL=http://127.0.0.1:3002\nexport E2B_DOCS_BASE=http://127.0.0.1:3000/docs";
        assert_eq!(endpoints.exports(Addressing::Addresses).expect("known"), expected);
        let expected = "export E2B_API_KEY=e2b_00\nunset E2B_API_URL E2B_SANDBOX_URL E2B_DOCS_BASE\n\
                        export E2B_DOMAIN=hearth.localhost:3443\nexport NODE_EXTRA_CA_CERTS=/data/ca.pem\n\
                        export SSL_CERT_FILE='/my data/bundle.pem'";
        assert_eq!(endpoints.exports(Addressing::Names).expect("known"), expected);
        // A publicly trusted certificate needs no file.
        let public = Endpoints { ca_file: None, ca_bundle: None, ..endpoints.clone() };
        let expected = "export E2B_API_KEY=e2b_00\nunset E2B_API_URL E2B_SANDBOX_URL E2B_DOCS_BASE\n\
                        export E2B_DOMAIN=hearth.localhost:3443";
        assert_eq!(public.exports(Addressing::Names).expect("known"), expected);
        let nameless = Endpoints { domain: None, ..endpoints };
        assert!(nameless.exports(Addressing::Names).expect_err("no names").to_string().contains("--tls-listen"));
    }

    #[test]
    fn special_characters_are_quoted_for_a_shell() {
        for (word, expected) in [("/a/b.pem", "/a/b.pem"), ("a b", "'a b'"), ("$(x)", "'$(x)'"), ("a'b", "'a'\\''b'")] {
            assert_eq!(quoted(word), expected);
        }
    }
}
