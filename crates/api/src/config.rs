//! What the control role is told by whoever starts it.

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
