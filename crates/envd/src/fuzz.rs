//! What the fuzz targets call (the repository's `fuzz/`): three doors through which bytes of anybody come into the daemon.
//!
//! Nothing here touches the machine. [`frames`] reaches only procedures that look at the daemon's own lists, which are empty;
//! [`multipart`] throws the files away; [`headers`] judges requests and serves none. All that is read is `/etc/passwd`.
//!
//! What must hold whatever the bytes are is asserted here, so that a fuzzer and an ordinary test find the same. Every input is
//! deterministic: one thread, no sockets, and a clock that moves only when there is nothing else to do. So deadlines pass at
//! once, and what would wait for ever is found out.

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

/// When waiting is for ever: longer than the longest deadline that a client can set, of ten digits of milliseconds.
const EVER: Duration = Duration::from_secs(200 * 24 * 60 * 60);

/// A call of the Connect protocol. The first five bytes choose the procedure, codec, headers and how the body comes; the
/// rest is the body. [`frames::Call`] has the bytes' meaning.
pub fn frames(data: &[u8]) {
    frames::run(data);
}

/// A multipart upload. The first three bytes choose the boundary and how the body comes; the rest is the body.
pub fn multipart(data: &[u8]) {
    files::fuzz::multipart(data);
}

/// A request's headers: lines of `name: value`, and names with a colon in front for what is no header.
pub fn headers(data: &[u8]) {
    headers::run(data);
}

/// Runs `work` to its end. Panics if it has none.
pub(crate) fn settle<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime of one thread needs nothing but memory");
    let outcome = runtime.block_on(async { tokio::time::timeout(EVER, work).await });
    outcome.expect("whatever is asked, there is an answer")
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Whole,
    /// The client went away.
    Broken,
    /// The client is silent.
    Never,
}

/// A body in pieces of `size` bytes; zero means all at once.
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

/// As a client would compress it.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes everything")
}
