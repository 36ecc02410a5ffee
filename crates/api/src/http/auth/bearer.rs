//! Tokens of users: JWTs of whoever identifies them, with a shared secret or a published key; or our own, of users who
//! are logged in here.
//!
//! A token is held to the rules of the issuer it names, and only keys of that issuer are tried: a secret that is shared
//! with somebody makes no token that says it is ours, and ours makes none of theirs. Our own tokens lead to a login
//! ([`Holder::Login`]), and all others to a subject, which no token of ours can name.
//!
//! What is checked of others: the signature, by an algorithm that belongs to the key and not merely to the token's own word; the
//! expiry, which must be there; the time before which it is not valid; audience and issuer, where the operator named
//! them. What is believed of it then is the subject.

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

/// Longest token that is looked at: some issuers put groups and photographs in.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Time between two looks at the issuer's keys when nothing asks for one.
const REFETCH_PERIOD: Duration = Duration::from_secs(600);
/// Most keys that are tried for a token that does not name one. Issuers have two or three.
const KEYS_TRIED_MAX: usize = 8;

/// The keys for users' tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WrongKeys {
    /// The text is no set of keys.
    #[error("reading the set of keys (JWKS)")]
    Unreadable(#[source] serde_json::Error),
    /// A key that everybody may read must not be one that signs.
    #[error("the set of keys (JWKS) has a symmetric key: it belongs into the secrets")]
    Symmetric,
    /// Keys cannot be fetched from there.
    #[error("`{0}` is no address of an issuer or its set of keys (JWKS): `https://…` is expected")]
    Address(String),
    /// The host trusts nobody, so that no address can be asked.
    #[error("reading which certificates this host trusts")]
    Certificates(#[source] std::io::Error),
    /// None of the keys can be used.
    #[error("the set of keys (JWKS) has no RSA, EC or Ed25519 key for signatures")]
    NoKey,
}

/// Knows the tokens that are to be believed.
pub(crate) struct Verifier {
    /// Our own.
    own: Arc<Signer>,
    /// The secrets.
    shared: Vec<Arc<Key>>,
    /// The keys of the issuer, as far as they are known.
    published: RwLock<Vec<Arc<Key>>>,
    publisher: Option<Publisher>,
    refetch_pause: Duration,
    /// Asks for the keys again.
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

/// What is read of a token.
#[derive(Deserialize)]
struct Claims {
    sub: String,
}

/// What is read of a token to know whose rules it is held to.
#[derive(Deserialize)]
struct Issued {
    /// Of any kind: only a text can be ours.
    #[serde(default)]
    iss: serde_json::Value,
}

/// Whom a token is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Whoever is logged in so.
    Login(LoginId),
    /// Whom the issuer calls so.
    Subject(String),
}

impl Verifier {
    pub(crate) fn new(config: &UserTokens, own: Arc<Signer>) -> Result<Self, WrongKeys> {
        let UserTokens { secrets, jwks, refetch_pause, audience, issuer, leeway } = config;
        let shared = secrets
            .iter()
            .map(|secret| {
                let key = DecodingKey::from_secret(secret.expose().as_bytes());
                Arc::new(Key { id: None, algorithms: vec![Algorithm::HS256], key })
            })
            .collect();
        let (published, publisher) = match jwks {
            None => (Vec::new(), None),
            Some(KeySet::Text(text)) => (read(text.as_bytes())?, None),
            Some(KeySet::Address(text)) => {
                let address = published::parse(text).ok_or_else(|| WrongKeys::Address(text.clone()))?;
                (Vec::new(), Some(Publisher::at(address).map_err(WrongKeys::Certificates)?))
            }
            Some(KeySet::Issuer(text)) => {
                published::parse(text).ok_or_else(|| WrongKeys::Address(text.clone()))?;
                (Vec::new(), Some(Publisher::of(text).map_err(WrongKeys::Certificates)?))
            }
        };
        Ok(Self {
            own,
            shared,
            published: RwLock::new(published),
            publisher,
            refetch_pause: *refetch_pause,
            nudge: Notify::new(),
            audience: audience.clone(),
            issuer: issuer.clone(),
            leeway_seconds: leeway.as_secs(),
        })
    }

    /// Whom a token is about; `None`: it is not to be believed.
    pub(crate) fn holder(&self, token: &str) -> Option<Holder> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        // Nothing is believed of this yet: it chooses the rules, and they decide.
        let issued: Issued = insecure_decode_claims(token).ok()?;
        if Signer::is_named(&issued.iss) {
            return self.own.login(token).map(Holder::Login);
        }
        self.subject(token).map(Holder::Subject)
    }

    /// Whom the issuer's token is about.
    fn subject(&self, token: &str) -> Option<String> {
        let header = decode_header(token).ok()?;
        if header.crit.is_some() {
            // The issuer wants something to be understood that is not (RFC 7515, section 4.1.11).
            return None;
        }
        let fits = |key: &&Arc<Key>| {
            key.algorithms.contains(&header.alg)
                // A token that names a key means that one, unless ours has no name.
                && (header.kid.is_none() || key.id.is_none() || header.kid == key.id)
        };
        let mut reason = None;
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner).clone();
        for key in self.shared.iter().chain(&published).filter(fits).take(KEYS_TRIED_MAX) {
            match decode::<Claims>(token, &key.key, &self.validation(header.alg)) {
                Ok(data) => {
                    return Some(data.claims.sub).filter(|subject| !subject.is_empty() && !subject.contains('\0'));
                }
                // The next one may be the right one.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(error) => reason = Some(error),
            }
        }
        let is_named = |key: &Arc<Key>| key.id.is_some() && key.id == header.kid;
        if header.kid.is_some() && !published.iter().any(is_named) {
            self.nudge.notify_one();
        }
        tracing::debug!(reason = reason.map(tracing::field::display), "a user token was not believed");
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

/// Keeps the issuer's keys, until the server stops.
pub(crate) async fn keep(control: Arc<Control>) {
    let Verifier { published, publisher: Some(publisher), refetch_pause, nudge, .. } = &control.verifier else {
        return;
    };
    let stop = control.tasks.token();
    let keeping = async {
        loop {
            let read = match publisher.fetch().await {
                Ok(text) => read(&text).map_err(|error| chain(&error).to_string()),
                Err(error) => Err(chain(&error).to_string()),
            };
            match read {
                Ok(keys) => *published.write().unwrap_or_else(PoisonError::into_inner) = keys,
                Err(error) => {
                    tracing::warn!(%publisher, error, "the keys for users' tokens were not fetched");
                }
            }
            tokio::time::sleep(*refetch_pause).await;
            // Either way: it is time.
            let _ = tokio::time::timeout(REFETCH_PERIOD, nudge.notified()).await;
        }
    };
    stop.run_until_cancelled(keeping).await;
}

/// The keys of a set.
fn read(text: &[u8]) -> Result<Vec<Arc<Key>>, WrongKeys> {
    let set: JwkSet = serde_json::from_slice(text).map_err(WrongKeys::Unreadable)?;
    let mut keys = Vec::new();
    for jwk in &set.keys {
        keys.extend(usable(jwk)?.map(Arc::new));
    }
    if keys.is_empty() { Err(WrongKeys::NoKey) } else { Ok(keys) }
}

/// A key of a set; `None`: it is for something else, or of a kind that is not known here.
fn usable(jwk: &Jwk) -> Result<Option<Key>, WrongKeys> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return Ok(None);
    }
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => return Err(WrongKeys::Symmetric),
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
