//! Server for all names of the domain on one port: requests for the API's names go to the API, all others to the edge.

use std::convert::Infallible;
use std::pin::Pin;

use hearth_edge::Edge;
use hearth_proxy::Body;
use hearth_proxy::serve::{self, Listener};
use http::{Request, Response, header};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::domain::Domain;

/// Service that handles requests for the API.
pub(crate) type Handler = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

type ReplyFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Serves until `shutdown`, then drains. Returns the number of connections that were closed before they finished.
///
/// Each request is routed by its own host: HTTP/2 clients send requests for different names over one connection.
pub(crate) async fn serve(
    listener: Listener,
    domain: Domain,
    api: Handler,
    edge: Edge,
    shutdown: CancellationToken,
) -> usize {
    let bounds = edge.server_config();
    let handler = tower::service_fn(move |request: Request<Body>| -> ReplyFuture {
        if domain.is_api(authority(&request)) {
            return Box::pin(api.clone().oneshot(request));
        }
        let edge = edge.clone();
        Box::pin(async move { Ok(edge.handle(request).await) })
    });
    serve::serve(listener, handler, bounds, shutdown).await
}

/// Returns the host of a request. A host in the URI takes precedence over the header (RFC 9112, 3.2.2).
fn authority<B>(request: &Request<B>) -> &str {
    match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
}
