//! Keys that an issuer publishes at an address. Issuers change them, so they are fetched again from time to time, and soon
//! after a token names a key that is not known. What was fetched last counts until something better comes.

use std::{fmt, io};

use http::Uri;
use serde::Deserialize;

use crate::outbound::{FetchError, Outbound};

/// Below an issuer's name (OpenID Connect Discovery 1.0, 4).
const CONFIGURATION: &str = "/.well-known/openid-configuration";

/// Where an issuer publishes its keys.
pub(super) struct Publisher {
    place: Place,
    outbound: Outbound,
}

enum Place {
    /// There.
    Address(Uri),
    /// The issuer of this name tells where.
    Issuer(String),
}

/// What is read of an issuer's configuration.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl Publisher {
    /// # Errors
    /// The host has no certificates that could be trusted.
    pub(super) fn at(address: Uri) -> io::Result<Self> {
        Ok(Self { place: Place::Address(address), outbound: Outbound::new()? })
    }

    /// # Errors
    /// The host has no certificates that could be trusted.
    pub(super) fn of(issuer: &str) -> io::Result<Self> {
        Ok(Self { place: Place::Issuer(issuer.to_owned()), outbound: Outbound::new()? })
    }

    /// The text of the set. Cancel safe.
    pub(super) async fn fetch(&self) -> Result<Vec<u8>, FetchError> {
        let issuer = match &self.place {
            Place::Address(address) => return self.outbound.get(address).await,
            Place::Issuer(issuer) => issuer,
        };
        let address = format!("{}{CONFIGURATION}", issuer.trim_end_matches('/'));
        let address = parse(&address).ok_or(FetchError::Address(address))?;
        let text = self.outbound.get(&address).await?;
        let configuration: Configuration = serde_json::from_slice(&text).map_err(FetchError::Configuration)?;
        // Whoever is asked must not speak for another one (section 4.3).
        if configuration.issuer != *issuer {
            return Err(FetchError::OtherIssuer(configuration.issuer));
        }
        match parse(&configuration.jwks_uri) {
            Some(keys) => self.outbound.get(&keys).await,
            None => Err(FetchError::Address(configuration.jwks_uri)),
        }
    }
}

impl fmt::Display for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Address(address) => address.fmt(f),
            Place::Issuer(issuer) => issuer.fmt(f),
        }
    }
}

/// Whether something can be fetched from there.
pub(super) fn parse(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_known && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}
