//! What the control role is told by whoever starts it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{Logs, Samples, Usages};
use hearth_cluster_api::NodeClient;
use hearth_types::{NodeAddress, NodeId, Secret};

/// The constant that E2B sends as `clientID`. Nobody reads it, but old clients fail without it.
const CLIENT_ID: &str = "6532622b";

/// Where a server is reached whose address nobody told: the contract's port.
const PLAIN_URL: &str = "http://127.0.0.1:3000";
/// More than a person mistypes, in a quarter of an hour, and too few to guess a password of twelve characters.
const ACCOUNT_ATTEMPTS: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
/// As many as from one network: many networks together guess one password no faster than one of them.
const ACCOUNT_ATTEMPTS_IN_ALL: NonZeroU32 = NETWORK_ATTEMPTS;
/// Several people may come from one network.
const NETWORK_ATTEMPTS: NonZeroU32 = NonZeroU32::new(50).expect("not zero");

/// How the control role behaves. [`Config::new`] has the contract's values; tests shorten some.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the tokens of sandboxes are made from. It has to stay the same for as long as a sandbox lives.
    pub token_seed: Secret,
    /// What operators prove themselves with; `None`: nobody is one.
    pub admin_token: Option<Secret>,
    /// Which tokens of users are believed, besides our own.
    pub user_tokens: UserTokens,
    /// How users log in here.
    pub identity: Identity,
    /// How often a team may call; `None`: as often as it likes.
    pub team_rate: Option<Rate>,
    /// How often an address may call; `None`: as often as it likes.
    pub address_rate: Option<Rate>,
    /// How long the answer to a request with an idempotency key is kept.
    pub idempotency_kept: Duration,
    /// Domain of sandbox host names, with a port if it has one; `None`: clients use the one they were configured with.
    pub domain: Option<String>,
    /// What is sent as `clientID`.
    pub client_id: String,
    /// Longest request body.
    pub request_bytes_max: usize,
    /// Longest time a request may take as a whole.
    pub request_deadline: Duration,
    /// Longest time a client may take to send a body.
    pub body_read_max: Duration,
    /// Longest time in which a sandbox has to be started. Shorter than the request deadline, so that the client hears
    /// why it was not, and shorter than what the client of nodes waits, so that it is this role that decides.
    pub create_budget: Duration,
    /// How long a route is found after this role was last sure of it.
    pub route_lease: Duration,
    /// Time between two comparisons of what should be with what is.
    pub reconcile_interval: Duration,
    /// How long [`Api::start`](crate::Api::start) waits for nodes, so that the first answers are not about sandboxes
    /// that are long gone. A node that takes longer is compared when it comes.
    pub node_patience: Duration,
    /// How often it is kept how many sandboxes teams had.
    pub usage_interval: Duration,
}

impl Config {
    /// The contract's values.
    #[must_use]
    pub fn new(token_seed: Secret, domain: Option<String>) -> Self {
        Self {
            token_seed,
            admin_token: None,
            user_tokens: UserTokens::default(),
            identity: Identity::new(passing_key(), PLAIN_URL.to_owned()),
            team_rate: None,
            address_rate: None,
            idempotency_kept: Duration::from_secs(24 * 60 * 60),
            domain,
            client_id: CLIENT_ID.to_owned(),
            request_bytes_max: 16 * 1024 * 1024,
            request_deadline: Duration::from_secs(70),
            body_read_max: Duration::from_secs(10),
            create_budget: Duration::from_secs(55),
            route_lease: Duration::from_secs(60),
            reconcile_interval: Duration::from_secs(20),
            node_patience: Duration::from_secs(2),
            usage_interval: Duration::from_secs(60),
        }
    }
}

