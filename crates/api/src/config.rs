//! Configuration of the control role.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{Logs, Samples, Usages};
use hearth_cluster_api::NodeClient;
use hearth_types::{NodeAddress, NodeId, Secret};

/// Constant that E2B sends as `clientID`. No client uses the value, but old clients fail without it.
const CLIENT_ID: &str = "6532622b";

/// Default URL of this server, with the contract's port.
const PLAIN_URL: &str = "http://127.0.0.1:3000";
/// Attempts per 15 minutes: more than a person mistypes, and too few to guess a password of 12 characters.
const ACCOUNT_ATTEMPTS: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
/// Same as for one network, so that many networks guess one password no faster than a single network.
const ACCOUNT_ATTEMPTS_ALL_NETWORKS: NonZeroU32 = NETWORK_ATTEMPTS;
/// Attempts per 15 minutes for all users of one network.
const NETWORK_ATTEMPTS: NonZeroU32 = NonZeroU32::new(50).expect("not zero");

/// Settings of the control role. [`Config::new`] sets the contract's values.
#[derive(Debug, Clone)]
pub struct Config {
    /// Secret that the tokens of sandboxes are derived from. It must not change during the life of a sandbox.
    pub token_seed: Secret,
    /// Token of operators; with `None`, no caller is an operator.
    pub admin_token: Option<Secret>,
    /// Accepted tokens of external issuers, in addition to Hearth's own user tokens.
    pub user_tokens: UserTokens,
    /// Login of users at this server.
    pub identity: Identity,
    /// Rate limit of each team; with `None`, requests are not limited.
    pub team_rate: Option<Rate>,
    /// Rate limit of each client address; with `None`, requests are not limited.
    pub address_rate: Option<Rate>,
    /// Retention of replies to requests with an idempotency key.
    pub idempotency_retention: Duration,
    /// Domain of sandbox host names, with an optional port; with `None`, clients use the domain they were configured
    /// with.
    pub domain: Option<String>,
    /// Value of `clientID` in replies.
    pub client_id: String,
    /// Maximum size of a request body.
    pub request_bytes_max: usize,
    /// Maximum duration of a request.
    pub request_deadline: Duration,
    /// Maximum time for receiving a request body.
    pub body_read_max: Duration,
    /// Maximum time for starting a sandbox.
    ///
    /// It is shorter than the request deadline, so the client receives the reason of a failure, and shorter than the
    /// timeout of the node client, so this role decides about the timeout.
    pub create_budget: Duration,
    /// Maximum time for which a create waits for a template that is being prepared.
    ///
    /// It is a part of [`create_budget`](Self::create_budget).
    pub template_wait_max: Duration,
    /// Lease of a route: its lifetime after the last confirmation by this role.
    pub route_lease: Duration,
    /// Time between two comparisons of the desired state with the observed state.
    pub reconcile_interval: Duration,
    /// Maximum time for which [`Api::start`](crate::Api::start) waits for the first comparison with all nodes.
    ///
    /// The wait avoids that the first replies describe sandboxes that no longer run. A slower node is compared later.
    pub node_compare_wait_max: Duration,
    /// Interval for storing the number of sandboxes of each team.
    pub usage_interval: Duration,
}

impl Config {
    /// Returns the contract's values.
    #[must_use]
    pub fn new(token_seed: Secret, domain: Option<String>) -> Self {
        Self {
            token_seed,
            admin_token: None,
            user_tokens: UserTokens::default(),
            identity: Identity::new(ephemeral_key(), PLAIN_URL.to_owned()),
            team_rate: None,
            address_rate: None,
            idempotency_retention: Duration::from_secs(24 * 60 * 60),
            domain,
            client_id: CLIENT_ID.to_owned(),
            request_bytes_max: 16 * 1024 * 1024,
            request_deadline: Duration::from_secs(70),
            body_read_max: Duration::from_secs(10),
            create_budget: Duration::from_secs(55),
            // A third of the official SDKs' timeout, so that two thirds remain for the start.
            template_wait_max: Duration::from_secs(20),
            route_lease: Duration::from_secs(60),
            reconcile_interval: Duration::from_secs(20),
            node_compare_wait_max: Duration::from_secs(2),
            usage_interval: Duration::from_secs(60),
        }
    }
}

