//! Our own access tokens: JWTs that say which login they are of, for an hour.

use std::time::Duration;

use hearth_store::Login;
use hearth_types::{LoginId, Secret};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

/// Who issues them. Not an address: that may change, and the key is what counts.
const ISSUER: &str = "urn:hearth:identity";
/// Whom they are for.
const AUDIENCE: &str = "urn:hearth:api";
/// Tells them from tokens that say who somebody is (RFC 9068, 2.1).
const KIND: &str = "at+jwt";

/// Makes access tokens, and knows them again.
pub(crate) struct Signer {
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
    lifetime: Duration,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The user, for people who look into a token. What counts is whose the login is.
    sub: String,
    sid: String,
    iat: i64,
    exp: i64,
}

impl Signer {
    pub(super) fn new(key: &Secret, lifetime: Duration) -> Self {
        let key = key.expose().as_bytes();
        let mut validation = Validation::new(Algorithm::HS256);
        // The clock is the one that the token was made by.
        validation.leeway = 0;
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Self { signing: EncodingKey::from_secret(key), verifying: DecodingKey::from_secret(key), validation, lifetime }
    }

    /// Whether a token's claim `iss` says that it is ours.
    pub(crate) fn is_named(issuer: &serde_json::Value) -> bool {
        issuer.as_str() == Some(ISSUER)
    }

    /// A token of a login, and how long it is good for.
    pub(super) fn sign(
        &self,
        login: &Login,
        now: Timestamp,
    ) -> Result<(Secret, Duration), jsonwebtoken::errors::Error> {
        let iat = now.as_second();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: login.user.id.to_string(),
            sid: login.id.to_string(),
            iat,
            exp: iat.saturating_add_unsigned(self.lifetime.as_secs()),
        };
        let header = Header { typ: Some(KIND.to_owned()), ..Header::new(Algorithm::HS256) };
        Ok((Secret::new(encode(&header, &claims, &self.signing)?), self.lifetime))
    }

    /// Which login a token is of; `None`: it is not ours, or no longer good.
    pub(crate) fn login(&self, token: &str) -> Option<LoginId> {
        let data = decode::<Claims>(token, &self.verifying, &self.validation).ok()?;
        if data.header.typ.as_deref() != Some(KIND) || data.header.crit.is_some() {
            return None;
        }
        data.claims.sid.parse().ok()
    }
}
