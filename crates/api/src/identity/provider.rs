//! Logins at an OpenID Connect provider.
//!
//! They use the authorization code flow with PKCE, state and nonce (OpenID Connect Core 1.0, section 3.1). Only the
//! identity of the user is taken from the provider. Its tokens are verified once and not stored.

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
use super::cli::{NewLogin, failed, has_usable_team, invalid_target, is_same_origin, redirect, rejected};
use super::form::Form;
use super::pending::{LOGIN_TIME_MAX, Pending, PendingLogins};
use super::target::LoopbackTarget;
use super::{CALLBACK, IdentityError, PAGE};
use crate::config;
use crate::control::Control;
use crate::failure::Failure;
use crate::outbound::{FetchError, IssuerClient};

/// Time for which the provider's metadata is cached.
///
/// The cache serves bursts of logins. The time is short, because providers rotate keys.
const METADATA_AGE_MAX: Duration = Duration::from_secs(60);
/// Maximum length of an error text that is sent to the command line.
const ERROR_CHARS_MAX: usize = 1000;
/// Cookie that binds a login to its browser, over TLS.
///
/// The prefix `__Host-` prevents other hosts of the domain, such as sandboxes, from setting it (RFC 6265bis, section
/// 4.1.3.2).
const COOKIE_ENCRYPTED: &str = "__Host-hearth-login";
/// The same cookie over plain HTTP, where the prefix is not allowed.
const COOKIE_PLAIN: &str = "hearth-login";

type Client =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// Boxed future, because the compiler cannot prove that the future of an `async` closure is `Send`.
impl<'c> AsyncHttpClient<'c> for IssuerClient {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.exchange(request))
    }
}

/// OpenID Connect provider.
pub(super) struct Provider {
    issuer: IssuerUrl,
    client_id: ClientId,
    client_secret: Option<ClientSecret>,
    http: IssuerClient,
    /// Cached metadata and the time of the fetch.
    metadata: Mutex<Option<(Instant, CoreProviderMetadata)>>,
    pending: PendingLogins,
}

