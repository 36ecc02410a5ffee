//! Logins at an OpenID Connect provider: authorization code flow with PKCE, state and nonce (OpenID Connect Core 1.0, 3.1).
//!
//! The provider says who somebody is, and that is all that is taken from it: its tokens are looked at once and forgotten.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use hearth_stdx::chain;
use hearth_store::Proof;
use hearth_types::Secret;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use openidconnect::core::{CoreClient, CoreClientAuthMethod, CoreProviderMetadata, CoreResponseType};
use openidconnect::{
    AsyncHttpClient, AuthType, AuthenticationFlow, AuthorizationCode, ClientId, ClientSecret, CsrfToken,
    EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, IssuerUrl, Nonce, PkceCodeChallenge,
    RedirectUrl, Scope, TokenResponse as _,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::address::Address;
use super::cli::{Entry, broken, is_from_here, may_enter, no_target, redirect, refused};
use super::form::Form;
use super::pending::{PATIENCE, Pending, Table};
use super::target::Target;
use super::{CALLBACK, PAGE, WrongIdentity};
use crate::config;
use crate::control::Control;
use crate::failure::Failure;
use crate::outbound::{FetchError, Outbound};

/// How long what the provider says about itself is believed: it changes keys from time to time, and logins may come in
/// numbers.
const CONFIGURATION_KEPT: Duration = Duration::from_secs(60);
/// Longest text that the command line is told.
const TOLD_CHARS_MAX: usize = 1000;
/// What a browser has to bring back. The first of the two can be set by no other name of the domain, such as a sandbox's
/// (RFC 6265bis, 4.1.3.2), but needs TLS.
const COOKIE_ENCRYPTED: &str = "__Host-hearth-login";
const COOKIE_PLAIN: &str = "hearth-login";

type Client =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// The future is named by what it is, because that of an `async` closure cannot be proved to be sent between threads.
impl<'c> AsyncHttpClient<'c> for Outbound {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.exchange(request))
    }
}

/// The provider.
pub(super) struct Provider {
    issuer: IssuerUrl,
    client_id: ClientId,
    client_secret: Option<ClientSecret>,
    outbound: Outbound,
    /// What it said about itself, and when.
    known: Mutex<Option<(Instant, CoreProviderMetadata)>>,
    pending: Table,
}

/// Why the provider's word was not had.
#[derive(Debug, thiserror::Error)]
enum ProviderError {
    #[error("asking the provider about itself")]
    Discovery(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("`{0}` cannot be redirected to")]
    Redirect(String, #[source] openidconnect::url::ParseError),
    #[error("the provider has no token endpoint")]
    NoTokenEndpoint(#[source] openidconnect::ConfigurationError),
    #[error("exchanging the code for tokens")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the provider sent no ID token")]
    NoIdToken,
    #[error("the provider's ID token was issued to another client")]
    OtherParty,
    #[error("the provider's ID token is not to be believed")]
    IdToken(#[source] openidconnect::ClaimsVerificationError),
}

/// Whom the provider named.
struct Named {
    subject: String,
    email: Option<String>,
}

impl Provider {
    pub(super) fn new(config: &config::Provider) -> Result<Self, WrongIdentity> {
        let config::Provider { issuer, client_id, client_secret } = config;
        let wrong = || WrongIdentity::Issuer(issuer.clone());
        let uri: Uri = issuer.parse().map_err(|_| wrong())?;
        let is_here = uri.host().is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host));
        if !(uri.scheme_str() == Some("https") || uri.scheme_str() == Some("http") && is_here) {
            return Err(wrong());
        }
        Ok(Self {
            issuer: IssuerUrl::new(issuer.clone()).map_err(|_| wrong())?,
            client_id: ClientId::new(client_id.clone()),
            client_secret: client_secret.as_ref().map(|secret| ClientSecret::new(secret.expose().to_owned())),
            outbound: Outbound::new().map_err(WrongIdentity::Certificates)?,
            known: Mutex::default(),
            pending: Table::default(),
        })
    }

    /// What people know it by.
    pub(super) fn host(&self) -> &str {
        self.issuer.url().host_str().unwrap_or_default()
    }

    /// A client of it as it is now.
    async fn client(&self, address: &Address) -> Result<Client, ProviderError> {
        let metadata = self.metadata().await?;
        let takes = |method: &CoreClientAuthMethod| {
            metadata.token_endpoint_auth_methods_supported().is_some_and(|methods| methods.contains(method))
        };
        // Basic is what there is where nothing is said (OpenID Connect Discovery 1.0, 3).
        let in_body =
            takes(&CoreClientAuthMethod::ClientSecretPost) && !takes(&CoreClientAuthMethod::ClientSecretBasic);
        let callback = address.at(CALLBACK);
        let redirect = RedirectUrl::new(callback.clone()).map_err(|error| ProviderError::Redirect(callback, error))?;
        let client = CoreClient::from_provider_metadata(metadata, self.client_id.clone(), self.client_secret.clone());
        let auth = if in_body { AuthType::RequestBody } else { AuthType::BasicAuth };
        Ok(client.set_auth_type(auth).set_redirect_uri(redirect))
    }

    async fn metadata(&self) -> Result<CoreProviderMetadata, ProviderError> {
        let mut known = self.known.lock().await;
        if let Some((since, metadata)) = &*known
            && since.elapsed() < CONFIGURATION_KEPT
        {
            return Ok(metadata.clone());
        }
        let asked = CoreProviderMetadata::discover_async(self.issuer.clone(), &self.outbound).await;
        let metadata = asked.map_err(|error| ProviderError::Discovery(Box::new(error)))?;
        *known = Some((Instant::now(), metadata.clone()));
        Ok(metadata)
    }

    /// Where the user logs in, and what the browser has to bring back from there.
    async fn begin(&self, target: Target, address: Address) -> Result<(String, Secret), ProviderError> {
        let client = self.client(&address).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state, nonce) = client
            .authorize_url(
                AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
                CsrfToken::new_random,
                Nonce::new_random,
            )
            .add_scope(Scope::new("email".to_owned()))
            .set_pkce_challenge(challenge)
            .url();
        let browser = Secret::new(CsrfToken::new_random_len(32).secret().as_str());
        let pending = Pending { target, address, nonce, verifier, browser: browser.clone() };
        self.pending.insert(state.into_secret(), pending);
        Ok((url.to_string(), browser))
    }

