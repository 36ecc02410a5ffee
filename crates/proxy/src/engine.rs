//! One request to an upstream and its answer back.
//!
//! ```text
//! Engine ── map ──▶ Group (a sandbox's execution, or a node)      cut or close: every connection of it ends at once
//!                     ├─ requests under way (bounded)
//!                     └─ idle connections, by port (bounded)
//!
//! forward: admitted ─▶ idle connection, or dialled ─▶ head sent ─▶ head received ─▶ answer's body streams to the caller
//!             │                    ▲                      │               │                    │
//!             │                    └── stale, once ───────┘               └─ 101: spliced      └─ ended: idle again
//!             └ too many: refused
//! ```
//!
//! A connection speaks HTTP/1.1 or HTTP/2, see [`protocol`], and carries one request at a time.
//!
//! Bodies stream in both directions at the same time and are held nowhere: a slow reader slows the writer down. An upstream may
//! answer before it has read the request. When either side goes away, the other is told: a client that leaves closes the
//! upstream connection, an upstream that breaks off ends the answer with an error and not with its proper end.
//!
//! Whoever waits for an answer or reads it moves the bytes of the connection ([`drive`]). Tasks: one for each connection whose
//! request goes on beside its answer, those of [`http2`], one for each upgraded stream, one that sweeps what was idle too long; all belong to the
//! engine. Locks are held for a few map operations and a look at an idle socket, and never across an await.

mod connection;
mod connection_io;
mod exchange;
mod group;
mod http1;
mod http2;
mod protocol;
mod replay;
mod response;
mod response_limits;
mod splice;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hearth_stdx::TaskSet;
use hearth_types::SandboxId;
use http::{Method, Request, Response};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::dial::{NewConnection, Protocol};
use crate::engine::group::{Group, Totals};
use crate::pages::Page;

/// How often idle connections are looked through.
const SWEEP_PERIOD: Duration = Duration::from_secs(15);
/// How many closed groups are remembered, so that a request that was on its way while its sandbox was closed does not open it
/// again. Such a request is at most moments behind.
const CLOSED_MAX: usize = 16_384;
/// How long the engine's tasks may take to end after they were cut. They only have to be polled once.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Servers at the other end of an engine's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Programs of users, written by anybody: header names are sent in their canonical case (`Host`), because some programs
    /// compare them case-sensitively, and a connection that may hold bytes nobody asked for is not used again.
    Guests,
    /// Proxies of this crate.
    Nodes,
}

/// Bounds of an engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Servers that requests are sent to.
    pub destination: Destination,
    /// Most requests and upgraded streams of one group at a time.
    pub requests_per_group_max: usize,
    /// Most requests and upgraded streams of all groups at a time.
    pub requests_max: usize,
    /// Most idle connections kept for one key.
    pub idle_per_key_max: usize,
    /// Most idle connections kept for all keys: a guest may have thousands of ports.
    pub idle_max: usize,
    /// How long a connection is kept idle. Less than the upstream keeps it, or requests meet closed connections.
    pub idle_timeout: Duration,
}

impl Config {
    /// For a node, whose groups are sandboxes: the guest daemon serves hundreds of streams and closes connections that were idle
    /// for 640 s.
    #[must_use]
    pub fn for_guests() -> Self {
        Self {
            destination: Destination::Guests,
            requests_per_group_max: 1024,
            requests_max: 16 * 1024,
            idle_per_key_max: 32,
            idle_max: 4096,
            idle_timeout: Duration::from_secs(600),
        }
    }

    /// For an edge, whose groups are nodes: they keep connections idle longer than this, see
    /// [`IDLE_TIMEOUT`](crate::serve::IDLE_TIMEOUT). How many requests there are is bounded where they come in.
    #[must_use]
    pub fn for_nodes() -> Self {
        Self {
            destination: Destination::Nodes,
            requests_per_group_max: usize::MAX >> 4,
            requests_max: usize::MAX >> 4,
            idle_per_key_max: 256,
            idle_max: 4096,
            idle_timeout: Duration::from_secs(600),
        }
    }
}

