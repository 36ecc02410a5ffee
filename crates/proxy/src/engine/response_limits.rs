//! Limits of the bytes that an upstream sends before and within a response.
//!
//! An upstream may send any number of informational responses (1xx) before the final one (RFC 9110, 15.2). hyper skips
//! them in an unbounded loop. [`ResponseLimits`] checks the bytes before hyper does and fails the connection at a
//! limit. From the final head on, hyper's own limit of a head applies.
//!
//! In a body, an upstream may send endless framing: a chunk size may begin with any number of zeros. So the bytes
//! received without a frame of the body are limited, too.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::byte_budget::ByteBudget;

/// Maximum number of informational responses before the final one.
///
/// A server sends one `100 Continue` and one or two `103 Early Hints`; some report progress by `102 Processing` every
/// few seconds.
pub(super) const INFORMATIONAL_MAX: usize = 64;
/// Maximum size of informational responses, and of empty lines before a response. Early hints take a few KiB.
pub(super) const INFORMATIONAL_BYTES_MAX: usize = 64 << 10;
/// Maximum bytes of a response without a frame of its body.
///
/// The head and two frames, each of at most one read, may not have reached the reader of the body yet.
const FRAMELESS_BYTES_MAX: usize = 1 << 20;
/// Length of the beginning of a head that contains its status code: `HTTP/1.1 103`.
const STATUS_BYTES: usize = 12;

/// State that a connection's I/O, inside of hyper, shares with the task that sends requests.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Bytes were received since the last request was sent.
    pub(super) received: AtomicBool,
    /// A request was sent, and the final head of its response has not begun.
    awaiting_head: AtomicBool,
    /// Bytes that may still be received before a frame; `usize::MAX` is no limit.
    frameless_bytes_left: AtomicUsize,
    pub(super) budget: ByteBudget,
}

impl Shared {
    /// Resets the state before a request is sent.
    pub(super) fn begin_exchange(&self) {
        self.received.store(false, Ordering::Relaxed);
        self.awaiting_head.store(true, Ordering::Relaxed);
        self.frame_received();
    }

    /// Resets the limit of bytes without a frame.
    pub(super) fn frame_received(&self) {
        self.frameless_bytes_left.store(FRAMELESS_BYTES_MAX, Ordering::Relaxed);
    }

    /// Removes the limits: the bytes do not belong to HTTP any more.
    pub(super) fn switch_protocols(&self) {
        self.frameless_bytes_left.store(usize::MAX, Ordering::Relaxed);
    }

    fn charge_frameless(&self, bytes: usize) -> io::Result<()> {
        let left = self.frameless_bytes_left.load(Ordering::Relaxed);
        if left == usize::MAX {
            return Ok(());
        }
        let left = left.checked_sub(bytes).ok_or_else(|| invalid("too many response bytes without content"))?;
        self.frameless_bytes_left.store(left, Ordering::Relaxed);
        Ok(())
    }
}

/// Parser position before the final head of a response.
#[derive(Debug, Default)]
pub(super) struct ResponseLimits {
    position: Position,
    heads: usize,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Position {
    /// Within the first bytes of a head.
    Status { seen: [u8; STATUS_BYTES], count: usize },
    /// Within an informational head, up to its empty line.
    Informational { is_line_empty: bool },
}

impl Default for Position {
    fn default() -> Self {
        Self::Status { seen: [0; STATUS_BYTES], count: 0 }
    }
}

impl ResponseLimits {
    /// Checks bytes that were just read.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] beyond a limit.
    pub(super) fn check(&mut self, shared: &Shared, bytes: &[u8]) -> io::Result<()> {
        if !shared.awaiting_head.load(Ordering::Relaxed) {
            return shared.charge_frameless(bytes.len());
        }
        for byte in bytes {
            self.bytes += 1;
            if self.step(*byte) {
                *self = Self::default();
                shared.awaiting_head.store(false, Ordering::Relaxed);
                return Ok(());
            }
            if self.heads > INFORMATIONAL_MAX || self.bytes > INFORMATIONAL_BYTES_MAX {
                return Err(invalid("too many informational responses"));
            }
        }
        Ok(())
    }

