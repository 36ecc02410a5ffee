//! The node-side proxy: forwards requests of edges to guests' ports.
//!
//! An edge sends sandbox, execution and port of a request in headers that clients cannot set. The registry provides the
//! connector to the guest. An execution other than the running one is reported as not found.

use hearth_proxy::dial::{Stream, retry_refused};
use hearth_proxy::headers::TargetHeader;
use hearth_proxy::pages::{Audience, Page};
use hearth_proxy::tls::Connector;
use hearth_proxy::{Body, Engine, Key, UpstreamRequest, body};
use hearth_sandbox::GuestConnector;
use hearth_types::ExecutionId;
use http::{Request, Response, StatusCode};

use crate::registry::Registry;

/// The proxy. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ReverseProxy {
    registry: Registry,
    engine: Engine<ExecutionId>,
    tls: Connector,
}

impl ReverseProxy {
    /// Creates a proxy. The registry closes the execution of an ended sandbox in `engine`, which closes its streams.
    pub(crate) fn new(registry: Registry, engine: Engine<ExecutionId>) -> Self {
        Self { registry, engine, tls: Connector::unverified() }
    }

    /// Returns the guest's response, or an error page if there is none.
    ///
    /// Cancel safe in the sense of HTTP: the guest sees its connection close.
    pub(crate) async fn handle(self, mut request: Request<Body>) -> Response<Body> {
        let audience = Audience::of(request.headers());
        let address = match TargetHeader::take(request.headers_mut()) {
            Ok(address) => address,
            Err(error) => return misdirected(&error.to_string()),
        };
        let Some(guest) = self.guest(&address) else {
            return Page::NotFound { sandbox_id: &address.sandbox_id }.response(audience);
        };
        let key = Key { group: address.execution_id, port: Some(address.port) };
        let (guest, tls) = (&guest, &self.tls);
        let dial = |best| async move {
            let stream = retry_refused(|| guest.connect(address.port)).await?;
            // `tls` is constant for a port while the sandbox lives, so all connections to the port are of one kind.
            let stream = if address.tls { tls.connect(stream, best).await? } else { Stream::Tcp(stream) };
            Ok(stream.into())
        };
        match self.engine.forward(UpstreamRequest { key: &key, dial, request, guard: None }).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(sandbox = %address.sandbox_id, port = address.port, %error, "guest did not respond");
                error.page(&address.sandbox_id, address.port).response(audience)
            }
        }
    }

    fn guest(&self, address: &TargetHeader) -> Option<GuestConnector> {
        let handle = self.registry.get(&address.sandbox_id)?;
        (handle.execution_id() == address.execution_id).then(|| handle.connector().cloned())?
    }
}

/// Response to a client that is not an edge.
fn misdirected(text: &str) -> Response<Body> {
    let mut response = Response::new(body::full(format!("{text}\n")));
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    response
}
