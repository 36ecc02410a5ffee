//! HTTP server and routes.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Json, Router, middleware};
use hearth_envd_api::filesystem::FilesystemExt as _;
use hearth_envd_api::process::ProcessExt as _;
use hearth_types::guest;
use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

use crate::connections::Connection;
use crate::failure::Failure;
use crate::filesystem::FilesystemService;
use crate::guard::guard;
use crate::metrics::{Meter, metrics};
use crate::process::ProcessService;
use crate::state::{SANDBOX_ID, State};
use crate::unread::RequestBody;
use crate::{collapse, files, freeze, init, log, relay, rpc};

/// Largest body of `/init` in bytes: variables and a few texts.
const INIT_BYTES_MAX: usize = 4 << 20;
/// Largest body of `/files/compose` in bytes: a list of paths.
const COMPOSE_BYTES_MAX: usize = 16 << 20;
/// Header limit of a request. Metadata is sent as headers, possibly hundreds.
const HEADERS_MAX: usize = 512;
/// Time that a connection may wait for its next request.
///
/// Longer than the proxy's idle timeout (620 s), so that the proxy never sends on a connection that the daemon is
/// closing. Measured by the monotonic clock, so a pause does not count.
const IDLE_MAX: Duration = Duration::from_secs(640);
/// Pause after a failed accept, which is usually caused by a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the process exits.
pub(crate) async fn serve(port: u16, state: Arc<State>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    if state.in_microvm() {
        tokio::spawn(relay::run(guest::ADDRESS, Arc::clone(&state)));
    }
    let processes = Arc::new(ProcessService::new(Arc::clone(&state)));
    tokio::spawn(Arc::clone(&processes).release_idle_memory());
    let router = router(Arc::clone(&state), processes);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, router.clone(), Arc::clone(&state)));
            }
            Err(error) => {
                state.log().error("envd", format!("accepting a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves HTTP/1.1 on a connection.
///
/// Requests and replies have no time limit: streams may be silent for days. A client that closes its side is
/// disconnected, and its call is cancelled.
async fn connection(stream: TcpStream, router: Router, state: Arc<State>) {
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let _ = stream.set_nodelay(true);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_MAX).max_headers(HEADERS_MAX);
    let (connection, registration) = state.connections.register(local, peer);
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection);
        request.map(RequestBody::new)
    });
    // An error means that the client disconnected. Dropping the connection cancels its calls, as a disconnect does.
    tokio::select! {
        biased;
        () = registration.dropped.cancelled() => {}
        _ = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)) => {}
    }
}

fn router(state: Arc<State>, processes: Arc<ProcessService>) -> Router {
    let files = Arc::new(FilesystemService::new(Arc::clone(&state)));
    let services = rpc::services(files.register(processes.register(connectrpc::Router::new())));
    let call = any(rpc::serve).with_state(services);
    let router = Router::new()
        .route("/process.Process/{method}", call.clone())
        .route("/filesystem.Filesystem/{method}", call)
        // `get` alone would also serve HEAD, which the contract does not permit.
        .route("/health", get(health).head(not_allowed))
        .route("/metrics", get(metrics).with_state(Arc::new(Meter::default())).head(not_allowed))
        .route("/envs", get(envs).head(not_allowed))
        .route("/files", get(files::download).post(files::upload).head(not_allowed))
        .route("/files/compose", post(files::compose).layer(DefaultBodyLimit::max(COMPOSE_BYTES_MAX)))
        .route("/me", get(me).head(not_allowed))
        // Routes for the host only; the edge rejects requests to them.
        .route("/logs", get(log::logs).head(not_allowed))
        .route("/freeze", post(freeze::freeze))
        .route("/unfreeze", post(freeze::unfreeze))
        .route("/fsfreeze", post(freeze::fsfreeze))
        .route("/fsthaw", post(freeze::fsthaw))
        .route("/collapse", post(collapse::collapse))
        .route("/upgrade", post(upgrade))
        .route("/init", post(init::init).layer(DefaultBodyLimit::max(INIT_BYTES_MAX)));
    router
        .fallback(|| async { not_found() })
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard))
        .with_state(state)
}

async fn health() -> Response {
    (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response()
}

async fn envs(Extract(state): Extract<Arc<State>>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(state.envs())).into_response()
}

/// Returns the sandbox's identity, only to programs inside of it.
async fn me(Extract(state): Extract<Arc<State>>, connection: Option<Extension<Connection>>) -> Response {
    match connection {
        Some(Extension(connection)) if connection.is_from_inside() => {
            let sandbox_id = state.envs().remove(SANDBOX_ID).unwrap_or_default();
            ([(header::CACHE_CONTROL, "no-store")], Json(json!({ "sandboxID": sandbox_id }))).into_response()
        }
        _ => not_found(),
    }
}

/// A node with a newer daemon makes a new snapshot; the daemon is never replaced under running processes.
async fn upgrade() -> Failure {
    Failure::new(StatusCode::NOT_IMPLEMENTED, "/upgrade is not supported by this guest daemon")
}

async fn not_allowed() -> StatusCode {
    StatusCode::METHOD_NOT_ALLOWED
}

/// Returns the reply for an unknown path.
pub(crate) fn not_found() -> Response {
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "404 page not found\n")
        .into_response()
}
