//! Client for the key set that an issuer publishes.
//!
//! Issuers rotate keys, so the set is fetched periodically, and soon after a token names an unknown key. The last set
//! that was fetched stays in use until the next successful fetch.

use std::{fmt, io};

use http::Uri;
use serde::Deserialize;

use crate::outbound::{FetchError, IssuerClient};

/// Path of the configuration below the issuer's URL (OpenID Connect Discovery 1.0, section 4).
const CONFIGURATION: &str = "/.well-known/openid-configuration";

/// Publisher of a key set.
pub(super) struct Publisher {
    source: Source,
    client: IssuerClient,
}

enum Source {
    /// Address of the key set.
    Address(Uri),
    /// URL of an issuer, whose configuration has the address of the key set.
    Issuer(String),
}

/// Members of an issuer's configuration that are used.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl Publisher {
    /// Fetches the key set from a fixed address.
    ///
    /// # Errors
    /// The trusted certificates of the host cannot be read.
    pub(super) fn at(address: Uri) -> io::Result<Self> {
        Ok(Self { source: Source::Address(address), client: IssuerClient::new()? })
    }

    /// Fetches the key set from the address in the issuer's configuration.
    ///
    /// # Errors
    /// The trusted certificates of the host cannot be read.
    pub(super) fn of(issuer: &str) -> io::Result<Self> {
        Ok(Self { source: Source::Issuer(issuer.to_owned()), client: IssuerClient::new()? })
    }

    /// Fetches the text of the key set. Cancel safe.
    pub(super) async fn fetch(&self) -> Result<Vec<u8>, FetchError> {
        let issuer = match &self.source {
            Source::Address(address) => return self.client.get(address).await,
            Source::Issuer(issuer) => issuer,
        };
        let address = format!("{}{CONFIGURATION}", issuer.trim_end_matches('/'));
        let address = parse(&address).ok_or(FetchError::Address(address))?;
        let text = self.client.get(&address).await?;
        let configuration: Configuration = serde_json::from_slice(&text).map_err(FetchError::Configuration)?;
        // The configuration must be that of the requested issuer (section 4.3).
        if configuration.issuer != *issuer {
            return Err(FetchError::OtherIssuer(configuration.issuer));
        }
        match parse(&configuration.jwks_uri) {
            Some(keys) => self.client.get(&keys).await,
            None => Err(FetchError::Address(configuration.jwks_uri)),
        }
    }
}

impl fmt::Display for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Address(address) => address.fmt(f),
            Source::Issuer(issuer) => issuer.fmt(f),
        }
    }
}

/// Parses an HTTP or HTTPS URL with a host.
pub(super) fn parse(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_known && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}