    /// Consumes a byte. Returns true if the final head has begun.
    fn step(&mut self, byte: u8) -> bool {
        match &mut self.position {
            // Parsers skip empty lines before a head.
            Position::Status { count: 0, .. } if matches!(byte, b'\r' | b'\n') => {}
            Position::Status { seen, count } => {
                seen[*count] = byte;
                *count += 1;
                if *count == STATUS_BYTES {
                    if seen[9] != b'1' || seen[10..] == *b"01" {
                        return true;
                    }
                    self.heads += 1;
                    self.position = Position::Informational { is_line_empty: false };
                }
            }
            Position::Informational { is_line_empty } => match byte {
                b'\n' if *is_line_empty => self.position = Position::default(),
                b'\n' => *is_line_empty = true,
                b'\r' => {}
                _ => *is_line_empty = false,
            },
        }
        false
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

    /// Reads `text` in pieces. Returns true if the final head has begun, or `None` beyond a limit.
    fn read(text: &[u8], piece: usize) -> Option<bool> {
        let (mut limits, shared) = (ResponseLimits::default(), Shared::default());
        shared.begin_exchange();
        for bytes in text.chunks(piece) {
            limits.check(&shared, bytes).ok()?;
        }
        Some(!shared.awaiting_head.load(Ordering::Relaxed))
    }

    #[test]
    fn valid_responses_pass() {
        let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n";
        for piece in [1, 3, 12, 1000] {
            for response in
                ["HTTP/1.1 200 OK\r\n", "HTTP/1.0 404\r\n", "HTTP/1.1 101 Switching", "\r\n\nHTTP/1.1 200 OK"]
            {
                assert_eq!(read(response.as_bytes(), piece), Some(true), "{response}");
                assert_eq!(read(format!("{CONTINUE}{hints}{response}").as_bytes(), piece), Some(true), "{response}");
            }
            assert_eq!(read(format!("{CONTINUE}{hints}").as_bytes(), piece), Some(false));
            assert_eq!(read("HTTP/1.1 100\n\nHTTP/1.1 200".as_bytes(), piece), Some(true));
        }
    }

    #[test]
    fn each_exchange_has_its_own_limits() {
        let (mut limits, shared) = (ResponseLimits::default(), Shared::default());
        let response = format!("{}HTTP/1.1 200 OK\r\n\r\n", CONTINUE.repeat(INFORMATIONAL_MAX));
        for _ in 0..3 {
            shared.begin_exchange();
            limits.check(&shared, response.as_bytes()).expect("within the limits");
            limits.check(&shared, CONTINUE.repeat(1000).as_bytes()).expect("a body may have anything in it");
        }
    }

    #[test]
    fn endless_informational_responses_fail() {
        let endless_head = format!("HTTP/1.1 103 Early Hints\r\n{}", "link: </a>\r\n".repeat(10_000));
        for text in [CONTINUE.repeat(INFORMATIONAL_MAX + 1), "\r\n".repeat(INFORMATIONAL_BYTES_MAX), endless_head] {
            for piece in [1, 1000, 1 << 20] {
                assert_eq!(read(text.as_bytes(), piece), None);
            }
        }
    }

    #[test]
    fn a_response_without_content_fails() {
        let (mut limits, shared) = (ResponseLimits::default(), Shared::default());
        shared.begin_exchange();
        limits.check(&shared, b"HTTP/1.1 200 OK\r\n\r\n").expect("a head");
        let zeros = [b'0'; 1 << 10];
        let reads = (0..FRAMELESS_BYTES_MAX).take_while(|_| limits.check(&shared, &zeros).is_ok()).count();
        assert_eq!(reads, FRAMELESS_BYTES_MAX >> 10);
        shared.frame_received();
        limits.check(&shared, &zeros).expect("the limit was reset");
        shared.switch_protocols();
        assert!((0..2 * reads).all(|_| limits.check(&shared, &zeros).is_ok()));
    }

    proptest! {
        #[test]
        fn the_size_of_pieces_does_not_matter(heads in 0..80_usize, tail in "(HTTP/1.1 (1|2)0[01]|[\r\n]{0,3}|x{0,20})", piece in 1..200_usize) {
            let text = CONTINUE.repeat(heads) + &tail;
            prop_assert_eq!(read(text.as_bytes(), piece), read(text.as_bytes(), usize::MAX));
        }
    }
}
