//! The node-side proxy: requests of edges in, to guests' ports.
//!
//! An edge says in headers that clients cannot set which sandbox, execution and port a request is for. The registry says how
//! that guest is reached; an execution that is not the running one is as unknown as one that never was.

use hearth_proxy::dial::{Stream, retry_refused};
use hearth_proxy::hop::Address;
use hearth_proxy::pages::{Audience, Page};
use hearth_proxy::tls::Connector;
use hearth_proxy::{Body, Engine, Key, body};
use hearth_sandbox::Reach;
use hearth_types::ExecutionId;
use http::{Request, Response, StatusCode};

use crate::registry::Registry;

/// The proxy. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ReverseProxy {
    registry: Registry,
    engine: Engine<ExecutionId>,
    connector: Connector,
}

impl ReverseProxy {
    /// Whoever ends a sandbox closes its execution in the engine, which cuts its streams.
    pub(crate) fn new(registry: Registry, engine: Engine<ExecutionId>) -> Self {
        Self { registry, engine, connector: Connector::unverified() }
    }

    /// The guest's answer, or a page that says why there is none. Cancel safe in the sense of HTTP: the guest sees its
    /// connection close.
    pub(crate) async fn answer(self, mut request: Request<Body>) -> Response<Body> {
        let audience = Audience::of(request.headers());
        let address = match Address::take(request.headers_mut()) {
            Ok(address) => address,
            Err(error) => return misdirected(&error.to_string()),
        };
        let Some(reach) = self.reach(&address) else {
            return Page::NotFound { sandbox_id: &address.sandbox_id }.response(audience);
        };
        let key = Key { group: address.execution_id, port: Some(address.port) };
        let (reach, connector) = (&reach, &self.connector);
        let dial = |best| async move {
            let stream = retry_refused(|| reach.dial(address.port)).await?;
            // A port speaks TLS or does not for as long as the sandbox lives, so that all connections to it are alike.
            let stream = if address.tls { connector.connect(stream, best).await? } else { Stream::Tcp(stream) };
            Ok(stream.into())
        };
        match self.engine.forward_agreed(&key, dial, request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(sandbox = %address.sandbox_id, port = address.port, %error, "a guest gave no answer");
                error.page(&address.sandbox_id, address.port).response(audience)
            }
        }
    }

    fn reach(&self, address: &Address) -> Option<Reach> {
        let handle = self.registry.find(&address.sandbox_id)?;
        (handle.execution_id() == address.execution_id).then(|| handle.reach().cloned())?
    }
}

/// To somebody who is no edge of ours.
fn misdirected(text: &str) -> Response<Body> {
    let mut response = Response::new(body::full(format!("{text}\n")));
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    response
}
