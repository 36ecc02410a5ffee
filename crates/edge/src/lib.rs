//! The edge role: from a client to the node that runs its sandbox.
//!
//! ```text
//! client ──▶ Edge: which sandbox and port? ──▶ reserved? ──▶ route in the catalog? ──▶ the node's proxy ──▶ guest
//!                    400                       404           502, 403                  (answers for itself)
//! ```
//!
//! The edge keeps nothing about sandboxes: each request looks its route up. What happens to a sandbox while a stream is open
//! shows on the way to its node, which cuts what it has to cut; the edge passes that on. Whether the guest can be reached, and
//! how many requests it gets at a time, is the node's to know and to tell.
//!
//! The route says who may visit the sandbox's ports and how they are spoken to: the traffic token, a masked host, TLS. None of it
//! is about the guest daemon's port.
//!
//! Clients are believed nothing: headers of our own conversation with nodes are removed from what they send.

#![forbid(unsafe_code)]

mod preflight;
mod request_limits;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hearth_catalog::Catalog;
use hearth_proxy::headers::{ForwardedPolicy, TargetHeader, set_forwarded, set_host};
use hearth_proxy::pages::{Audience, Page};
use hearth_proxy::serve::{self, Listener, Peer};
use hearth_proxy::target::{Target, TargetError};
use hearth_proxy::{Body, Engine, Error, Key, UpstreamRequest, body, dial, internal, pages};
use hearth_types::{NodeAddress, Route};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::request_limits::{LimitReached, RequestLimits};

/// Most connections of clients at a time. Each takes two file descriptors, one towards its node.
const CONNECTIONS_MAX: u32 = 16_384;
/// How long requests under way may take when the edge stops. Streams last longer anyway: their clients connect again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What visitors of a sandbox without public traffic show. It ends here: it is nothing for the guest.
const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");

/// How an edge works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most connections of clients at a time.
    pub connections_max: u32,
    /// Most requests under way at a time, upgraded streams among them.
    pub requests_max: usize,
    /// Of these, requests to the sandboxes of one team.
    pub team_requests_max: usize,
    /// How long requests under way may take after shutdown began.
    pub drain_timeout: Duration,
    /// Whether what requests say about earlier proxies is believed: only when there is one of the operator's own.
    pub forwarded: ForwardedPolicy,
}

impl Default for Config {
    /// For clients that connect directly.
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            requests_max: CONNECTIONS_MAX as usize,
            team_requests_max: CONNECTIONS_MAX as usize / 2,
            drain_timeout: DRAIN_TIMEOUT,
            forwarded: ForwardedPolicy::Replace,
        }
    }
}

/// The edge. Cheap to clone: clones share their connections to nodes.
#[derive(Debug, Clone)]
pub struct Edge {
    config: Arc<Config>,
    catalog: Catalog,
    limits: Arc<RequestLimits>,
    engine: Engine<NodeAddress>,
}

