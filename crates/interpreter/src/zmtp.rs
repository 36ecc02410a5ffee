//! ZeroMQ's wire protocol (ZMTP 3.0), as far as a Jupyter client needs it: no encryption, one peer, client side.
//!
//! The size of a received message is bounded: a kernel runs code of its user, which may display a value of any size. The
//! rest of a larger message is read and discarded. Reading stops when the caller stops asking for messages, so a kernel
//! that sends faster than a client receives is slowed down instead of being buffered.

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Largest message that is kept, in bytes: pictures and tables of a useful size. A `stream` of Python is split before.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Frames of a message that are kept. Jupyter uses seven, and one for each binary buffer.
const FRAMES_MAX: usize = 64;
/// Bytes requested from the socket at once.
const READ_BYTES: usize = 64 << 10;
/// Size of a message after which the buffer is released: it would stay as large as the largest message.
const RELEASED_BYTES_MIN: usize = 1 << 20;
/// Length of a greeting in bytes.
const GREETING_BYTES: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Address of a kernel's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Loopback(u16),
}

/// Kind of the client's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketKind {
    Dealer,
    /// Subscribed to everything.
    Subscriber,
}

impl SocketKind {
    fn name(self) -> &'static str {
        match self {
            Self::Dealer => "DEALER",
            Self::Subscriber => "SUB",
        }
    }
}

/// Message of several frames.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Multipart {
    pub(crate) frames: Vec<Bytes>,
    /// Bytes that were discarded because the message was too large.
    pub(crate) dropped_bytes: u64,
}

/// Connection to one socket of a kernel.
pub(crate) struct Connection {
    reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    decoder: Decoder,
}

impl Connection {
    /// Connects once, without retries.
    pub(crate) async fn open(endpoint: &Endpoint, kind: SocketKind) -> io::Result<Self> {
        let mut connection = match endpoint {
            Endpoint::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                Self { reader: Box::new(reader), writer: Box::new(writer), decoder: Decoder::default() }
            }
            Endpoint::Loopback(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Self { reader: Box::new(reader), writer: Box::new(writer), decoder: Decoder::default() }
            }
        };
        connection.shake_hands(kind).await?;
        Ok(connection)
    }

    async fn shake_hands(&mut self, kind: SocketKind) -> io::Result<()> {
        self.writer.write_all(&greeting()).await?;
        self.writer.write_all(&ready(kind)).await?;
        let mut theirs = [0; GREETING_BYTES];
        self.reader.read_exact(&mut theirs).await?;
        check_greeting(&theirs)?;
        if kind == SocketKind::Subscriber {
            self.send(&[Bytes::from_static(&[1])]).await?;
        }
        Ok(())
    }

    /// Sends a message. Not cancel safe: a cancelled call may have sent a part.
    pub(crate) async fn send(&mut self, frames: &[Bytes]) -> io::Result<()> {
        self.writer.write_all(&encoded(frames)).await
    }

    /// Receives the next message. Cancel safe.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the peer closed the connection, `InvalidData` if it does not speak the protocol.
    pub(crate) async fn receive(&mut self) -> io::Result<Multipart> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(message);
            }
            self.decoder.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.decoder.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xFF;
    greeting[8] = 1;
    greeting[9] = 0x7F;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> io::Result<()> {
    let is_valid = greeting[0] == 0xFF && greeting[9] & 1 == 1 && greeting[10] >= 3 && greeting[12..17] == *b"NULL\0";
    if is_valid { Ok(()) } else { Err(invalid("the peer is not a ZeroMQ socket without encryption")) }
}

/// Returns the command `READY` with the socket's kind.
fn ready(kind: SocketKind) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    push_value(&mut body, kind.name());
    if kind == SocketKind::Dealer {
        body.extend_from_slice(b"\x08Identity");
        push_value(&mut body, "");
    }
    let mut frame = vec![COMMAND, u8::try_from(body.len()).unwrap_or(u8::MAX)];
    frame.append(&mut body);
    frame
}

fn push_value(body: &mut Vec<u8>, value: &str) {
    body.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(value.as_bytes());
}

/// Encodes a message.
pub(crate) fn encoded(frames: &[Bytes]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(frames.iter().map(|frame| frame.len() + 9).sum());
    for (index, frame) in frames.iter().enumerate() {
        let more = if index + 1 < frames.len() { MORE } else { 0 };
        if let Ok(length) = u8::try_from(frame.len()) {
            wire.extend_from_slice(&[more, length]);
        } else {
            wire.push(more | LONG);
            wire.extend_from_slice(&(frame.len() as u64).to_be_bytes());
        }
        wire.extend_from_slice(frame);
    }
    wire
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Decoder of frames behind the greeting.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    pub(crate) buffer: BytesMut,
    frame: Option<Frame>,
    message: Multipart,
    message_bytes: usize,
}

/// Frame whose header was read.
#[derive(Debug)]
struct Frame {
    flags: u8,
    /// Bytes of the body that were not consumed yet.
    left: u64,
    is_dropped: bool,
}