/// What a connection leads to. Requests with equal keys share connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key<G> {
    /// What is counted, cut and closed together: a sandbox's execution, or a node.
    pub group: G,
    /// Which port of it, where connections to its ports lead to different servers.
    pub port: Option<u16>,
}

/// Why there is no answer of the upstream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The group, or the engine, was cut or closed. The request may have had its effect.
    #[error("the upstream was closed")]
    Closed,
    /// The group has as many requests under way as it may have. Nothing was sent.
    #[error("{limit} requests to the upstream are already under way")]
    TooManyRequests {
        /// The bound.
        limit: usize,
    },
    /// No connection. Nothing was sent.
    #[error("connecting to the upstream")]
    Dial(#[source] io::Error),
    /// The connection ended, or something came that is no HTTP. The request may have had its effect.
    #[error("waiting for the upstream's answer")]
    NoResponse(#[source] hyper::Error),
    /// The upstream changed the protocol without having been asked to.
    #[error("the upstream switched protocols unasked")]
    UnexpectedUpgrade,
    /// `CONNECT` asks for a tunnel to anywhere, which nobody gets here. Nothing was sent.
    #[error("refusing to open a tunnel")]
    Tunnel,
}

impl Error {
    /// The page that tells the client, where the upstream is a port of this sandbox.
    #[must_use]
    pub fn page<'a>(&self, sandbox_id: &'a SandboxId, port: u16) -> Page<'a> {
        match self {
            Self::Closed => Page::NotFound { sandbox_id },
            Self::TooManyRequests { limit } => Page::TooManyConnections { sandbox_id, limit: *limit },
            Self::Dial(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Page::PortClosed { sandbox_id, port }
            }
            Self::Dial(_) | Self::NoResponse(_) | Self::UnexpectedUpgrade | Self::Tunnel => {
                Page::Unreachable { sandbox_id }
            }
        }
    }
}

/// Forwards requests. Cheap to clone: clones share connections and bounds. When the last clone is dropped, everything is cut.
#[derive(Debug)]
pub struct Engine<G> {
    inner: Arc<Inner<G>>,
}

impl<G> Clone for Engine<G> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<G> {
    config: Config,
    groups: Mutex<Groups<G>>,
    totals: Arc<Totals>,
    tasks: TaskSet,
}

/// Value that lives as long as a forwarded request: until the request and its response, or the upgraded stream, have
/// ended. Its `Drop` undoes what the caller counted or reserved.
pub type RequestGuard = Box<dyn Any + Send + Sync>;

/// Request to forward, and the way to its upstream.
#[derive(Debug)]
pub struct UpstreamRequest<'a, G, D> {
    /// Selects the group that counts the request, and the connections that can be reused.
    pub key: &'a Key<G>,
    /// Opens a connection. Its argument is the newest HTTP version that the connection may negotiate, as TLS does. Called
    /// when no idle connection is available, and again if an idle one turns out to be closed.
    pub dial: D,
    /// The request, as the client sent it or as the caller changed it.
    pub request: Request<Body>,
    /// Dropped when the request is over.
    pub guard: Option<RequestGuard>,
}

#[derive(Debug)]
struct Groups<G> {
    open: HashMap<G, Arc<Group>>,
    /// Closed for good, oldest first.
    closed: VecDeque<G>,
}

impl<G> Drop for Inner<G> {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl<G> Inner<G> {
    fn groups(&self) -> MutexGuard<'_, Groups<G>> {
        // Every section is one step on valid state, so a panic elsewhere leaves it valid.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Hash + Eq + Clone + Debug + Send + Sync + 'static> Engine<G> {
    /// An engine without connections.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let groups = Mutex::new(Groups { open: HashMap::new(), closed: VecDeque::new() });
        let inner = Arc::new(Inner { config, groups, totals: Arc::default(), tasks: TaskSet::new() });
        inner.tasks.spawn("idle connections", sweep(Arc::downgrade(&inner), inner.tasks.token()));
        Self { inner }
    }

