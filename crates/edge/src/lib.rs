//! Edge role: forwards requests of clients to the node that runs their sandbox.
//!
//! ```text
//! client ──▶ Edge: which sandbox and port? ──▶ reserved? ──▶ route in the catalog? ──▶ the node's proxy ──▶ guest
//!                    400                       404           502, 403                  (sends its own errors)
//! ```
//!
//! The edge stores no state of sandboxes: it looks up the route of each request. When a sandbox is killed during a
//! stream, its node aborts the stream and the edge passes the abort on. The node decides if the guest is reachable, and
//! how many requests to it may be in flight.
//!
//! The route defines the access to the sandbox's ports: the traffic token, the host mask and the ports with TLS. None
//! of it applies to the guest daemon's port.
//!
//! Clients are not trusted: the private headers of Hearth's proxies are removed from their requests.

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
use hearth_types::{NodeAddress, Route, Visitors};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::request_limits::{LimitReached, RequestLimits};

/// Maximum number of client connections. Each takes two file descriptors, one towards its node.
const CONNECTIONS_MAX: u32 = 16_384;
/// Time for requests in flight to finish on shutdown. Streams take longer anyway, and their clients reconnect.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Traffic token of visitors of a private sandbox. It is not forwarded to the guest.
const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");

/// Limits and policies of an edge.
#[derive(Debug, Clone)]
pub struct Config {
    /// Maximum number of client connections.
    pub connections_max: u32,
    /// Maximum number of requests in flight, including upgraded streams.
    pub requests_max: usize,
    /// Maximum of these for the sandboxes of one team.
    pub team_requests_max: usize,
    /// Time for requests in flight to finish after shutdown began.
    pub drain_timeout: Duration,
    /// Policy for forwarding headers of requests; trust them only behind a proxy of the operator.
    pub forwarded: ForwardedPolicy,
}

impl Default for Config {
    /// Returns the configuration for clients that connect directly.
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
    /// Returns an edge that looks up routes in `catalog`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(config: Config, catalog: Catalog) -> Self {
        let limits = Arc::new(RequestLimits::new(config.requests_max, config.team_requests_max));
        let engine = Engine::new(hearth_proxy::Config::for_nodes());
        Self { config: Arc::new(config), catalog, limits, engine }
    }

    /// Serves HTTP/1.1 and HTTP/2 until `shutdown`, drains, and returns the number of aborted connections.
    ///
    /// Upgraded streams continue until [`shutdown`](Self::shutdown). Cancelling it aborts all requests.
    pub async fn serve(&self, listener: impl Into<Listener>, shutdown: CancellationToken) -> usize {
        let edge = self.clone();
        let handler = tower::service_fn(move |request| {
            let edge = edge.clone();
            // Boxed, because the callers move this large future several times.
            Box::pin(async move { Ok::<_, Infallible>(edge.handle(request).await) })
        });
        serve::serve(listener, handler, self.server_config(), shutdown).await
    }

    /// Returns the configuration of a server for this edge.
    #[must_use]
    pub fn server_config(&self) -> serve::Config {
        let Config { connections_max, drain_timeout, .. } = *self.config;
        serve::Config { connections_max, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout }
    }

    /// Aborts the remaining requests to nodes and the upgraded streams.
    pub async fn shutdown(&self) {
        self.engine.shutdown().await;
    }

    /// Handles one request, for servers that also have other handlers.
    ///
    /// Cancel safe in the sense of HTTP: the guest sees its connection close.
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
                tracing::warn!(sandbox = %sandbox_id, error = %hearth_stdx::chain(&error), "route lookup failed");
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
        // Hearth's servers add the peer.
        let peer = parts.extensions.remove::<Peer>().unwrap_or_else(Peer::unix);
        set_forwarded(&mut parts, self.config.forwarded, &peer);
        let sandbox_id = target.sandbox_id.clone();
        let tls = route.https_ports.contains(&target.port);
        if target.port == internal::DAEMON_PORT {
            // The daemon responds in HTTP/1.1, so HTTP/2 to its node has no advantage.
            parts.version = parts.version.min(Version::HTTP_11);
        } else {
            parts.headers.remove(TRAFFIC_TOKEN);
            let masked = route.host_mask.as_ref().map(|mask| mask.host(target.port));
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

/// Returns the rejection of a visitor without access to the port.
fn rejection<'a>(route: &Route, target: &'a Target, headers: &HeaderMap) -> Option<Page<'a>> {
    // The daemon's port has its own token, which the daemon checks.
    let Visitors::WithToken(token) = &route.visitors else { return None };
    if target.port == internal::DAEMON_PORT {
        return None;
    }
    let sandbox_id = &target.sandbox_id;
    let Some(shown) = headers.get(TRAFFIC_TOKEN) else { return Some(Page::TokenMissing { sandbox_id }) };
    let is_right = bool::from(token.expose().as_bytes().ct_eq(shown.as_bytes()));
    (!is_right).then_some(Page::TokenInvalid { sandbox_id })
}

/// Returns true for a health check of the edge itself, which load balancers address by IP.
fn is_health_check(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && request.uri().path() == "/health"
}

/// Logs a failed request.
///
/// A node sends a response even if a sandbox is unreachable, so a missing response is a failure of the node.
fn log_failure(error: &Error, target: &Target, node: &NodeAddress) {
    let (sandbox, chain) = (&target.sandbox_id, hearth_stdx::chain(error));
    match error {
        Error::Dial(_) | Error::NoResponse(_) | Error::UnexpectedUpgrade => {
            tracing::warn!(%sandbox, %node, error = %chain, "node sent no response");
        }
        Error::Closed | Error::TooManyRequests { .. } | Error::Tunnel => {
            tracing::debug!(%sandbox, %node, error = %chain, "request not forwarded");
        }
    }
}
