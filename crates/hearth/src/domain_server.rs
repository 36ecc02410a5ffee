//! The one port that all names of the domain are served on: the API's and those of sandboxes.

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

/// What answers requests.
pub(crate) type Handler = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Serves until `shutdown`, then drains. Returns how many connections had to be cut.
///
/// Every request is looked at: HTTP/2 clients send those for different names over one connection.
pub(crate) async fn serve(
    listener: Listener,
    domain: Domain,
    api: Handler,
    edge: Edge,
    shutdown: CancellationToken,
) -> usize {
    let bounds = edge.bounds();
    let handler = tower::service_fn(move |request: Request<Body>| -> Answer {
        if domain.is_api(authority(&request)) {
            return Box::pin(api.clone().oneshot(request));
        }
        let edge = edge.clone();
        Box::pin(async move { Ok(edge.answer(request).await) })
    });
    serve::serve(listener, handler, bounds, shutdown).await
}

/// The host a request is for. One in the URI outranks the header (RFC 9112, 3.2.2).
fn authority<B>(request: &Request<B>) -> &str {
    match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
}
