//! Routes and the server.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router, middleware};
use hearth_envd_api::filesystem::FilesystemExt as _;
use hearth_envd_api::process::ProcessExt as _;
use http::{StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use crate::failure::Failure;
use crate::filesystem::FilesystemService;
use crate::guard::guard;
use crate::metrics::{Meter, metrics};
use crate::process::ProcessService;
use crate::state::State;
use crate::{files, init, rpc};

/// Largest body of `/init`: variables and a few texts.
const INIT_BYTES_MAX: usize = 4 << 20;
/// Largest body of `/files/compose`: a list of paths.
const COMPOSE_BYTES_MAX: usize = 16 << 20;
/// Headers of a request. Metadata comes as headers, and there may be hundreds.
const HEADERS_MAX: usize = 512;
/// How long a connection may wait for its next request. Longer than the proxy keeps an idle one (620 s), so that it never
/// sends on a connection that is being closed. Measured by the monotonic clock, so a pause does not count.
const IDLE_MAX: Duration = Duration::from_secs(640);
/// Pause after a failure to accept, which most often is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the process ends.
pub(crate) async fn serve(port: u16, state: Arc<State>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let router = router(state);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, router.clone()));
            }
            Err(error) => {
                eprintln!("envd: accepting a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// HTTP/1.1. Requests and answers have no time limit: streams may be silent for days. A client that closes its side is gone,
/// and its call with it.
async fn connection(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_MAX).max_headers(HEADERS_MAX);
    // An error is the client's going away.
    let _ = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
}

fn router(state: Arc<State>) -> Router {
    let processes = Arc::new(ProcessService::new(Arc::clone(&state)));
    let files = Arc::new(FilesystemService::new(Arc::clone(&state)));
    let services = rpc::services(files.register(processes.register(connectrpc::Router::new())));
    let call = any(rpc::serve).with_state(services);
    let mut router = Router::new()
        .route("/process.Process/{method}", call.clone())
        .route("/filesystem.Filesystem/{method}", call)
        // `get` alone would answer HEAD as well, which the contract does not have.
        .route("/health", get(health).head(not_allowed))
        .route("/metrics", get(metrics).with_state(Arc::new(Meter::default())).head(not_allowed))
        .route("/envs", get(envs).head(not_allowed))
        .route("/files", get(files::download).post(files::upload).head(not_allowed))
        .route("/files/compose", post(files::compose).layer(DefaultBodyLimit::max(COMPOSE_BYTES_MAX)))
        .route("/init", post(init::init).layer(DefaultBodyLimit::max(INIT_BYTES_MAX)));
    for path in ["/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"] {
        router = router.route(path, post(move || later(path)));
    }
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

/// Routes of the contract that come later say so, with its error shape.
async fn later(path: &'static str) -> Failure {
    Failure::new(StatusCode::NOT_IMPLEMENTED, format!("{path} is not supported by this version of the guest daemon"))
}

async fn not_allowed() -> StatusCode {
    StatusCode::METHOD_NOT_ALLOWED
}

/// The answer of a path that nothing is at.
pub(crate) fn not_found() -> Response {
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "404 page not found\n")
        .into_response()
}