/// Settings for the login of users, with a password or at an OpenID Connect provider.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Key that signs access tokens of logins. A new key invalidates all access tokens; clients then renew them.
    pub signing_key: Secret,
    /// URL of this server without a domain name, for example `http://127.0.0.1:3000`.
    pub plain_url: String,
    /// Provider that authenticates users; with `None`, users log in with a password.
    pub provider: Option<Provider>,
    /// Lifetime of an access token. Clients renew it one minute before it expires.
    pub token_lifetime: Duration,
    /// Lifetime of a login with a password. Renewals do not extend it.
    pub login_lifetime: Duration,
    /// Lifetime of a login at the provider. Renewals do not extend it.
    ///
    /// It is short, because this server does not learn that the provider locked a user out.
    pub provider_login_lifetime: Duration,
    /// Limit of password attempts for one account from one network.
    pub account_attempts: Rate,
    /// Limit of attempts for one account from all networks together, except networks that logged in to it before.
    pub account_attempts_all_networks: Rate,
    /// Limit of password attempts for all accounts from one network.
    pub network_attempts: Rate,
}

/// An OpenID Connect provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Issuer URL, below which the provider's configuration is published: `https://…`, or `http://…` on this host.
    pub issuer: String,
    /// Client ID of this server at the provider.
    pub client_id: String,
    /// Client secret of this server; with `None`, this server is a public client.
    pub client_secret: Option<Secret>,
}

impl Identity {
    /// Returns the settings for logins with passwords, with default lifetimes and limits.
    #[must_use]
    pub fn new(signing_key: Secret, plain_url: String) -> Self {
        let quarter = Duration::from_secs(15 * 60);
        let rate = |requests| Rate { requests, per: quarter };
        Self {
            signing_key,
            plain_url,
            provider: None,
            token_lifetime: Duration::from_secs(60 * 60),
            login_lifetime: Duration::from_secs(90 * 24 * 60 * 60),
            provider_login_lifetime: Duration::from_secs(24 * 60 * 60),
            account_attempts: rate(ACCOUNT_ATTEMPTS),
            account_attempts_all_networks: rate(ACCOUNT_ATTEMPTS_ALL_NETWORKS),
            network_attempts: rate(NETWORK_ATTEMPTS),
        }
    }
}

/// Returns a random key, for a configuration without a persistent one.
fn ephemeral_key() -> Secret {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    Secret::new(hex::encode(bytes))
}

/// Rate limit in the form of a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Capacity of the bucket, which is also the largest burst.
    pub requests: NonZeroU32,
    /// Time in which an empty bucket is refilled, evenly.
    pub per: Duration,
}

/// Rules for user tokens of an external issuer. Without a key, no token is accepted.
#[derive(Debug, Clone)]
pub struct UserTokens {
    /// Secrets shared with the issuer (HS256), as Supabase has them.
    pub secrets: Vec<Secret>,
    /// The issuer's published keys: a JSON Web Key Set with RSA, EC or Ed25519 keys.
    pub jwks: Option<KeySet>,
    /// Minimum time between two fetches of the key set, when tokens name unknown keys.
    pub refetch_interval_min: Duration,
    /// Required audience (`aud`); with `None`, the audience is not checked.
    pub audience: Option<String>,
    /// Required issuer (`iss`); with `None`, the issuer is not checked.
    pub issuer: Option<String>,
    /// Maximum difference between the clocks of the issuer and this server.
    pub leeway: Duration,
}

/// Source of a JSON Web Key Set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySet {
    /// Text of the key set.
    Text(String),
    /// URL of the key set: `https://…`.
    Address(String),
    /// Issuer URL. The issuer's configuration has the URL of the key set (OpenID Connect Discovery 1.0).
    Issuer(String),
}

impl Default for UserTokens {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            jwks: None,
            refetch_interval_min: Duration::from_secs(30),
            audience: None,
            issuer: None,
            leeway: Duration::from_secs(60),
        }
    }
}

/// A node of the cluster.
#[derive(Clone)]
pub struct Node {
    /// Name of the node.
    pub id: NodeId,
    /// Client for the node's cluster API.
    pub client: NodeClient,
    /// Address on which the node's proxy listens.
    pub proxy: NodeAddress,
}

/// Stores for logs and metrics.
#[derive(Clone)]
pub struct Analytics {
    /// Logs of sandboxes. Nodes write them, this role only reads.
    pub logs: Arc<dyn Logs>,
    /// Resource usage of sandboxes. Nodes write it, this role only reads.
    pub samples: Arc<dyn Samples>,
    /// Sandbox counts of teams. This role writes and reads them.
    pub usages: Arc<dyn Usages>,
}

impl Analytics {
    /// Uses one backend for all stores.
    pub fn new<B: Logs + Samples + Usages + 'static>(backend: Arc<B>) -> Self {
        Self { logs: backend.clone(), samples: backend.clone(), usages: backend }
    }
}
