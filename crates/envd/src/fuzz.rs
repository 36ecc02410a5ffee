//! Entry points of the fuzz targets (the repository's `fuzz/`): three parsers of untrusted bytes.
//!
//! Nothing here affects the machine. [`frames`] reaches only procedures on the daemon's own lists, which are empty;
//! [`multipart`] discards the files; [`headers`] authorizes requests and serves none. The only file read is
//! `/etc/passwd`.
//!
//! Invariants that hold for every input are asserted here, so that a fuzzer and an ordinary test find the same
//! violations. Every input is deterministic: one thread, no sockets, and a clock that advances only when the runtime is
//! idle. Deadlines therefore pass immediately, and an endless wait is detected.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use crate::files;

mod frames;
mod headers;
#[cfg(test)]
mod seeds;

/// Timeout that counts as an endless wait: longer than the longest client deadline, ten digits of milliseconds.
const ENDLESS: Duration = Duration::from_secs(200 * 24 * 60 * 60);

/// A call of the Connect protocol.
///
/// The first five bytes select the procedure, the codec, the headers and the body's form; the remainder is the body.
/// [`frames::Call`] documents these bytes.
pub fn frames(data: &[u8]) {
    frames::run(data);
}

/// A multipart upload. The first three bytes select the boundary and the body's form; the remainder is the body.
pub fn multipart(data: &[u8]) {
    files::fuzz::multipart(data);
}

/// A request's headers: lines of `name: value`; names with a leading colon set the other parts of the request.
pub fn headers(data: &[u8]) {
    headers::run(data);
}

/// Runs `work` to completion. Panics if it never completes.
pub(crate) fn complete<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("build a runtime");
    let outcome = runtime.block_on(async { tokio::time::timeout(ENDLESS, work).await });
    outcome.expect("every request gets a reply")
}

/// End of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Whole,
    /// The client disconnects.
    Broken,
    /// The client sends nothing more and stays connected.
    Never,
}

/// Returns a body in pieces of `size` bytes; zero means a single piece.
pub(crate) fn pieces(body: &[u8], size: usize, ending: Ending) -> BoxStream<'static, io::Result<Bytes>> {
    let size = if size == 0 { body.len().max(1) } else { size };
    let mut pieces: Vec<_> = body.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    if ending == Ending::Broken {
        pieces.push(Err(io::ErrorKind::ConnectionReset.into()));
    }
    let pieces = stream::iter(pieces).then(|piece| async move {
        // A network is slower than its reader.
        tokio::task::yield_now().await;
        piece
    });
    match ending {
        Ending::Never => pieces.chain(stream::pending()).boxed(),
        Ending::Whole | Ending::Broken => pieces.boxed(),
    }
}

/// Compresses as a client does.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("compress in memory")
}