/// Failure of an exchange with the provider.
#[derive(Debug, thiserror::Error)]
enum ProviderError {
    #[error("fetching the provider's metadata")]
    Discovery(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("`{0}` is not a valid redirect URI")]
    Redirect(String, #[source] openidconnect::url::ParseError),
    #[error("the provider has no token endpoint")]
    NoTokenEndpoint(#[source] openidconnect::ConfigurationError),
    #[error("exchanging the code for tokens")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the provider sent no ID token")]
    NoIdToken,
    #[error("the provider's ID token was issued to another client")]
    OtherParty,
    #[error("the provider's ID token is invalid")]
    IdToken(#[source] openidconnect::ClaimsVerificationError),
}

/// User of a verified ID token.
struct ProviderUser {
    subject: String,
    email: Option<String>,
}

impl Provider {
    pub(super) fn new(config: &config::Provider) -> Result<Self, IdentityError> {
        let config::Provider { issuer, client_id, client_secret } = config;
        let invalid = || IdentityError::Issuer(issuer.clone());
        let uri: Uri = issuer.parse().map_err(|_| invalid())?;
        let is_loopback = uri.host().is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host));
        if !(uri.scheme_str() == Some("https") || uri.scheme_str() == Some("http") && is_loopback) {
            return Err(invalid());
        }
        Ok(Self {
            issuer: IssuerUrl::new(issuer.clone()).map_err(|_| invalid())?,
            client_id: ClientId::new(client_id.clone()),
            client_secret: client_secret.as_ref().map(|secret| ClientSecret::new(secret.expose().to_owned())),
            http: IssuerClient::new().map_err(IdentityError::Certificates)?,
            metadata: Mutex::default(),
            pending: PendingLogins::default(),
        })
    }

    /// Returns the host name, which pages show to users.
    pub(super) fn host(&self) -> &str {
        self.issuer.url().host_str().unwrap_or_default()
    }

    /// Returns an OpenID Connect client with the provider's current metadata.
    async fn client(&self, address: &Address) -> Result<Client, ProviderError> {
        let metadata = self.metadata().await?;
        let supports = |method: &CoreClientAuthMethod| {
            metadata.token_endpoint_auth_methods_supported().is_some_and(|methods| methods.contains(method))
        };
        // Basic authentication is the default without metadata (OpenID Connect Discovery 1.0, section 3).
        let in_body =
            supports(&CoreClientAuthMethod::ClientSecretPost) && !supports(&CoreClientAuthMethod::ClientSecretBasic);
        let callback = address.at(CALLBACK);
        let redirect = RedirectUrl::new(callback.clone()).map_err(|error| ProviderError::Redirect(callback, error))?;
        let client = CoreClient::from_provider_metadata(metadata, self.client_id.clone(), self.client_secret.clone());
        let auth = if in_body { AuthType::RequestBody } else { AuthType::BasicAuth };
        Ok(client.set_auth_type(auth).set_redirect_uri(redirect))
    }

    async fn metadata(&self) -> Result<CoreProviderMetadata, ProviderError> {
        let mut cached = self.metadata.lock().await;
        if let Some((since, metadata)) = &*cached
            && since.elapsed() < METADATA_AGE_MAX
        {
            return Ok(metadata.clone());
        }
        let fetched = CoreProviderMetadata::discover_async(self.issuer.clone(), &self.http).await;
        let metadata = fetched.map_err(|error| ProviderError::Discovery(Box::new(error)))?;
        *cached = Some((Instant::now(), metadata.clone()));
        Ok(metadata)
    }

    /// Starts a login. Returns the provider's URL for the user, and the value of the cookie.
    async fn begin(&self, target: LoopbackTarget, address: Address) -> Result<(String, Secret), ProviderError> {
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

    /// Exchanges an authorization code for an ID token, and returns the user of the token.
    async fn redeem(&self, code: &str, pending: Pending) -> Result<ProviderUser, ProviderError> {
        let Pending { address, nonce, verifier, target: _, browser: _ } = pending;
        let client = self.client(&address).await?;
        let response = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(ProviderError::NoTokenEndpoint)?
            .set_pkce_verifier(verifier)
            .request_async(&self.http)
            .await
            .map_err(|error| ProviderError::Exchange(Box::new(error)))?;
        // The access token is not used, so it is not verified against the ID token (section 3.1.3.8).
        let id_token = response.id_token().ok_or(ProviderError::NoIdToken)?;
        // Some providers add further audiences, such as a project. They are accepted, because this server itself
        // requested the token from the provider.
        let verifier = client.id_token_verifier().set_other_audience_verifier_fn(|_| true);
        let claims = id_token.claims(&verifier, &nonce).map_err(ProviderError::IdToken)?;
        if claims.authorized_party().is_some_and(|party| *party != self.client_id) {
            return Err(ProviderError::OtherParty);
        }
        Ok(ProviderUser { subject: claims.subject().to_string(), email: claims.email().map(|email| email.to_string()) })
    }
}

/// `GET /docs/api/cli/start`: redirects to the provider.
pub(crate) async fn start(State(control): State<Arc<Control>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(provider) = &control.login_service.provider else { return no_provider() };
    let query = Form::parse(uri.query().unwrap_or_default().as_bytes());
    let Some(Ok(target)) = query.get("next").map(str::parse::<LoopbackTarget>) else { return invalid_target() };
    if !is_same_origin(&control, &uri, &headers) {
        // A page of another site must not start a login that the user does not see.
        let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", &target.to_string()).finish();
        return redirect(&format!("{PAGE}?{next}"));
    }
    let address = control.login_service.addresses.of(&uri, &headers);
    let is_encrypted = address.is_encrypted();
    match provider.begin(target, address).await {
        Ok((url, browser)) => with_cookie(redirect(&url), is_encrypted, browser.expose(), LOGIN_TIME_MAX),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "identity provider unusable");
            rejected(StatusCode::BAD_GATEWAY, "The identity provider is unreachable, or its metadata is incomplete.")
        }
    }
}

/// `GET /docs/api/cli/callback`: finishes a login at the provider.
pub(crate) async fn callback(State(control): State<Arc<Control>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(provider) = &control.login_service.provider else { return no_provider() };
    let query = Form::parse(uri.query().unwrap_or_default().as_bytes());
    let is_encrypted = control.login_service.addresses.of(&uri, &headers).is_encrypted();
    let browser = cookie(&headers, is_encrypted).unwrap_or_default();
    let pending = query.filled("state").and_then(|state| provider.pending.take(state, browser));
    let Some(pending) = pending else {
        return rejected(StatusCode::BAD_REQUEST, "This login was not started in this browser, or it took too long.");
    };
    let target = pending.target;
    let response = match finish(&control, provider, &query, pending).await {
        Ok(response) => response,
        Err(LoginFailure::Reported(reason)) => redirect(&target.with(&[("error", &printable(&reason))])),
        Err(LoginFailure::Internal(failure)) => failed(failure),
    };
    with_cookie(response, is_encrypted, "", Duration::ZERO)
}