impl Decoder {
    /// Returns the next complete message in the buffer.
    pub(crate) fn next(&mut self) -> io::Result<Option<Multipart>> {
        loop {
            let Some(mut frame) = self.frame.take() else {
                self.frame = self.header()?;
                if self.frame.is_none() {
                    return Ok(None);
                }
                continue;
            };
            if !self.body(&mut frame) {
                self.frame = Some(frame);
                return Ok(None);
            }
            if frame.flags & (COMMAND | MORE) == 0 {
                let message = mem::take(&mut self.message);
                if self.message_bytes > RELEASED_BYTES_MIN {
                    self.buffer = BytesMut::from(&self.buffer[..]);
                }
                self.message_bytes = 0;
                return Ok(Some(message));
            }
        }
    }

    /// Reads the header of a frame, if it is complete.
    fn header(&mut self) -> io::Result<Option<Frame>> {
        let Some(&flags) = self.buffer.first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & COMMAND != 0 && flags & MORE != 0 {
            return Err(invalid("a ZeroMQ frame has unknown flags"));
        }
        let header_bytes = if flags & LONG == 0 { 2 } else { 9 };
        if self.buffer.len() < header_bytes {
            return Ok(None);
        }
        self.buffer.advance(1);
        let left = if flags & LONG == 0 { u64::from(self.buffer.get_u8()) } else { self.buffer.get_u64() };
        let fits = usize::try_from(left).is_ok_and(|bytes| bytes <= MESSAGE_BYTES_MAX - self.message_bytes);
        // Frames behind a dropped one would be taken for it.
        let is_full = self.message.frames.len() == FRAMES_MAX || self.message.dropped_bytes > 0;
        let is_dropped = flags & COMMAND != 0 || !fits || is_full;
        if is_dropped && flags & COMMAND == 0 {
            self.message.dropped_bytes = self.message.dropped_bytes.saturating_add(left.max(1));
        }
        Ok(Some(Frame { flags, left, is_dropped }))
    }

    /// Consumes the body of a frame; returns false if a part of it was not received yet.
    fn body(&mut self, frame: &mut Frame) -> bool {
        let available = self.buffer.len() as u64;
        if frame.is_dropped {
            let skipped = available.min(frame.left);
            frame.left -= skipped;
            self.buffer.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
            return frame.left == 0;
        }
        if available < frame.left {
            return false;
        }
        // A frame that is not dropped is smaller than the limit.
        let body = self.buffer.split_to(usize::try_from(frame.left).unwrap_or(usize::MAX)).freeze();
        self.message_bytes += body.len();
        self.message.frames.push(body);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(wire: &[u8], chunk: usize) -> io::Result<Vec<Multipart>> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for part in wire.chunks(chunk) {
            decoder.buffer.extend_from_slice(part);
            while let Some(message) = decoder.next()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    #[test]
    fn messages_are_decoded_from_chunks_of_any_size() {
        let frames = [Bytes::from_static(b"a"), Bytes::from(vec![7; 300]), Bytes::new()];
        let mut wire = ready(SocketKind::Dealer);
        wire.extend(encoded(&frames));
        wire.extend(encoded(&frames[..1]));
        for chunk in [1, 2, 3, 64, 4096] {
            let messages = decoded(&wire, chunk).expect("valid");
            assert_eq!(messages.len(), 2, "{chunk}");
            assert_eq!(messages[0], Multipart { frames: frames.to_vec(), dropped_bytes: 0 });
            assert_eq!(messages[1].frames, &frames[..1]);
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_dropped_and_the_next_message_is_read() {
        let mut wire = encoded(&[Bytes::from_static(b"head"), Bytes::new()]);
        wire.pop();
        wire.pop();
        wire.push(LONG);
        wire.extend_from_slice(&(MESSAGE_BYTES_MAX as u64 + 1).to_be_bytes());
        let mut decoder = Decoder::default();
        decoder.buffer.extend_from_slice(&wire);
        let chunk = vec![0; 1 << 20];
        let mut left = MESSAGE_BYTES_MAX + 1;
        while left > 0 {
            assert_eq!(decoder.next().expect("valid"), None);
            let part = left.min(chunk.len());
            decoder.buffer.extend_from_slice(&chunk[..part]);
            left -= part;
        }
        let message = decoder.next().expect("valid").expect("complete");
        assert_eq!(message.frames, [Bytes::from_static(b"head")]);
        assert_eq!(message.dropped_bytes, MESSAGE_BYTES_MAX as u64 + 1);
        assert!(decoder.buffer.capacity() < 8 << 20, "{}", decoder.buffer.capacity());
        decoder.buffer.extend_from_slice(&encoded(&[Bytes::from_static(b"next")]));
        assert_eq!(decoder.next().expect("valid").expect("complete").frames, [Bytes::from_static(b"next")]);
    }

    #[test]
    fn frames_are_counted_and_flags_are_checked() {
        let many = vec![Bytes::new(); FRAMES_MAX + 5];
        let messages = decoded(&encoded(&many), 7).expect("valid");
        assert_eq!((messages[0].frames.len(), messages[0].dropped_bytes), (FRAMES_MAX, 5));
        assert!(decoded(&[0x80, 0], 2).is_err());
        assert!(check_greeting(&greeting()).is_ok());
        assert!(check_greeting(&[b'H'; GREETING_BYTES]).is_err());
    }
}