    /// Sends a request to an upstream and returns its response, whose body streams.
    ///
    /// The request is sent with the path, headers and body it has, except for headers that
    /// [end at a proxy](crate::headers). An upgrade request is passed on; on `101` both connections are spliced.
    ///
    /// Cancel safe in the sense of HTTP: the upstream sees its connection close.
    ///
    /// # Errors
    /// See [`Error`]. Errors after the head of the response are in its body.
    pub async fn forward<D, F>(&self, forwarded: UpstreamRequest<'_, G, D>) -> Result<Response<Body>, Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<NewConnection>>,
    {
        let UpstreamRequest { key, dial, request, guard } = forwarded;
        if request.method() == Method::CONNECT {
            return Err(Error::Tunnel);
        }
        let group = self.group(&key.group).ok_or(Error::Closed)?;
        let admitted = Group::admit(&group, key.port, &self.inner.config, guard)?;
        let abort = admitted.abort_token();
        // Pinned here, because by value it would be kept twice.
        let exchange = pin!(self.exchange(admitted, dial, request));
        let answered = abort.run_until_cancelled(exchange).await;
        match answered {
            // Being cut shows as a broken connection, too.
            Some(Err(_)) | None if abort.is_cancelled() => Err(Error::Closed),
            Some(result) => result,
            None => Err(Error::Closed),
        }
    }

    /// Ends every connection, stream and waiting request of a group at once: whoever reads from it sees an abort. Requests that
    /// come later are served anew.
    pub fn abort(&self, group: &G) {
        let open = self.inner.groups().open.get(group).cloned();
        if let Some(group) = open {
            group.abort(self.inner.tasks.token().child_token());
        }
    }

    /// Like [`cut`](Self::cut), and for good: later requests get [`Error::Closed`]. For groups that never come back, such as
    /// an execution that ended.
    pub fn close(&self, group: &G) {
        let open = {
            let mut groups = self.inner.groups();
            groups.closed.push_back(group.clone());
            if groups.closed.len() > CLOSED_MAX {
                groups.closed.pop_front();
            }
            groups.open.remove(group)
        };
        if let Some(group) = open {
            group.close();
        }
    }

    /// Cuts everything and waits until it has ended. Later requests get [`Error::Closed`].
    pub async fn shutdown(&self) {
        self.inner.tasks.shutdown(STOP_TIMEOUT).await;
        self.inner.groups().open.clear();
    }

    /// How many connections are idle, over all groups.
    #[must_use]
    pub fn idle_connections(&self) -> usize {
        self.inner.groups().open.values().map(|group| group.idle_connections()).sum()
    }

    /// How many requests and upgraded streams of this group are under way.
    #[must_use]
    pub fn requests(&self, group: &G) -> usize {
        self.inner.groups().open.get(group).map_or(0, |group| group.requests())
    }

    fn group(&self, key: &G) -> Option<Arc<Group>> {
        let mut groups = self.inner.groups();
        if let Some(group) = groups.open.get(key) {
            return Some(Arc::clone(group));
        }
        // Only the first request of a group comes here, so that looking through the closed ones is cheap enough.
        if groups.closed.contains(key) || self.inner.tasks.token().is_cancelled() {
            return None;
        }
        let group = Arc::new(Group::new(self.inner.tasks.token().child_token(), Arc::clone(&self.inner.totals)));
        groups.open.insert(key.clone(), Arc::clone(&group));
        Some(group)
    }
}

/// Drops connections that were idle too long, and groups that nothing is left of.
async fn sweep<G: Hash + Eq>(engine: Weak<Inner<G>>, stop: CancellationToken) {
    let mut period = tokio::time::interval(SWEEP_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(period.tick()).await.is_some() {
        let Some(inner) = engine.upgrade() else { return };
        // Each looks at its sockets, which others need not wait for.
        let open: Vec<_> = inner.groups().open.values().cloned().collect();
        for group in open {
            group.drop_expired();
        }
        // Another holder is a request that was let in or is about to be.
        inner.groups().open.retain(|_, group| Arc::strong_count(group) > 1 || !group.is_empty());
    }
}
