//! `/files`: download, upload, and composing files inside the guest.
//!
//! [`signature`] authorizes a request, [`download`] and [`upload`] carry it out; [`target`] is the only module that
//! writes files.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, Request, State as Extract};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::filesystem::metadata_of;
use crate::path_calls::Lane;
use crate::paths;
use crate::state::State;
use crate::users::User;

mod content;
mod download;
mod encoding;
pub(crate) mod fuzz;
mod gunzip;
mod input;
mod metadata;
mod multipart;
mod parameters;
mod pieces;
mod range;
mod signature;
mod target;
mod upload;

/// Sources whose mounts are determined before files are composed; the mounts of further ones are not.
const COMPOSED_MOUNTS_MAX: usize = 64;

/// Query parameters of downloads and uploads.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Parameters {
    path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    signature_expiration: Option<String>,
}

/// Description of a written file in a reply.
#[derive(Debug, Serialize)]
struct WrittenFile {
    path: String,
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl WrittenFile {
    /// Reads the metadata from the disk. Blocks.
    fn new(path: &Path) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { path: path.to_string_lossy().into_owned(), name, kind: "file", metadata: metadata_of(path) }
    }
}

pub(crate) async fn download(
    Extract(state): Extract<Arc<State>>,
    query: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let parameters = parameters(query)?;
    signature::check(&state, &parameters, signature::Operation::Read, &headers)?;
    let user = user(&state, parameters.username.as_deref())?;
    let path = resolve(&state, &user, parameters.path.as_deref().unwrap_or_default())?;
    let lane = state.file_calls.lane([path.as_path()]);
    download::serve(&path, lane, &headers).await
}

pub(crate) async fn upload(
    Extract(state): Extract<Arc<State>>,
    query: Result<Query<Parameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let parameters = parameters(query)?;
    signature::check(&state, &parameters, signature::Operation::Write, &parts.headers)?;
    if parameters.username.is_none() && state.default_user().is_empty() {
        return Err(Failure::bad_request("username not provided"));
    }
    let is_gzip = encoding::is_gzip_body(&parts.headers)?;
    let user = user(&state, parameters.username.as_deref())?;
    let metadata = metadata::from_headers(&parts.headers)?;
    let upload = upload::Upload { state: &state, user: &user, path: parameters.path.as_deref(), metadata, is_gzip };
    let written = upload.receive(&parts.headers, body.into_data_stream()).await?;
    Ok(Json(written).into_response())
}

fn parameters(query: Result<Query<Parameters>, QueryRejection>) -> Result<Parameters, Failure> {
    query.map(|Query(parameters)| parameters).map_err(|rejection| Failure::bad_request(rejection.body_text()))
}

/// Returns the user named in the request, or the default one.
fn user(state: &State, name: Option<&str>) -> Result<User, Failure> {
    let name = name.map_or_else(|| state.default_user(), str::to_owned);
    if name.is_empty() && state.default_user().is_empty() {
        return Err(Failure::bad_request("username not provided"));
    }
    User::find(&name)
        .ok_or_else(|| Failure::unauthorized(format!("error looking up user '{name}': user: unknown user {name}")))
}

fn resolve(state: &State, user: &User, path: &str) -> Result<PathBuf, Failure> {
    paths::resolve(path, user, state.default_workdir().as_deref())
        .map_err(|error| Failure::bad_request(format!("error expanding and resolving path '{path}': {error}")))
}

/// Maps a failed write to a reply; a full disk has its own status.
fn write_failure(error: &io::Error, what: &str) -> Failure {
    if is_full(error) {
        Failure::new(StatusCode::INSUFFICIENT_STORAGE, "not enough disk space available")
    } else {
        Failure::internal(format!("{what}: {error}"))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Runs file system calls on a thread that may block. Work that has started is finished, even if the client
/// disconnects.
async fn blocking<T: Send + 'static>(
    lane: &Lane,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    lane.run(work).await?
}

#[derive(Debug, Deserialize)]
struct ComposeRequest {
    source_paths: Vec<String>,
    destination: String,
    username: Option<String>,
}

pub(crate) async fn compose(
    Extract(state): Extract<Arc<State>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let body = body.map_err(|rejection| Failure::bad_request(rejection.body_text()))?;
    let request: ComposeRequest = serde_json::from_slice(&body)
        .map_err(|error| Failure::bad_request(format!("error decoding the request body: {error}")))?;
    if request.source_paths.is_empty() || request.destination.is_empty() {
        return Err(Failure::bad_request("source_paths and destination must not be empty"));
    }
    let user = user(&state, request.username.as_deref())?;
    let destination = resolve(&state, &user, &request.destination)?;
    let sources = request.source_paths.into_iter().map(|given| {
        let path = resolve(&state, &user, &given)?;
        Ok(target::Source { given, path })
    });
    let sources = sources.collect::<Result<Vec<_>, Failure>>()?;
    let paths = sources.iter().map(|source| source.path.as_path()).take(COMPOSED_MOUNTS_MAX);
    let lane = state.file_calls.lane(paths.chain([destination.as_path()]));
    let composed =
        lane.run_cancellable(move |cancellation| target::compose(&sources, &destination, &user, cancellation)).await?;
    Ok(Json(composed?).into_response())
}