    /// Whom the provider means by a code.
    async fn redeem(&self, code: &str, pending: Pending) -> Result<Named, ProviderError> {
        let Pending { address, nonce, verifier, target: _, browser: _ } = pending;
        let client = self.client(&address).await?;
        let answer = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(ProviderError::NoTokenEndpoint)?
            .set_pkce_verifier(verifier)
            .request_async(&self.outbound)
            .await
            .map_err(|error| ProviderError::Exchange(Box::new(error)))?;
        // The access token is used for nothing, so nobody looks whether it is the one that the ID token is about (3.1.3.8).
        let id_token = answer.id_token().ok_or(ProviderError::NoIdToken)?;
        // Some providers name others beside us, such as a project. We asked for this token ourselves, so it was not made for them.
        let verifier = client.id_token_verifier().set_other_audience_verifier_fn(|_| true);
        let claims = id_token.claims(&verifier, &nonce).map_err(ProviderError::IdToken)?;
        if claims.authorized_party().is_some_and(|party| *party != self.client_id) {
            return Err(ProviderError::OtherParty);
        }
        Ok(Named { subject: claims.subject().to_string(), email: claims.email().map(|email| email.to_string()) })
    }
}

/// `GET /docs/api/cli/start`: to the provider.
pub(crate) async fn start(State(control): State<Arc<Control>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(provider) = &control.doorkeeper.provider else { return no_provider() };
    let query = Form::parse(uri.query().unwrap_or_default().as_bytes());
    let Some(Ok(target)) = query.get("next").map(str::parse::<Target>) else { return no_target() };
    if !is_from_here(&control, &uri, &headers) {
        // A page of somebody else must not log anybody in without being seen.
        let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", &target.to_string()).finish();
        return redirect(&format!("{PAGE}?{next}"));
    }
    let address = control.doorkeeper.addresses.of(&uri, &headers);
    let is_encrypted = address.is_encrypted();
    match provider.begin(target, address).await {
        Ok((url, browser)) => with_cookie(redirect(&url), is_encrypted, browser.expose(), PATIENCE),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the identity provider cannot be used");
            refused(StatusCode::BAD_GATEWAY, "The identity provider cannot be reached, or does not say what is needed.")
        }
    }
}