/// How users log in here: by passwords, or by the word of their identity provider.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What signs the access tokens of logins. Another key makes all of them worthless; clients renew them.
    pub signing_key: Secret,
    /// Where this server is reached without its names: `http://127.0.0.1:3000`.
    pub plain_url: String,
    /// Who says who somebody is; `None`: passwords do.
    pub provider: Option<Provider>,
    /// How long an access token is good for. Clients renew it a minute before.
    pub token_lifetime: Duration,
    /// How long a login lasts, however often it is renewed, that began with a password.
    pub login_lifetime: Duration,
    /// The same for one that began at the identity provider: whoever is locked out there is soon locked out here.
    pub provided_login_lifetime: Duration,
    /// Limit of password attempts for one account from one network.
    pub account_attempts: Rate,
    /// Limit of attempts for one account from all networks together, except networks that logged in to it before.
    pub account_attempts_in_all: Rate,
    /// How often passwords may be tried from one network.
    pub network_attempts: Rate,
}

/// An OpenID Connect provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name for itself, below which its configuration is found: `https://…`, or `http://…` on this host.
    pub issuer: String,
    /// What it calls this server.
    pub client_id: String,
    /// What this server proves itself to it with; `None`: it is a public client.
    pub client_secret: Option<Secret>,
}

impl Identity {
    /// By passwords, with the usual times.
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
            provided_login_lifetime: Duration::from_secs(24 * 60 * 60),
            account_attempts: rate(ACCOUNT_ATTEMPTS),
            account_attempts_in_all: rate(ACCOUNT_ATTEMPTS_IN_ALL),
            network_attempts: rate(NETWORK_ATTEMPTS),
        }
    }
}

/// A key for as long as this process lives, for those who name none.
fn passing_key() -> Secret {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    Secret::new(hex::encode(bytes))
}

/// How often somebody may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many requests, also all at once,
    pub requests: NonZeroU32,
    /// in this time, evenly refilled.
    pub per: Duration,
}

/// Which tokens of users are believed: those that one of the keys signed. None, unless there is a key.
#[derive(Debug, Clone)]
pub struct UserTokens {
    /// Secrets shared with the issuer (HS256), as Supabase has them.
    pub secrets: Vec<Secret>,
    /// The issuer's published keys: a JSON Web Key Set with RSA, EC or Ed25519 keys.
    pub jwks: Option<KeySet>,
    /// Time between two looks at an address at least, when tokens name keys that are not known.
    pub refetch_pause: Duration,
    /// Whom a token has to be for (`aud`), if that is to be checked.
    pub audience: Option<String>,
    /// Who has to have issued it (`iss`), if that is to be checked.
    pub issuer: Option<String>,
    /// How far the issuer's clock may be away from ours.
    pub leeway: Duration,
}

/// Where a set of keys is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySet {
    /// This is it.
    Text(String),
    /// The issuer publishes it there: `https://…`.
    Address(String),
    /// The issuer of this name tells where, in its configuration (OpenID Connect Discovery 1.0).
    Issuer(String),
}

impl Default for UserTokens {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            jwks: None,
            refetch_pause: Duration::from_secs(30),
            audience: None,
            issuer: None,
            leeway: Duration::from_secs(60),
        }
    }
}

/// A node of the cluster.
#[derive(Clone)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Speaks to its cluster API.
    pub client: NodeClient,
    /// Where its proxy listens.
    pub proxy: NodeAddress,
}

/// Where it is kept what sandboxes say and use, and what teams use.
#[derive(Clone)]
pub struct Analytics {
    /// What sandboxes said. Nodes append to it, this role only reads.
    pub logs: Arc<dyn Logs>,
    /// What they used, in the same way.
    pub samples: Arc<dyn Samples>,
    /// What teams used. This role keeps and reads it.
    pub usages: Arc<dyn Usages>,
}

impl Analytics {
    /// All in one place.
    pub fn new<B: Logs + Samples + Usages + 'static>(backend: Arc<B>) -> Self {
        Self { logs: backend.clone(), samples: backend.clone(), usages: backend }
    }
}
