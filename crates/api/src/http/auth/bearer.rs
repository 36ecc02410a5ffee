//! Verification of user tokens.
//!
//! User tokens are JWTs. An external issuer signs them with a shared secret or a published key, or Hearth signs them
//! for users who logged in to it.
//!
//! A token is verified by the rules of the issuer in its claim `iss`, and only with that issuer's keys: a secret that
//! is shared with an external issuer cannot sign a token of Hearth, and Hearth's key cannot sign an external one. A
//! token of Hearth refers to a login ([`Principal::Login`]), an external token to a subject ([`Principal::Subject`]),
//! which no token of Hearth can contain.
//!
//! An external token is valid if its signature matches with an algorithm that belongs to the key (not only to the
//! token's header), it has an expiry time that has not passed, its `nbf` time has passed, and audience and issuer match
//! where the operator configured them. The subject is the only claim that is used.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hearth_stdx::chain;
use hearth_types::LoginId;
use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use tokio::sync::Notify;

use super::published::{self, Publisher};
use crate::config::{KeySet, UserTokens};
use crate::control::Control;
use crate::identity::Signer;

/// Longest token that is parsed. Some issuers include groups and photographs.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Interval for fetching the issuer's keys while all tokens name known keys.
const REFETCH_PERIOD: Duration = Duration::from_secs(600);
/// Maximum number of keys tried for one token. Issuers have two or three keys.
const KEYS_TRIED_MAX: usize = 8;

/// Error for keys that cannot verify user tokens.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// The text is not a JSON Web Key Set.
    #[error("parsing the key set (JWKS)")]
    Unreadable(#[source] serde_json::Error),
    /// The set has a symmetric key. A key set is public, so anyone could sign tokens with that key.
    #[error("the key set (JWKS) has a symmetric key: configure it as a secret")]
    Symmetric,
    /// The address is not an HTTP URL.
    #[error("`{0}` is not the address of an issuer or its key set (JWKS): `https://…` is expected")]
    Address(String),
    /// The trusted certificates of the host cannot be read.
    #[error("reading the trusted certificates of this host")]
    Certificates(#[source] std::io::Error),
    /// The set has no usable key.
    #[error("the key set (JWKS) has no RSA, EC or Ed25519 key for signatures")]
    NoKey,
}

/// Verifies user tokens.
pub(crate) struct Verifier {
    /// Verifies Hearth's own tokens.
    own: Arc<Signer>,
    /// Secrets shared with the issuer.
    shared: Vec<Arc<Key>>,
    /// Public keys of the issuer, as of the last successful fetch.
    published: RwLock<Vec<Arc<Key>>>,
    publisher: Option<Publisher>,
    refetch_interval_min: Duration,
    /// Triggers a fetch of the issuer's keys.
    nudge: Notify,
    audience: Option<String>,
    issuer: Option<String>,
    leeway_seconds: u64,
}

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// Claims of an external token that are used.
#[derive(Deserialize)]
struct Claims {
    sub: String,
}

/// Issuer claim of an unverified token, which selects the rules for verifying it.
#[derive(Deserialize)]
struct IssuerClaim {
    /// Any JSON value; only a string can be Hearth's issuer.
    #[serde(default)]
    iss: serde_json::Value,
}

/// Identity that a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    /// Login of a user at this server.
    Login(LoginId),
    /// Subject of an external issuer.
    Subject(String),
}

impl Verifier {
    pub(crate) fn new(config: &UserTokens, own: Arc<Signer>) -> Result<Self, KeySetError> {
        let UserTokens { secrets, jwks, refetch_interval_min, audience, issuer, leeway } = config;
        let shared = secrets
            .iter()
            .map(|secret| {
                let key = DecodingKey::from_secret(secret.expose().as_bytes());
                Arc::new(Key { id: None, algorithms: vec![Algorithm::HS256], key })
            })
            .collect();
        let (published, publisher) = match jwks {
            None => (Vec::new(), None),
            Some(KeySet::Text(text)) => (parse_key_set(text.as_bytes())?, None),
            Some(KeySet::Address(text)) => {
                let address = published::parse(text).ok_or_else(|| KeySetError::Address(text.clone()))?;
                (Vec::new(), Some(Publisher::at(address).map_err(KeySetError::Certificates)?))
            }
            Some(KeySet::Issuer(text)) => {
                published::parse(text).ok_or_else(|| KeySetError::Address(text.clone()))?;
                (Vec::new(), Some(Publisher::of(text).map_err(KeySetError::Certificates)?))
            }
        };
        Ok(Self {
            own,
            shared,
            published: RwLock::new(published),
            publisher,
            refetch_interval_min: *refetch_interval_min,
            nudge: Notify::new(),
            audience: audience.clone(),
            issuer: issuer.clone(),
            leeway_seconds: leeway.as_secs(),
        })
    }

