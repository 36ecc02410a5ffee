//! Hearth's own access tokens: short-lived JWTs that name a login.

use std::time::Duration;

use hearth_store::Login;
use hearth_types::{LoginId, Secret};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

/// Issuer claim. It is not a URL, because the address of the server may change; only the key is relevant.
const ISSUER: &str = "urn:hearth:identity";
/// Audience claim.
const AUDIENCE: &str = "urn:hearth:api";
/// Token type that distinguishes access tokens from ID tokens (RFC 9068, section 2.1).
const TOKEN_TYPE: &str = "at+jwt";

/// Signs and verifies access tokens.
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
    /// ID of the user, only for people who inspect a token. The login determines the user.
    sub: String,
    /// ID of the login.
    sid: String,
    iat: i64,
    exp: i64,
}

impl Signer {
    pub(super) fn new(key: &Secret, lifetime: Duration) -> Self {
        let key = key.expose().as_bytes();
        let mut validation = Validation::new(Algorithm::HS256);
        // The same clock signs and verifies tokens.
        validation.leeway = 0;
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Self { signing: EncodingKey::from_secret(key), verifying: DecodingKey::from_secret(key), validation, lifetime }
    }

    /// Returns true if a claim `iss` names Hearth as the issuer.
    pub(crate) fn is_own_issuer(issuer: &serde_json::Value) -> bool {
        issuer.as_str() == Some(ISSUER)
    }

    /// Signs a token for a login. Returns the token and its lifetime.
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
        let header = Header { typ: Some(TOKEN_TYPE.to_owned()), ..Header::new(Algorithm::HS256) };
        Ok((Secret::new(encode(&header, &claims, &self.signing)?), self.lifetime))
    }

    /// Returns the login of a token, or `None` if the token is invalid or expired.
    pub(crate) fn login(&self, token: &str) -> Option<LoginId> {
        let data = decode::<Claims>(token, &self.verifying, &self.validation).ok()?;
        if data.header.typ.as_deref() != Some(TOKEN_TYPE) || data.header.crit.is_some() {
            return None;
        }
        data.claims.sid.parse().ok()
    }
}
