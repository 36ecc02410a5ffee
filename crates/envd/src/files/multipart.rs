//! Streaming multipart parser.
//!
//! multer finds the parts. It would read as fast as the client sends and buffer everything outside of a file, so it
//! receives the body throttled: one piece at a time, and only a bounded number of bytes until it yields data.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::parameters::parameter;

/// Bytes that may be read before a part yields data: its headers and the data before them.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// A multipart body.
pub(super) struct Multipart {
    parts: multer::Multipart<'static>,
    /// Bytes read since the parser last yielded data.
    unconsumed: Arc<AtomicUsize>,
}

/// A part that is a file.
pub(super) struct Part {
    field: multer::Field<'static>,
    unconsumed: Arc<AtomicUsize>,
    /// File name that the client sent, directories included.
    pub(super) file_name: Option<String>,
}

impl Multipart {
    /// Returns `None` if the content type has no boundary.
    pub(super) fn new<S>(content_type: &[u8], body: S) -> Option<Self>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    {
        let boundary = parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty())?;
        let unconsumed = Arc::new(AtomicUsize::new(0));
        let throttled = ThrottledBody { body, is_paused: false, unconsumed: Arc::clone(&unconsumed) };
        Some(Self { parts: multer::Multipart::new(throttled, boundary), unconsumed })
    }

    /// Returns the next part named `name`; other parts are skipped.
    pub(super) async fn next(&mut self, name: &str) -> Result<Option<Part>, multer::Error> {
        while let Some(field) = self.parts.next_field().await? {
            let disposition = field.headers().get(http::header::CONTENT_DISPOSITION);
            let disposition = disposition.map(|value| value.as_bytes().to_vec()).unwrap_or_default();
            let file_name = parameter(&disposition, "filename");
            let mut part = Part { field, unconsumed: Arc::clone(&self.unconsumed), file_name };
            if parameter(&disposition, "name").as_deref() == Some(name) {
                return Ok(Some(part));
            }
            while let Some(chunk) = part.field.chunk().await? {
                drop(chunk);
                part.unconsumed.store(0, Ordering::Relaxed);
            }
        }
        Ok(None)
    }
}

impl Part {
    pub(super) fn into_data(self) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
        let unconsumed = self.unconsumed;
        self.field.map(move |chunk| {
            unconsumed.store(0, Ordering::Relaxed);
            chunk.map_err(io::Error::other)
        })
    }
}

/// Returns `Pending` once after each piece, so that the parser uses that piece before the next is read.
struct ThrottledBody<S> {
    body: S,
    is_paused: bool,
    unconsumed: Arc<AtomicUsize>,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for ThrottledBody<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if std::mem::take(&mut self.is_paused) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.body.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(chunk))) = &polled {
            self.is_paused = true;
            let before = self.unconsumed.fetch_add(chunk.len(), Ordering::Relaxed);
            if before > HEADER_BYTES_MAX {
                return Poll::Ready(Some(Err(io::Error::other("the headers of a part are too long"))));
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT_TYPE: &[u8] = b"multipart/form-data; boundary=xyz";

    fn body(text: &[u8], chunk: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
        let chunks: Vec<_> = text.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        futures::stream::iter(chunks)
    }

    #[tokio::test]
    async fn only_parts_with_the_name_are_returned() {
        let skipped = "s".repeat(2 << 20);
        let text = format!(
            "--xyz\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\n{skipped}\r\n\
             --xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/a/b\"\r\nContent-Type: x/y\r\n\r\none\r\n\
             --xyz\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n\r\n--xyz--\r\n"
        );
        for chunk in [113, 4096, 1 << 22] {
            let mut parts = Multipart::new(CONTENT_TYPE, body(text.as_bytes(), chunk)).expect("a boundary");
            let mut found = Vec::new();
            while let Some(part) = parts.next("file").await.expect("well-formed") {
                let name = part.file_name.clone();
                let data: Vec<_> = part.into_data().map(|chunk| chunk.expect("in memory")).collect().await;
                found.push((name, data.concat()));
            }
            assert_eq!(found, [(Some("/a/b".to_owned()), b"one".to_vec()), (None, Vec::new())], "chunks of {chunk}");
        }
    }

    #[tokio::test]
    async fn a_body_without_parts_is_bounded() {
        let endless = futures::stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 64 * 1024])));
        let mut parts = Multipart::new(CONTENT_TYPE, endless).expect("a boundary");
        assert!(parts.next("file").await.is_err());
        assert!(Multipart::new(b"multipart/form-data", body(b"", 1)).is_none());
    }
}