    /// Returns the identity that a token proves, or `None` if the token is invalid.
    pub(crate) fn principal(&self, token: &str) -> Option<Principal> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        // This claim is not verified. It only selects the rules that verify the token.
        let claim: IssuerClaim = insecure_decode_claims(token).ok()?;
        if Signer::is_own_issuer(&claim.iss) {
            return self.own.login(token).map(Principal::Login);
        }
        self.subject(token).map(Principal::Subject)
    }

    /// Returns the subject of an external token, or `None` if the token is invalid.
    fn subject(&self, token: &str) -> Option<String> {
        let header = decode_header(token).ok()?;
        if header.crit.is_some() {
            // The token requires extensions that this verifier does not implement (RFC 7515, section 4.1.11).
            return None;
        }
        let is_candidate = |key: &&Arc<Key>| {
            key.algorithms.contains(&header.alg)
                // A token that names a key is verified with that key, or with keys that have no name.
                && (header.kid.is_none() || key.id.is_none() || header.kid == key.id)
        };
        let mut reason = None;
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner).clone();
        for key in self.shared.iter().chain(&published).filter(is_candidate).take(KEYS_TRIED_MAX) {
            match decode::<Claims>(token, &key.key, &self.validation(header.alg)) {
                Ok(data) => {
                    return Some(data.claims.sub).filter(|subject| !subject.is_empty() && !subject.contains('\0'));
                }
                // Another key may match.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(error) => reason = Some(error),
            }
        }
        let is_named = |key: &Arc<Key>| key.id.is_some() && key.id == header.kid;
        if header.kid.is_some() && !published.iter().any(is_named) {
            self.nudge.notify_one();
        }
        tracing::debug!(reason = reason.map(tracing::field::display), "user token rejected");
        None
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway_seconds;
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        match &self.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            None => validation.validate_aud = false,
        }
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

/// Fetches the issuer's keys repeatedly until the server stops.
pub(crate) async fn refresh_keys(control: Arc<Control>) {
    let Verifier { published, publisher: Some(publisher), refetch_interval_min, nudge, .. } = &control.verifier else {
        return;
    };
    let stop = control.tasks.token();
    let refreshing = async {
        loop {
            let read = match publisher.fetch().await {
                Ok(text) => parse_key_set(&text).map_err(|error| chain(&error).to_string()),
                Err(error) => Err(chain(&error).to_string()),
            };
            match read {
                Ok(keys) => *published.write().unwrap_or_else(PoisonError::into_inner) = keys,
                Err(error) => {
                    tracing::warn!(%publisher, error, "fetching the keys for user tokens failed");
                }
            }
            tokio::time::sleep(*refetch_interval_min).await;
            // The next fetch follows either a notification or the timeout.
            let _ = tokio::time::timeout(REFETCH_PERIOD, nudge.notified()).await;
        }
    };
    stop.run_until_cancelled(refreshing).await;
}

/// Parses a key set and returns its usable keys.
fn parse_key_set(text: &[u8]) -> Result<Vec<Arc<Key>>, KeySetError> {
    let set: JwkSet = serde_json::from_slice(text).map_err(KeySetError::Unreadable)?;
    let mut keys = Vec::new();
    for jwk in &set.keys {
        keys.extend(usable(jwk)?.map(Arc::new));
    }
    if keys.is_empty() { Err(KeySetError::NoKey) } else { Ok(keys) }
}

/// Converts a key of a set. Returns `None` for a key with another purpose or of an unsupported type.
fn usable(jwk: &Jwk) -> Result<Option<Key>, KeySetError> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return Ok(None);
    }
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => return Err(KeySetError::Symmetric),
        AlgorithmParameters::RSA(_) => vec![Algorithm::RS256, Algorithm::RS384, Algorithm::RS512],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => vec![Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => vec![Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
        _ => return Ok(None),
    };
    if let Some(only) = jwk.common.key_algorithm {
        algorithms.retain(|algorithm| format!("{algorithm:?}") == only.to_string());
    }
    if algorithms.is_empty() {
        return Ok(None);
    }
    let Ok(key) = DecodingKey::from_jwk(jwk) else { return Ok(None) };
    Ok(Some(Key { id: jwk.common.key_id.clone(), algorithms, key }))
}
