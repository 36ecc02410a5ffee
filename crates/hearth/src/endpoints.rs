//! Where a running daemon can be reached, for other commands and for tools.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cli::By;
use crate::domain::Domain;
use crate::layout::{Layout, read_secret, write_secret};
use crate::options::Settings;
use crate::tls::TrustFiles;

/// What SDKs need to find an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) api_key: String,
    /// Below which names lead to this instance, over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    /// The authority that vouches for the names, where it is ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The same with what this host trusts already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_bundle: Option<PathBuf>,
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

    /// With what clients have to know of the names that are served on this port, or in front of us.
    pub(crate) fn with_names(self, layout: &Layout, settings: &Settings, tls_port: Option<u16>) -> Self {
        let domain = settings.domain_at(tls_port);
        let ours = settings.is_authority_ours() && tls_port.is_some();
        let files = domain.as_ref().filter(|_| ours).map(|domain| TrustFiles::of(layout, domain));
        let (ca_file, ca_bundle) = files.map(|TrustFiles { ca, bundle }| (ca, bundle)).unzip();
        Self { domain: domain.map(|domain| domain.to_string()), ca_file, ca_bundle, ..self }
    }

    /// By names, where these lead anywhere from here.
    pub(crate) async fn best_way(&self) -> By {
        match self.domain.as_deref().map(str::parse::<Domain>) {
            Some(Ok(domain)) if domain.resolves().await => By::Names,
            _ => By::Addresses,
        }
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
    pub(crate) fn exports(&self, by: By) -> Result<String> {
        let Self { api_url, sandbox_url, api_key, domain, ca_file, ca_bundle } = self;
        let mut lines = vec![format!("export E2B_API_KEY={api_key}")];
        match by {
            By::Names => {
                let domain = domain.as_ref();
                let domain = domain.context("no names are served: --tls-listen is off, and there is no --domain")?;
                // They would win over the domain.
                lines.push("unset E2B_API_URL E2B_SANDBOX_URL E2B_DOCS_BASE".to_owned());
                lines.push(format!("export E2B_DOMAIN={domain}"));
                // Node.js adds to its list, Python takes one file instead of it.
                for (variable, path) in [("NODE_EXTRA_CA_CERTS", ca_file), ("SSL_CERT_FILE", ca_bundle)] {
                    if let Some(path) = path {
                        lines.push(format!("export {variable}={}", quoted(&path.to_string_lossy())));
                    }
                }
            }
            By::Addresses => {
                lines.push(format!("export E2B_API_URL={api_url}"));
                lines.push(format!("export E2B_SANDBOX_URL={sandbox_url}"));
                // Where the command line logs in.
                lines.push(format!("export E2B_DOCS_BASE={api_url}/docs"));
            }
        }
        Ok(lines.join("\n"))
    }
}

/// A word of a shell.
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
    fn exports_are_what_a_shell_takes() {
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
        assert_eq!(endpoints.exports(By::Addresses).expect("known"), expected);
        let expected = "export E2B_API_KEY=e2b_00\nunset E2B_API_URL E2B_SANDBOX_URL E2B_DOCS_BASE\n\
                        export E2B_DOMAIN=hearth.localhost:3443\nexport NODE_EXTRA_CA_CERTS=/data/ca.pem\n\
                        export SSL_CERT_FILE='/my data/bundle.pem'";
        assert_eq!(endpoints.exports(By::Names).expect("known"), expected);
        // A certificate that everybody trusts needs no file.
        let public = Endpoints { ca_file: None, ca_bundle: None, ..endpoints.clone() };
        let expected = "export E2B_API_KEY=e2b_00\nunset E2B_API_URL E2B_SANDBOX_URL E2B_DOCS_BASE\n\
                        export E2B_DOMAIN=hearth.localhost:3443";
        assert_eq!(public.exports(By::Names).expect("known"), expected);
        let nameless = Endpoints { domain: None, ..endpoints };
        assert!(nameless.exports(By::Names).expect_err("no names").to_string().contains("--tls-listen"));
    }

    #[test]
    fn words_stay_whole_in_a_shell() {
        for (word, expected) in [("/a/b.pem", "/a/b.pem"), ("a b", "'a b'"), ("$(x)", "'$(x)'"), ("a'b", "'a'\\''b'")] {
            assert_eq!(quoted(word), expected);
        }
    }
}
