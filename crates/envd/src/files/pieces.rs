//! The bytes of a download, read at the client's speed, on threads that may block.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::Stream;

use super::input::{Input, ReadRequest};

/// Bytes of one read.
const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes read before the headers are sent. Smaller files are sent from memory, with the number of bytes read as their
/// size.
const PREFIX_BYTES: usize = 64 * 1024;

/// Bytes compressed as a test of whether compression pays.
const SAMPLE_BYTES: usize = 32 * 1024;

/// The first bytes of a file.
pub(super) struct Prefix {
    pub(super) bytes: Bytes,
    /// The file has no more bytes.
    pub(super) is_all: bool,
}

impl Prefix {
    /// Reads the prefix. A pipe or a device may deliver its content in small pieces; the first one is enough.
    pub(super) async fn read(input: &mut Input) -> io::Result<Self> {
        let bytes = PREFIX_BYTES;
        let request = if input.is_regular() { ReadRequest::Full { bytes } } else { ReadRequest::Next { bytes } };
        let bytes = input.read(request).await?;
        let is_all = bytes.is_empty() || input.is_regular() && bytes.len() < PREFIX_BYTES;
        Ok(Self { bytes, is_all })
    }
}

/// A piece of a reply body.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    File {
        start: u64,
        length: u64,
    },
    /// From the current file position to the end.
    Rest,
}

/// Streams the bytes of the pieces.
///
/// If the file has become shorter, the stream ends with an error, because its length was already sent.
pub(super) fn stream(
    input: Input,
    pieces: impl IntoIterator<Item = Piece>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let reader = Reader { input, pieces: pieces.into_iter().collect() };
    futures::stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await.transpose()?;
        if item.is_err() {
            reader.pieces.clear();
        }
        Some((item, reader))
    })
}

struct Reader {
    input: Input,
    pieces: VecDeque<Piece>,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(piece) = self.pieces.pop_front() {
            match piece {
                Piece::Bytes(bytes) if bytes.is_empty() => {}
                Piece::Bytes(bytes) => return Ok(Some(bytes)),
                Piece::File { length: 0, .. } => {}
                Piece::File { start, length } => {
                    let bytes = usize::try_from(length).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                    let bytes = self.input.read(ReadRequest::At { start, bytes }).await?;
                    if bytes.is_empty() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let read = bytes.len() as u64;
                    self.pieces.push_front(Piece::File { start: start + read, length: length - read });
                    return Ok(Some(bytes));
                }
                Piece::Rest => {
                    let bytes = self.input.read(ReadRequest::Next { bytes: CHUNK_BYTES }).await?;
                    if !bytes.is_empty() {
                        self.pieces.push_front(Piece::Rest);
                        return Ok(Some(bytes));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Streams the whole file, compressed.
pub(super) fn compressed(input: Input) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures::stream::unfold(Some(Compressor { input, encoder: None }), |compressor| async move {
        let mut compressor = compressor?;
        match compressor.next().await {
            Ok((bytes, is_all)) => Some((Ok(bytes), (!is_all).then_some(compressor))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

type Encoder = GzEncoder<Vec<u8>>;

/// State of a compressed download.
struct Compressor {
    input: Input,
    /// Created with the first chunk, whose content determines the level.
    encoder: Option<Encoder>,
}

impl Compressor {
    /// Returns the next compressed bytes, and true if they are the last ones.
    async fn next(&mut self) -> io::Result<(Bytes, bool)> {
        loop {
            let bytes = self.input.read(ReadRequest::Next { bytes: CHUNK_BYTES }).await?;
            let (is_all, encoder) = (bytes.is_empty(), self.encoder.take());
            // Compression takes CPU time, so it must not run on a worker thread of the runtime either.
            let packed =
                self.input.lane.run(move || compress_chunk(&bytes, encoder)).await.map_err(io::Error::other)?;
            let (ready, encoder) = packed?;
            self.encoder = Some(encoder);
            if is_all || !ready.is_empty() {
                return Ok((ready, is_all));
            }
        }
    }
}

/// Compresses a chunk; an empty one finishes the stream.
fn compress_chunk(bytes: &[u8], encoder: Option<Encoder>) -> io::Result<(Bytes, Encoder)> {
    let mut encoder = encoder.unwrap_or_else(|| GzEncoder::new(Vec::new(), level(bytes)));
    encoder.write_all(bytes)?;
    if bytes.is_empty() {
        encoder.try_finish()?;
    }
    let ready = std::mem::take(encoder.get_mut());
    Ok((ready.into(), encoder))
}

/// Chooses the compression level by the first bytes of a file.
///
/// Favors speed over size, because the client is at most a network away. Images, archives and the like do not shrink,
/// so they are stored in the gzip format without compression.
fn level(prefix: &[u8]) -> Compression {
    let sample = &prefix[..prefix.len().min(SAMPLE_BYTES)];
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(sample).and_then(|()| encoder.finish());
    // A reduction to 95 % or more does not pay. Small files are always compressed: they take no time.
    let is_dense = packed.is_ok_and(|packed| packed.len() > sample.len() / 100 * 95);
    if is_dense && sample.len() == SAMPLE_BYTES { Compression::none() } else { Compression::fast() }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use futures::StreamExt;

    use super::*;
    use crate::state::State;

    /// Returns bytes without any pattern (xorshift).
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        std::iter::repeat_with(&mut next).flatten().take(length).collect()
    }

    /// Opens a temporary file with this content.
    fn input(content: &[u8]) -> Input {
        let mut file = tempfile::NamedTempFile::new().expect("create a temporary file");
        file.write_all(content).expect("write");
        let lane = State::outside().file_calls.lane([file.path()]);
        Input::open(file.path(), lane).expect("open")
    }

    #[tokio::test]
    async fn compression_round_trips_and_skips_dense_content() {
        let text = b"all work and no play ".repeat(40_000);
        for (content, smaller) in [(&b""[..], false), (b"x", false), (&text, true), (&noise(600_000), false)] {
            let pieces: Vec<Bytes> = compressed(input(content)).map(|piece| piece.expect("read")).collect().await;
            let packed = pieces.concat();
            let mut plain = Vec::new();
            GzDecoder::new(&packed[..]).read_to_end(&mut plain).expect("decompress");
            assert!(plain == content, "{} bytes", content.len());
            assert_eq!(packed.len() * 10 < content.len(), smaller, "{} of {} bytes", packed.len(), content.len());
            assert!(packed.len() < content.len() + 100 + content.len() / 1000);
        }
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error() {
        let pieces = [Piece::Bytes("a".into()), Piece::File { start: 5, length: 100 }];
        let told: Vec<_> =
            stream(input(b"0123456789"), pieces).map(|piece| piece.map_err(|error| error.kind())).collect().await;
        assert_eq!(told, [Ok("a".into()), Ok("56789".into()), Err(io::ErrorKind::UnexpectedEof)]);
    }
}