/// Failure of a login at the provider.
enum LoginFailure {
    /// Reason that the command line shows to the user.
    Reported(String),
    /// Failure that the browser shows.
    Internal(Failure),
}

impl From<Failure> for LoginFailure {
    fn from(failure: Failure) -> Self {
        Self::Internal(failure)
    }
}

async fn finish(
    control: &Control,
    provider: &Provider,
    query: &Form,
    pending: Pending,
) -> Result<Response, LoginFailure> {
    let reported = |reason: String| LoginFailure::Reported(reason);
    if let Some(error) = query.filled("error") {
        let reason = query.filled("error_description").unwrap_or(error);
        return Err(reported(format!("the identity provider rejected the login: {reason}")));
    }
    // The response may be that of another provider, in a mix-up attack (RFC 9207, section 2.4).
    if query.get("iss").is_some_and(|issuer| issuer != provider.issuer.as_str()) {
        return Err(reported("the response is not from the identity provider".to_owned()));
    }
    let Some(code) = query.filled("code") else {
        return Err(reported("the identity provider sent no code".to_owned()));
    };
    let (target, address) = (pending.target, pending.address.clone());
    let user = provider.redeem(code, pending).await.map_err(|error| {
        tracing::warn!(error = %chain(&error), "login at the identity provider failed");
        reported("the login at the identity provider could not be verified: see the server's log".to_owned())
    })?;
    let ProviderUser { subject, email } = user;
    // Postgres rejects a text with a zero byte, and no user has one in the subject.
    let found = if subject.contains('\0') { Ok(None) } else { control.store.user_by_subject(&subject).await };
    let found = found.map_err(|error| Failure::internal("looking up a user", &error))?;
    let Some(user) = found else {
        let email = email.map_or_else(|| "EMAIL".to_owned(), |email| shell_word(&email));
        tracing::info!(subject, "login rejected: unknown user of the identity provider");
        return Err(reported(format!(
            "you are not a user of this server. The operator can create one: hearth user create {email} --subject {} \
             --team TEAM",
            shell_word(&subject)
        )));
    };
    if !has_usable_team(control, &user).await? {
        return Err(reported(format!(
            "you are not a member of a team on this server. The operator can add you to one: hearth user join {} TEAM",
            user.email
        )));
    }
    let lifetime = control.config.identity.provider_login_lifetime;
    let login = NewLogin { user: &user, proof: Proof::Issuer, lifetime, target, address: &address };
    let response = login.begin(control).await?;
    response.ok_or_else(|| reported("you are no longer a user of this server".to_owned()))
}

/// Quotes a text as one shell word, because the provider's users may choose their names.
fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@._+:-".contains(&byte);
    if text.bytes().all(is_plain) && !text.starts_with('-') {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Removes control characters, so that a terminal may show the text, and limits its length.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(ERROR_CHARS_MAX).collect()
}

fn no_provider() -> Response {
    rejected(StatusCode::NOT_FOUND, "This server has no identity provider: log in with a password.")
}

fn cookie_name(is_encrypted: bool) -> &'static str {
    if is_encrypted { COOKIE_ENCRYPTED } else { COOKIE_PLAIN }
}

/// Returns the value of the login cookie.
fn cookie(headers: &HeaderMap, is_encrypted: bool) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = all.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == cookie_name(is_encrypted)).map(|(_, value)| value)
}

fn with_cookie(mut response: Response, is_encrypted: bool, value: &str, age: Duration) -> Response {
    let (name, seconds) = (cookie_name(is_encrypted), age.as_secs());
    let secure = if is_encrypted { "; Secure" } else { "" };
    // `Lax`, because the browser must send the cookie when the provider redirects it to the callback.
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}");
    match HeaderValue::try_from(cookie) {
        Ok(cookie) => {
            response.headers_mut().append(header::SET_COOKIE, cookie);
            response
        }
        Err(_) => failed(Failure::already_logged()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (text, expected) in [
            ("ada@example.com", "ada@example.com"),
            ("auth0|17", "'auth0|17'"),
            ("$(reboot)", "'$(reboot)'"),
            ("a'b", "'a'\\''b'"),
            ("--team", "'--team'"),
        ] {
            assert_eq!(shell_word(text), expected);
        }
        assert_eq!(printable("a\u{1b}[31mb\n"), "a[31mb");
    }
}