/// `GET /docs/api/cli/callback`: from the provider.
pub(crate) async fn callback(State(control): State<Arc<Control>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(provider) = &control.doorkeeper.provider else { return no_provider() };
    let query = Form::parse(uri.query().unwrap_or_default().as_bytes());
    let is_encrypted = control.doorkeeper.addresses.of(&uri, &headers).is_encrypted();
    let browser = cookie(&headers, is_encrypted).unwrap_or_default();
    let pending = query.filled("state").and_then(|state| provider.pending.take(state, browser));
    let Some(pending) = pending else {
        return refused(StatusCode::BAD_REQUEST, "This login was not begun in this browser, or it took too long.");
    };
    let target = pending.target;
    let response = match finish(&control, provider, &query, pending).await {
        Ok(response) => response,
        Err(Unfinished::Told(why)) => redirect(&target.with(&[("error", &printable(&why))])),
        Err(Unfinished::Failed(failure)) => broken(failure),
    };
    with_cookie(response, is_encrypted, "", Duration::ZERO)
}

/// Why nobody was let in.
enum Unfinished {
    /// What the command line, and by it the user, is told.
    Told(String),
    Failed(Failure),
}

impl From<Failure> for Unfinished {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn finish(
    control: &Control,
    provider: &Provider,
    query: &Form,
    pending: Pending,
) -> Result<Response, Unfinished> {
    let told = |why: String| Unfinished::Told(why);
    if let Some(error) = query.filled("error") {
        let why = query.filled("error_description").unwrap_or(error);
        return Err(told(format!("the identity provider said no: {why}")));
    }
    // An answer of another provider that was asked by somebody else (RFC 9207, 2.4).
    if query.get("iss").is_some_and(|issuer| issuer != provider.issuer.as_str()) {
        return Err(told("the answer is not the identity provider's".to_owned()));
    }
    let Some(code) = query.filled("code") else {
        return Err(told("the identity provider sent no code".to_owned()));
    };
    let (target, address) = (pending.target, pending.address.clone());
    let named = provider.redeem(code, pending).await.map_err(|error| {
        tracing::warn!(error = %chain(&error), "a login at the identity provider failed");
        told("the login at the identity provider could not be verified: see the server's log".to_owned())
    })?;
    let Named { subject, email } = named;
    // Postgres knows no text with a zero byte, and nobody is called so.
    let found = if subject.contains('\0') { Ok(None) } else { control.store.user_by_subject(&subject).await };
    let found = found.map_err(|error| Failure::internal("looking up a user", &error))?;
    let Some(user) = found else {
        let email = email.map_or_else(|| "EMAIL".to_owned(), |email| word(&email));
        tracing::info!(subject, "a user of the identity provider is not known here");
        return Err(told(format!(
            "this server does not know you. Whoever runs it can change that: hearth user create {email} --subject \
             {} --team TEAM",
            word(&subject)
        )));
    };
    if !may_enter(control, &user).await? {
        return Err(told(format!(
            "you are a member of no team here. Whoever runs this server can change that: hearth user join {} TEAM",
            user.email
        )));
    }
    let lifetime = control.config.identity.provided_login_lifetime;
    let entry = Entry { user: &user, proof: Proof::Issuer, lifetime, target, address: &address };
    let begun = entry.begin(control).await?;
    begun.ok_or_else(|| told("this server does not know you any more".to_owned()))
}

/// A word of a shell, which stays one whatever the provider let its user be called.
fn word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@._+:-".contains(&byte);
    if text.bytes().all(is_plain) && !text.starts_with('-') {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What a terminal may show.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(TOLD_CHARS_MAX).collect()
}

fn no_provider() -> Response {
    refused(StatusCode::NOT_FOUND, "There is no identity provider here: passwords are used.")
}

fn cookie_name(is_encrypted: bool) -> &'static str {
    if is_encrypted { COOKIE_ENCRYPTED } else { COOKIE_PLAIN }
}

/// What the browser brings back.
fn cookie(headers: &HeaderMap, is_encrypted: bool) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = all.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == cookie_name(is_encrypted)).map(|(_, value)| value)
}

fn with_cookie(mut response: Response, is_encrypted: bool, value: &str, age: Duration) -> Response {
    let (name, seconds) = (cookie_name(is_encrypted), age.as_secs());
    let secure = if is_encrypted { "; Secure" } else { "" };
    // Lax: it has to come along when the provider sends the browser back.
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}");
    match HeaderValue::try_from(cookie) {
        Ok(cookie) => {
            response.headers_mut().append(header::SET_COOKIE, cookie);
            response
        }
        Err(_) => broken(Failure::broken()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_is_what_was_meant() {
        for (text, expected) in [
            ("ada@example.com", "ada@example.com"),
            ("auth0|17", "'auth0|17'"),
            ("$(reboot)", "'$(reboot)'"),
            ("a'b", "'a'\\''b'"),
            ("--team", "'--team'"),
        ] {
            assert_eq!(word(text), expected);
        }
        assert_eq!(printable("a\u{1b}[31mb\n"), "a[31mb");
    }
}
