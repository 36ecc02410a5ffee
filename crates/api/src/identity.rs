//! Login of users with a password or at an OpenID Connect provider. Clients renew the login.
//!
//! ```text
//!   GET  /docs/api/cli?next=http://localhost:PORT   form, or link to the provider            page, cli
//!   POST /docs/api/cli                              password ───┐                            password
//!   GET  /docs/api/cli/start ──▶ provider ──▶ …/callback ───────┤                            provider
//!                                                               ▼
//!                       login ──▶ 303 to next, with an access token and a refresh token      cli, target
//!   POST /oauth/token     refresh token ──▶ new refresh token and access token               oauth
//!   POST /oauth/revoke    ends the login                                                     oauth
//! ```
//!
//! * The only client is the official command line. It opens the page in a browser and listens on a port of the same
//!   machine ([`target`]). Browsers are redirected to no other address, except to the provider.
//! * Clients always receive Hearth's own tokens; the provider's tokens never leave this server. So the provider's
//!   access tokens may be opaque, it need not issue refresh tokens, and it may require a client secret.
//! * An access token names its login, and the login is read for each request, so the end of a login takes effect
//!   immediately.
//! * Pages have no scripts, and all input is escaped ([`page`]).

mod address;
pub(crate) mod cli;
mod form;
pub(crate) mod oauth;
mod page;
mod password;
mod pending;
pub(crate) mod provider;
mod signer;
mod target;

use std::sync::Arc;

use address::Addresses;
use password::{AttemptRates, PasswordVerifier};
use provider::Provider;
pub(crate) use signer::Signer;

use crate::config::Identity;

/// Path of the login page. The command line appends it to its base URL.
pub(crate) const PAGE: &str = "/docs/api/cli";
/// Path that starts a login at the provider.
pub(crate) const START: &str = "/docs/api/cli/start";
/// Path that the provider redirects users to.
pub(crate) const CALLBACK: &str = "/docs/api/cli/callback";
/// Path for renewing a login.
pub(crate) const TOKEN: &str = "/oauth/token";
/// Path for ending a login.
pub(crate) const REVOKE: &str = "/oauth/revoke";

/// Client ID of the command line, which it receives at login.
const CLIENT_ID: &str = "hearth-cli";
/// Minimum length of the key that signs access tokens: the output size of the HS256 hash (RFC 7518, section 3.2).
const KEY_BYTES_MIN: usize = 32;

/// Invalid settings for the login of users.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The signing key is too short, so it could be guessed.
    #[error("the key that signs access tokens has fewer than {KEY_BYTES_MIN} bytes")]
    ShortKey,
    /// The provider's issuer URL is invalid.
    #[error("`{0}` is not the URL of an OpenID Connect issuer: `https://…` is expected, or `http://…` on this host")]
    Issuer(String),
    /// The trusted certificates of the host cannot be read.
    #[error("reading the trusted certificates of this host")]
    Certificates(#[source] std::io::Error),
}

/// Logs users in and signs their access tokens.
pub(crate) struct LoginService {
    signer: Arc<Signer>,
    addresses: Addresses,
    passwords: PasswordVerifier,
    /// With `None`, users log in with a password.
    provider: Option<Provider>,
}

impl LoginService {
    pub(crate) fn new(config: &Identity, domain: Option<&str>) -> Result<Self, IdentityError> {
        if config.signing_key.expose().len() < KEY_BYTES_MIN {
            return Err(IdentityError::ShortKey);
        }
        Ok(Self {
            signer: Arc::new(Signer::new(&config.signing_key, config.token_lifetime)),
            addresses: Addresses::new(domain, &config.plain_url),
            passwords: PasswordVerifier::new(AttemptRates {
                account: config.account_attempts,
                account_all_networks: config.account_attempts_all_networks,
                network: config.network_attempts,
            }),
            provider: config.provider.as_ref().map(Provider::new).transpose()?,
        })
    }

    pub(crate) fn signer(&self) -> Arc<Signer> {
        Arc::clone(&self.signer)
    }
}
