//! Streaming decompression of a gzip body.

use std::io::{self, Write};

use bytes::{Buf, Bytes};
use flate2::write::MultiGzDecoder;
use futures::{Stream, StreamExt};

/// Input bytes per decompression step. Gzip expands at most about a thousandfold, so one step yields at most 4 MiB.
const STEP_BYTES: usize = 4096;

/// Reads the beginning of a compressed body and returns a stream of the decompressed content.
///
/// An error of this call means that the body is not compressed at all, an error of the stream that it is damaged. Not
/// cancel safe: the body is lost with the future.
pub(super) async fn gunzip<S>(body: S) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
{
    let mut gunzip = Gunzip { body, decoder: MultiGzDecoder::new(Vec::new()), input: Bytes::new(), is_over: false };
    while gunzip.decoder.header().is_none() {
        if gunzip.input.is_empty() && !gunzip.refill().await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        gunzip.step()?;
    }
    Ok(futures::stream::unfold(gunzip, |mut gunzip| async move { gunzip.next().await.map(|item| (item, gunzip)) }))
}

struct Gunzip<S> {
    body: S,
    decoder: MultiGzDecoder<Vec<u8>>,
    input: Bytes,
    is_over: bool,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Gunzip<S> {
    /// Fetches more input. Returns false at the end of the body.
    async fn refill(&mut self) -> io::Result<bool> {
        match self.body.next().await {
            Some(chunk) => {
                self.input = chunk?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn step(&mut self) -> io::Result<()> {
        let length = self.input.len().min(STEP_BYTES);
        let taken = self.decoder.write(&self.input[..length])?;
        self.input.advance(taken);
        Ok(())
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.is_over {
            return None;
        }
        let item = self.output().await.transpose();
        self.is_over = !matches!(item, Some(Ok(_)));
        item
    }

    async fn output(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let output = std::mem::take(self.decoder.get_mut());
            if !output.is_empty() {
                return Ok(Some(output.into()));
            }
            if !self.input.is_empty() || self.refill().await? {
                self.step()?;
                continue;
            }
            // Fails if the body is truncated.
            self.decoder.try_finish()?;
            let output = std::mem::take(self.decoder.get_mut());
            return Ok((!output.is_empty()).then(|| output.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn compress(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("compress");
        encoder.finish().expect("finish")
    }

    /// Returns `None` if the body is not compressed, `Some(Err)` if it is damaged.
    async fn read(body: &[u8], chunk: usize) -> Option<io::Result<Vec<u8>>> {
        let chunks: Vec<_> = body.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let stream = gunzip(futures::stream::iter(chunks)).await.ok()?;
        let pieces: Vec<io::Result<Bytes>> = stream.collect().await;
        Some(pieces.into_iter().try_fold(Vec::new(), |mut all, piece| {
            all.extend_from_slice(&piece?);
            Ok(all)
        }))
    }

    #[tokio::test]
    async fn decompresses_chunks_of_any_size() {
        let long: Vec<u8> = (0..30_000u32).flat_map(u32::to_le_bytes).collect();
        for text in [&b""[..], b"hello", &long, &vec![0; 1_000_000]] {
            let packed = compress(text);
            for chunk in [7, 100, 1 << 20] {
                let unpacked = read(&packed, chunk).await.expect("decompress").expect("decompress");
                assert!(unpacked == text, "{} bytes in chunks of {chunk}", text.len());
            }
        }
        let two = [compress(b"one "), compress(b"two")].concat();
        assert_eq!(read(&two, 9).await.expect("decompress").expect("decompress"), b"one two");
    }

    #[tokio::test]
    async fn uncompressed_and_truncated_bodies_are_distinguished() {
        for odd in [&b""[..], b"hello, this is not compressed", b"\x1f\x8b"] {
            assert!(read(odd, 100).await.is_none(), "{odd:?}");
        }
        let packed = compress(&vec![7; 100_000]);
        assert!(read(&packed[..packed.len() - 3], 50).await.expect("decompress").is_err());
        let mut damaged = packed.clone();
        let last = damaged.len() - 6;
        damaged[last] ^= 1;
        assert!(read(&damaged, 50).await.expect("decompress").is_err());
    }
}