impl Edge {
    /// An edge that finds routes in `catalog`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(config: Config, catalog: Catalog) -> Self {
        let limits = Arc::new(RequestLimits::new(config.requests_max, config.team_requests_max));
        let engine = Engine::new(hearth_proxy::Config::for_nodes());
        Self { config: Arc::new(config), catalog, limits, engine }
    }

    /// Serves HTTP/1.1 and HTTP/2 until `shutdown`, then drains; returns how many connections had to be cut.
    /// Upgraded streams go on until [`shutdown`](Self::shutdown).
    ///
    /// Cancelling it cuts everything.
    pub async fn serve(&self, listener: impl Into<Listener>, shutdown: CancellationToken) -> usize {
        let edge = self.clone();
        let handler = tower::service_fn(move |request| {
            let edge = edge.clone();
            // Whatever holds it moves it several times, and it is large.
            Box::pin(async move { Ok::<_, Infallible>(edge.handle(request).await) })
        });
        serve::serve(listener, handler, self.server_config(), shutdown).await
    }

    /// The bounds of a server of it.
    #[must_use]
    pub fn server_config(&self) -> serve::Config {
        let Config { connections_max, drain_timeout, .. } = *self.config;
        serve::Config { connections_max, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout }
    }

    /// Cuts whatever is left of the way to the nodes, upgraded streams above all.
    pub async fn shutdown(&self) {
        self.engine.shutdown().await;
    }

    /// The answer to one request, for servers that have others to ask, too. Cancel safe in the sense of HTTP: the guest sees
    /// its connection close.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let target = match Target::of(&request) {
            Ok(target) => target,
            Err(TargetError::Host) if is_health_check(&request) => return Response::new(body::empty()),
            Err(error) => return preflight::respond(&request).unwrap_or_else(|| pages::target_error(error)),
        };
        let audience = Audience::of(request.headers());
        if target.port == internal::DAEMON_PORT
            && let Some(route) = internal::reserved_route(request.uri().path())
        {
            return Page::Reserved { route }.response(audience);
        }
        let sandbox_id = &target.sandbox_id;
        match self.catalog.find(sandbox_id).await {
            Ok(Some(route)) => match rejection(&route, &target, request.headers()) {
                Some(page) => page.response(audience),
                None => self.forward(&route, &target, request, audience).await,
            },
            Ok(None) => Page::NotFound { sandbox_id }.response(audience),
            Err(error) => {
                tracing::warn!(sandbox = %sandbox_id, error = %hearth_stdx::chain(&error), "could not look up a route");
                Page::Unreachable { sandbox_id }.response(audience)
            }
        }
    }

    async fn forward(
        &self,
        route: &Route,
        target: &Target,
        request: Request<Body>,
        audience: Audience,
    ) -> Response<Body> {
        let permit = match self.limits.admit(route, http_body::Body::size_hint(request.body()).upper()) {
            Ok(permit) => permit,
            Err(LimitReached { limit }) => {
                return Page::TooManyConnections { sandbox_id: &target.sandbox_id, limit }.response(audience);
            }
        };
        let (mut parts, body) = request.into_parts();
        // A server of ours says who it is.
        let peer = parts.extensions.remove::<Peer>().unwrap_or_else(Peer::unix);
        set_forwarded(&mut parts, self.config.forwarded, &peer);
        let sandbox_id = target.sandbox_id.clone();
        let tls = route.ingress.https_ports.contains(&target.port);
        if target.port == internal::DAEMON_PORT {
            // It answers in HTTP/1.1, so that the hop to its node needs no more.
            parts.version = parts.version.min(Version::HTTP_11);
        } else {
            parts.headers.remove(TRAFFIC_TOKEN);
            let masked = route.ingress.host_mask.as_ref().map(|mask| mask.host(target.port));
            if let Some(host) = masked.and_then(|host| HeaderValue::try_from(host).ok()) {
                set_host(&mut parts, host);
            }
        }
        TargetHeader { sandbox_id, execution_id: route.execution_id, port: target.port, tls }.write(&mut parts.headers);

        let key = Key { group: route.node_proxy.clone(), port: None };
        let dial = |_| async { Ok(dial::node(&key.group).await?.into()) };
        let request = Request::from_parts(parts, body);
        match self.engine.forward(UpstreamRequest { key: &key, dial, request, guard: Some(Box::new(permit)) }).await {
            Ok(response) => response,
            Err(error) => {
                log_failure(&error, target, &key.group);
                Page::Unreachable { sandbox_id: &target.sandbox_id }.response(audience)
            }
        }
    }
}

/// Why a visitor is not let in, if that is so.
fn rejection<'a>(route: &Route, target: &'a Target, headers: &HeaderMap) -> Option<Page<'a>> {
    // The daemon's port has a token of its own, which the daemon checks.
    if route.ingress.public || target.port == internal::DAEMON_PORT {
        return None;
    }
    let sandbox_id = &target.sandbox_id;
    let Some(shown) = headers.get(TRAFFIC_TOKEN) else { return Some(Page::TokenMissing { sandbox_id }) };
    let is_right =
        route.traffic_token.as_ref().is_some_and(|token| bool::from(token.expose().as_bytes().ct_eq(shown.as_bytes())));
    (!is_right).then_some(Page::TokenInvalid { sandbox_id })
}

/// Whether somebody asks the edge itself how it is: a load balancer, by address.
fn is_health_check(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && request.uri().path() == "/health"
}

/// A node answers for its sandboxes, also when they cannot be reached: silence is about the node.
fn log_failure(error: &Error, target: &Target, node: &NodeAddress) {
    let (sandbox, chain) = (&target.sandbox_id, hearth_stdx::chain(error));
    match error {
        Error::Dial(_) | Error::NoResponse(_) | Error::UnexpectedUpgrade => {
            tracing::warn!(%sandbox, %node, error = %chain, "a node gave no answer");
        }
        Error::Closed | Error::TooManyRequests { .. } | Error::Tunnel => {
            tracing::debug!(%sandbox, %node, error = %chain, "refused a request");
        }
    }
}
