//! The bytes of a download, read as fast as the client takes them and where they may block.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::Stream;
use rustix::buffer::spare_capacity;

/// How much of a file is read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// How much is read before the headers are sent. Smaller files are sent from memory, and their size is what was read.
const BEGINNING_BYTES: usize = 64 * 1024;

/// How much is compressed on trial.
const SAMPLE_BYTES: usize = 32 * 1024;

/// How a file begins.
pub(super) struct Beginning {
    pub(super) bytes: Bytes,
    /// There is no more.
    pub(super) is_all: bool,
}

impl Beginning {
    /// Blocks. What is not a regular file may give its content bit by bit: one bit is enough to begin with.
    pub(super) fn read(file: &File, is_regular: bool) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(BEGINNING_BYTES);
        loop {
            let read = rustix::io::retry_on_intr(|| rustix::io::read(file, spare_capacity(&mut bytes)))?;
            let is_all = read == 0;
            if is_all || !is_regular || bytes.len() >= BEGINNING_BYTES {
                bytes.shrink_to_fit();
                return Ok(Self { bytes: bytes.into(), is_all });
            }
        }
    }
}

/// A piece of an answer.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    File {
        start: u64,
        length: u64,
    },
    /// From where the file was read so far to its end.
    Rest,
}

/// The pieces' bytes. A file that is shorter than it was ends the stream with an error, because its length was promised.
pub(super) fn stream(
    file: impl Into<Arc<File>>,
    pieces: impl IntoIterator<Item = Piece>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let reader = Reader { file: file.into(), pieces: pieces.into_iter().collect() };
    futures::stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await.transpose()?;
        if item.is_err() {
            reader.pieces.clear();
        }
        Some((item, reader))
    })
}

struct Reader {
    file: Arc<File>,
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
                    let wanted = usize::try_from(length).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                    let bytes = read(Arc::clone(&self.file), Some(start), wanted).await?;
                    if bytes.is_empty() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let read = bytes.len() as u64;
                    self.pieces.push_front(Piece::File { start: start + read, length: length - read });
                    return Ok(Some(bytes));
                }
                Piece::Rest => {
                    let bytes = read(Arc::clone(&self.file), None, CHUNK_BYTES).await?;
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

/// Reads up to `wanted` bytes, at a place or from where the file was read so far.
async fn read(file: Arc<File>, start: Option<u64>, wanted: usize) -> io::Result<Bytes> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::with_capacity(wanted);
        rustix::io::retry_on_intr(|| match start {
            Some(start) => rustix::io::pread(&file, spare_capacity(&mut bytes), start),
            None => rustix::io::read(&file, spare_capacity(&mut bytes)),
        })?;
        if start.is_some() {
            // The allocator may have given more room than was asked for.
            bytes.truncate(wanted);
        }
        Ok(Bytes::from(bytes))
    });
    reading.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The whole file, compressed on the way.
pub(super) fn compressed(file: File) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures::stream::unfold(Some((file, None)), |state| async move {
        let (file, encoder) = state?;
        let step = tokio::task::spawn_blocking(move || compress(file, encoder)).await;
        match step.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok((bytes, state)) => Some((Ok(bytes), state)),
            Err(error) => Some((Err(error), None)),
        }
    })
}

type Encoder = GzEncoder<Vec<u8>>;
/// A file on its way, with its encoder once there is something to compress.
type Compressing = (File, Option<Encoder>);

/// The next compressed bytes, and what is left to do. Blocks.
fn compress(mut file: File, encoder: Option<Encoder>) -> io::Result<(Bytes, Option<Compressing>)> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut encoder = encoder;
    loop {
        let read = file.read(&mut chunk)?;
        let bytes = &chunk[..read];
        let current = encoder.get_or_insert_with(|| GzEncoder::new(Vec::new(), level(bytes)));
        current.write_all(bytes)?;
        if read == 0 {
            current.try_finish()?;
            return Ok((std::mem::take(current.get_mut()).into(), None));
        }
        let ready = std::mem::take(current.get_mut());
        if !ready.is_empty() {
            return Ok((ready.into(), Some((file, encoder))));
        }
    }
}

/// How hard to try, by a file's beginning. Speed before size: the other side is a network away at most. Images, archives
/// and the like only cost time, so they are packed without being compressed.
fn level(beginning: &[u8]) -> Compression {
    let sample = &beginning[..beginning.len().min(SAMPLE_BYTES)];
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(sample).and_then(|()| encoder.finish());
    // 95 of 100 bytes is not worth it. Small files are compressed always: nobody waits for them.
    let is_dense = packed.is_ok_and(|packed| packed.len() > sample.len() / 100 * 95);
    if is_dense && sample.len() == SAMPLE_BYTES { Compression::none() } else { Compression::fast() }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use flate2::read::GzDecoder;
    use futures::StreamExt;

    use super::*;

    /// Bytes without any pattern (xorshift).
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

    #[tokio::test]
    async fn what_is_compressed_can_be_read_and_what_is_dense_is_left() {
        let text = b"all work and no play ".repeat(40_000);
        for (content, smaller) in [(&b""[..], false), (b"x", false), (&text, true), (&noise(600_000), false)] {
            let mut file = tempfile::tempfile().expect("temporary file");
            file.write_all(content).expect("writes");
            file.seek(SeekFrom::Start(0)).expect("seeks");
            let pieces: Vec<Bytes> = compressed(file).map(|piece| piece.expect("reads")).collect().await;
            let packed = pieces.concat();
            let mut plain = Vec::new();
            GzDecoder::new(&packed[..]).read_to_end(&mut plain).expect("compressed");
            assert!(plain == content, "{} bytes", content.len());
            assert_eq!(packed.len() * 10 < content.len(), smaller, "{} of {} bytes", packed.len(), content.len());
            assert!(packed.len() < content.len() + 100 + content.len() / 1000);
        }
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error_and_not_a_short_answer() {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(b"0123456789").expect("writes");
        let pieces = [Piece::Bytes("a".into()), Piece::File { start: 5, length: 100 }];
        let told: Vec<_> = stream(file, pieces).map(|piece| piece.map_err(|error| error.kind())).collect().await;
        assert_eq!(told, [Ok("a".into()), Ok("56789".into()), Err(io::ErrorKind::UnexpectedEof)]);
    }
}
