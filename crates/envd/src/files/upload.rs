//! `POST /files`: mapping of a body to files.

use std::io;
use std::path::PathBuf;

use axum::body::BodyDataStream;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, header};

use super::gunzip::gunzip;
use super::metadata::Metadata;
use super::multipart::Multipart;
use super::target::Target;
use super::{WrittenFile, resolve};
use crate::failure::Failure;
use crate::state::State;
use crate::users::User;

/// Bytes of one write. A smaller file is written in one step, so that watches report a single event.
const WRITE_BYTES: usize = 256 * 1024;
/// Name of the form parts that are files.
const PART_NAME: &str = "file";

/// Parameters of an upload.
pub(super) struct Upload<'a> {
    pub(super) state: &'a State,
    pub(super) user: &'a User,
    pub(super) path: Option<&'a str>,
    pub(super) metadata: Metadata,
    pub(super) is_gzip: bool,
}

type Body = BoxStream<'static, io::Result<Bytes>>;

impl Upload<'_> {
    /// Writes the files of a body. An aborted upload retains the complete ones; the incomplete one changes nothing.
    pub(super) async fn receive(&self, headers: &HeaderMap, body: BodyDataStream) -> Result<Vec<WrittenFile>, Failure> {
        let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_vec()).unwrap_or_default();
        let shown = String::from_utf8_lossy(&content_type).into_owned();
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let kind = shown.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind == "application/octet-stream" {
            let path = self.path.filter(|path| !path.is_empty());
            let path =
                path.ok_or_else(|| Failure::bad_request("path query parameter is required for raw body upload"))?;
            let path = resolve(self.state, self.user, path)?;
            return Ok(vec![self.store(path, self.content(body).await?, length).await?]);
        }
        if !kind.starts_with("multipart/") {
            return Err(Failure::bad_request(format!(
                "unsupported content type: {shown}, expected multipart/form-data or application/octet-stream"
            )));
        }
        let parts = Multipart::new(&content_type, self.content(body).await?);
        let parts = parts.ok_or_else(|| Failure::internal("error parsing multipart form: no boundary"))?;
        self.multipart(parts, length).await
    }

    /// Returns the decompressed body.
    async fn content(&self, body: BodyDataStream) -> Result<Body, Failure> {
        let body = body.map_err(io::Error::other);
        if !self.is_gzip {
            return Ok(body.boxed());
        }
        let content = gunzip(body).await;
        let content =
            content.map_err(|error| Failure::bad_request(format!("error decompressing request body: {error}")))?;
        Ok(content.boxed())
    }

    async fn multipart(&self, mut parts: Multipart, length: Option<u64>) -> Result<Vec<WrittenFile>, Failure> {
        let broken = |error: multer::Error| Failure::internal(format!("error parsing multipart form: {error}"));
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut written = Vec::new();
        while let Some(part) = parts.next(PART_NAME).await.map_err(broken)? {
            let path = match (self.path, part.file_name.as_deref()) {
                (Some(path), _) => path,
                (None, Some(name)) if !name.is_empty() => name,
                (None, _) => return Err(Failure::bad_request("a file has no name and there is no path parameter")),
            };
            let path = resolve(self.state, self.user, path)?;
            if paths.contains(&path) {
                let text = format!("you cannot upload multiple files to the same path '{}'", path.display());
                return Err(Failure::bad_request(text));
            }
            paths.push(path.clone());
            written.push(self.store(path, part.into_data(), length).await?);
        }
        Ok(written)
    }

    async fn store(
        &self,
        path: PathBuf,
        mut data: impl Stream<Item = io::Result<Bytes>> + Unpin,
        length: Option<u64>,
    ) -> Result<WrittenFile, Failure> {
        let lane = self.state.file_calls.lane([path.as_path()]);
        let mut target = Target::open(path, self.user, lane).await?;
        let mut pending = Vec::new();
        while let Some(chunk) = data.next().await {
            let chunk = chunk.map_err(|error| Failure::internal(format!("error reading the request body: {error}")))?;
            pending.extend_from_slice(&chunk);
            if pending.len() >= WRITE_BYTES {
                (target, pending) = target.write(pending, length).await?;
            }
        }
        let (target, _) = target.write(pending, length).await?;
        target.finish(&self.metadata).await
    }
}
