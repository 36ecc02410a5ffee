//! HTTP server, routes and replies.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::context::{Execution, Refused};
use crate::contexts::{self, Contexts, Error};
use crate::language::Language;
use crate::options::Options;
use crate::{log, stream};

mod body;
mod cors;

use body::{Create, Execute};

/// Largest body in bytes: code, and variables.
const BODY_BYTES_MAX: usize = 32 << 20;
/// Headers of a request.
const HEADERS_MAX: usize = 100;
/// Connections at the same time: two for each client of a full queue in a few contexts.
const CONNECTIONS_MAX: usize = 1024;
/// Time that a connection may wait for its next request, longer than the edge's idle timeout of 600 s.
const IDLE_MAX: Duration = Duration::from_secs(640);
/// Pause after a failed accept, which is usually caused by a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Shared = State<Arc<Contexts>>;

/// Serves until the process exits.
pub(crate) async fn serve(options: Options) -> io::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    log::line("server started", &[("address", &listener.local_addr()?)]);
    contexts::remove_leftovers(&options.runtime);
    let contexts = Contexts::new(options);
    tokio::spawn(Arc::clone(&contexts).create_first());
    let router = router(contexts);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed. Further clients wait in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::line("accept failed", &[("error", &error)]);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves HTTP/1.1 on a connection. A client that closes its side is disconnected, which cancels its execution.
async fn connection(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_MAX).max_headers(HEADERS_MAX);
    // An error means that the client disconnected.
    let _ = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
}

fn router(contexts: Arc<Contexts>) -> Router {
    // `get` alone would also serve HEAD, which the contract does not permit.
    Router::new()
        .route("/health", get(health).head(not_allowed_get).fallback(not_allowed_get))
        .route("/execute", post(execute).fallback(not_allowed_post))
        .route("/contexts", get(list).post(create).head(not_allowed_both).fallback(not_allowed_both))
        .route("/contexts/{id}/restart", post(restart).fallback(not_allowed_post))
        .route("/contexts/{id}", axum::routing::delete(remove).fallback(not_allowed_delete))
        .fallback(async || detail(StatusCode::NOT_FOUND, "Not Found"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(cors::cors))
        .with_state(contexts)
}

async fn health(State(contexts): Shared) -> Json<&'static str> {
    contexts.ready().await;
    Json("OK")
}

async fn execute(
    State(contexts): Shared,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Response> {
    let Execute { code, context_id, language, variables } = Execute::parse(&headers, body)?;
    let context = match (context_id.filter(|id| !id.is_empty()), language.filter(|name| !name.is_empty())) {
        (Some(_), Some(_)) => {
            return Err(sentence(StatusCode::BAD_REQUEST, "Only one of context_id or language can be provided"));
        }
        (Some(id), None) => contexts.find_or_default(&id).await.map_err(not_created)?.ok_or_else(|| not_found(&id))?,
        (None, name) => {
            let language = Language::new(name.as_deref().unwrap_or_default());
            contexts.default_of(language).await.map_err(not_created)?
        }
    };
    let Some(share) = contexts.reserve_code(&code) else {
        return Err(sentence(
            StatusCode::TOO_MANY_REQUESTS,
            "Too much code is waiting; retry when executions have finished",
        ));
    };
    let (sender, events) = stream::channel();
    let token = headers.get("x-access-token").cloned();
    let id = &context.description.id;
    match context.execute(Execution { code, variables, token, stream: sender, share }) {
        Ok(()) => {
            let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
            Ok((headers, Body::from_stream(events)).into_response())
        }
        Err(Refused::Busy) => {
            let text = format!("Context {id} has too many waiting executions; retry when some have finished");
            Err(sentence(StatusCode::TOO_MANY_REQUESTS, &text))
        }
        Err(Refused::Deleted) => Err(not_found(id)),
    }
}

async fn list(State(contexts): Shared) -> Response {
    contexts.ready().await;
    Json(contexts.list()).into_response()
}

async fn create(
    State(contexts): Shared,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Response> {
    let Create { language, cwd } = Create::parse(&headers, body)?;
    let language = Language::new(language.as_deref().unwrap_or_default());
    let cwd = cwd.filter(|cwd| !cwd.is_empty()).unwrap_or_else(|| contexts.home());
    let context = contexts.create(language, cwd).await.map_err(not_created)?;
    Ok(Json(&context.description).into_response())
}

async fn restart(State(contexts): Shared, Path(id): Path<String>) -> Result<Response, Response> {
    let context = contexts.find(&id).ok_or_else(|| not_found(&id))?;
    match contexts.restart(&context).await {
        Ok(()) => Ok(Json(json!(null)).into_response()),
        Err(error) => {
            let text = format!("Failed to restart context {id}: {error}");
            Err(sentence(StatusCode::INTERNAL_SERVER_ERROR, &text))
        }
    }
}

async fn remove(State(contexts): Shared, Path(id): Path<String>) -> Result<Response, Response> {
    let context = contexts.find(&id).ok_or_else(|| not_found(&id))?;
    contexts.delete(&context).await;
    Ok(Json(json!(null)).into_response())
}

fn not_created(error: Error) -> Response {
    match error {
        Error::Create(crate::context::CreateError::Directory) => {
            sentence(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
        }
        Error::TooMany => sentence(StatusCode::TOO_MANY_REQUESTS, &format!("Failed to create context: {error}")),
        error => sentence(StatusCode::INTERNAL_SERVER_ERROR, &format!("Failed to create context: {error}")),
    }
}

fn not_found(id: &str) -> Response {
    sentence(StatusCode::NOT_FOUND, &format!("Context {id} not found"))
}

/// Reply with a bare sentence.
fn sentence(status: StatusCode, text: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text.to_owned()).into_response()
}

/// Reply of the framework of the reference.
fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}

fn not_allowed(allowed: &'static str) -> Response {
    let mut response = detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

async fn not_allowed_get() -> Response {
    not_allowed("GET")
}

async fn not_allowed_post() -> Response {
    not_allowed("POST")
}

async fn not_allowed_both() -> Response {
    not_allowed("GET, POST")
}

async fn not_allowed_delete() -> Response {
    not_allowed("DELETE")
}
