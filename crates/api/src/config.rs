//! What the control role is told by whoever starts it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{Logs, Samples, Usages};
use hearth_cluster_api::NodeClient;
use hearth_types::{NodeAddress, NodeId, Secret};

/// The constant that E2B sends as `clientID`. Nobody reads it, but old clients fail without it.
const CLIENT_ID: &str = "6532622b";

/// How the control role behaves. [`Config::new`] has the contract's values; tests shorten some.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the tokens of sandboxes are made from. It has to stay the same for as long as a sandbox lives.
    pub token_seed: Secret,
    /// What operators prove themselves with; `None`: nobody is one.
    pub admin_token: Option<Secret>,
    /// Which tokens of users are believed.
    pub user_tokens: UserTokens,
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
