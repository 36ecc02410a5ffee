//! Users log in: with a password, or at an identity provider. What they get is a login, which clients renew.
//!
//! ```text
//!   GET  /docs/api/cli?next=http://localhost:PORT   the form, or the way to the provider     page, cli
//!   POST /docs/api/cli                              a password ─┐                            password
//!   GET  /docs/api/cli/start ──▶ provider ──▶ …/callback ───────┤                            provider
//!                                                               ▼
//!                       a login ──▶ 303 to next, with an access token and a refresh token    cli, target
//!   POST /oauth/token     a refresh token: the next one, and an access token                 oauth
//!   POST /oauth/revoke    the login ends                                                     oauth
//! ```
//!
//! * The one client is the official command line, which opens the page in a browser and waits on a port of that machine
//!   ([`target`]). Nothing else is ever redirected to.
//! * Tokens are always ours, whoever said who the user is: the provider's never leave this server. So it may be any provider,
//!   also one whose access tokens only itself can read, or which issues no refresh tokens, or which this server proves itself to.
//! * An access token names its login, and the login is read with each request: what ends it holds at once.
//! * Pages have no scripts, and everything that was sent is escaped ([`page`]).

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
use password::{AttemptRates, Gate};
use provider::Provider;
pub(crate) use signer::Signer;

use crate::config::Identity;

/// Where the page is; the command line appends it to its base.
pub(crate) const PAGE: &str = "/docs/api/cli";
/// Where a login at the provider begins.
pub(crate) const START: &str = "/docs/api/cli/start";
/// Where the provider sends users back to.
pub(crate) const CALLBACK: &str = "/docs/api/cli/callback";
/// Where logins are renewed.
pub(crate) const TOKEN: &str = "/oauth/token";
/// Where they are ended.
pub(crate) const REVOKE: &str = "/oauth/revoke";

/// What the command line calls itself to us, because we told it to.
const CLIENT_ID: &str = "hearth-cli";
/// Fewest bytes of the key that signs access tokens: as many as HS256's hash has (RFC 7518, 3.2).
const KEY_BYTES_MIN: usize = 32;

/// Users could not log in.
#[derive(Debug, thiserror::Error)]
pub enum WrongIdentity {
    /// The key could be guessed.
    #[error("the key that signs access tokens has fewer than {KEY_BYTES_MIN} bytes")]
    Key,
    /// The provider's name is not one.
    #[error("`{0}` is no OpenID Connect issuer: `https://…` is expected, or `http://…` on this host")]
    Issuer(String),
    /// The host trusts nobody, so that no provider can be asked.
    #[error("reading which certificates this host trusts")]
    Certificates(#[source] std::io::Error),
}

/// Lets users in.
pub(crate) struct Doorkeeper {
    signer: Arc<Signer>,
    addresses: Addresses,
    gate: Gate,
    provider: Option<Provider>,
}

impl Doorkeeper {
    pub(crate) fn new(config: &Identity, domain: Option<&str>) -> Result<Self, WrongIdentity> {
        if config.signing_key.expose().len() < KEY_BYTES_MIN {
            return Err(WrongIdentity::Key);
        }
        Ok(Self {
            signer: Arc::new(Signer::new(&config.signing_key, config.token_lifetime)),
            addresses: Addresses::new(domain, &config.plain_url),
            gate: Gate::new(AttemptRates {
                account: config.account_attempts,
                account_in_all: config.account_attempts_in_all,
                network: config.network_attempts,
            }),
            provider: config.provider.as_ref().map(Provider::new).transpose()?,
        })
    }

    pub(crate) fn signer(&self) -> Arc<Signer> {
        Arc::clone(&self.signer)
    }
}
