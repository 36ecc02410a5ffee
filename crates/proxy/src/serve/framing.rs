//! Strict framing of HTTP/1.1 requests.
//!
//! A request that two parsers may read differently can smuggle another one past the first of them (RFC 9112, 11.2).
//! hyper accepts requests that a proxy in front of Hearth or a guest behind it may read differently: with lines that
//! end in a bare LF, with several lines of `Host` or of `Transfer-Encoding`, and with a length next to a transfer
//! coding. [`FramingCheck`] reads the bytes before hyper does. It overwrites the end of an invalid line with a NUL, so
//! that hyper responds with 400, after the responses to earlier requests; nothing of such a request is forwarded.
//!
//! hyper itself rejects folded lines, blanks before a colon and differing lengths; they are not checked here.

use http::{Request, Version, header};

/// Bytes stored of a line that arrives in several pieces: more than any relevant line has.
const LINE_BYTES_MAX: usize = 128;
/// Maximum length of a line with a chunk size and its extensions.
const CHUNK_LINE_BYTES_MAX: usize = 4 << 10;
/// Maximum number of digits of a chunk size. The grammar allows any number of leading zeros.
const CHUNK_DIGITS_MAX: usize = 64;
/// First line of HTTP/2, which its clients send before anything else.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Check of the bytes that a client sends.
#[derive(Debug)]
pub(super) struct FramingCheck {
    position: Position,
    /// Beginning of the current line, if it arrived in an earlier piece.
    line: Vec<u8>,
    /// Length of the current line so far.
    line_bytes: usize,
    /// Last byte received.
    last: u8,
    head: Head,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    RequestLine,
    Headers,
    /// Remaining bytes of a body of known length.
    Body(u64),
    ChunkSize,
    /// Remaining bytes of a chunk, and its line end.
    Chunk(u64),
    Trailers,
    /// HTTP/2, another protocol, or bytes that hyper rejects: nothing more is checked.
    Unchecked,
}

/// Relevant headers of the current head, as far as it was read.
#[derive(Debug, Default)]
struct Head {
    has_host: bool,
    length: Option<u64>,
    is_chunked: bool,
    requests_upgrade: bool,
}

/// A line that is invalid and gets a 400.
struct Malformed;

impl FramingCheck {
    /// Returns a check that starts at the first byte of a connection.
    pub(super) fn new() -> Self {
        Self { position: Position::RequestLine, line: Vec::new(), line_bytes: 0, last: 0, head: Head::default() }
    }

    /// Returns a check that accepts everything, for trusted peers.
    pub(super) fn disabled() -> Self {
        Self { position: Position::Unchecked, ..Self::new() }
    }

    fn stop(&mut self) {
        self.position = Position::Unchecked;
    }

    /// Checks bytes that were just read, and overwrites the end of the first invalid line.
    ///
    /// `is_busy`: an exchange is in progress, or the protocol was switched.
    pub(super) fn check(&mut self, bytes: &mut [u8], is_busy: bool) {
        let mut at = 0;
        while at < bytes.len() {
            if self.position == Position::RequestLine && self.head.requests_upgrade {
                // An upgrade request was read. More HTTP follows only after a response that rejects the upgrade.
                if is_busy || at > 0 {
                    return self.stop();
                }
                self.head = Head::default();
            }
            match self.position {
                Position::Unchecked => return,
                Position::Body(left) => at += self.skip(left, bytes.len() - at, Position::Body, Position::RequestLine),
                Position::Chunk(left) => at += self.skip(left, bytes.len() - at, Position::Chunk, Position::ChunkSize),
                Position::RequestLine | Position::Headers | Position::ChunkSize | Position::Trailers => {
                    let end = memchr::memchr(b'\n', &bytes[at..]).map(|offset| at + offset);
                    let Some(end) = end else { return self.retain_partial(&mut bytes[at..]) };
                    if self.finish_line(&bytes[at..end]).is_err() {
                        bytes[end] = 0;
                        return self.stop();
                    }
                    at = end + 1;
                }
            }
        }
    }

    /// Skips bytes of a body and returns their number.
    fn skip(&mut self, left: u64, available: usize, rest: fn(u64) -> Position, next: Position) -> usize {
        let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(available);
        let left = left - skipped as u64;
        self.position = if left == 0 { next } else { rest(left) };
        skipped
    }

    /// Stores the beginning of a line that is incomplete.
    fn retain_partial(&mut self, part: &mut [u8]) {
        let Some(last) = part.last() else { return };
        self.last = *last;
        self.line_bytes = self.line_bytes.saturating_add(part.len());
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len()).min(part.len());
        self.line.extend_from_slice(&part[..room]);
        if self.position == Position::ChunkSize && self.line_bytes > CHUNK_LINE_BYTES_MAX {
            part[0] = 0;
            self.stop();
        }
    }

    /// Completes a line whose last piece is `part`, without its LF.
    fn finish_line(&mut self, part: &[u8]) -> Result<(), Malformed> {
        let before_lf = part.last().copied().unwrap_or(if self.line_bytes > 0 { self.last } else { 0 });
        if before_lf != b'\r' {
            return Err(Malformed);
        }
        let line_bytes = self.line_bytes + part.len() - 1;
        if self.line_bytes == 0 {
            return self.check_line(&part[..line_bytes], line_bytes);
        }
        let mut line = std::mem::take(&mut self.line);
        self.line_bytes = 0;
        line.extend_from_slice(&part[..part.len().min(LINE_BYTES_MAX.saturating_sub(line.len()))]);
        line.truncate(line_bytes);
        let result = self.check_line(&line, line_bytes);
        line.clear();
        self.line = line;
        result
    }

    /// Checks a line. `line` is the whole line of `line_bytes`, or the beginning of a long one.
    fn check_line(&mut self, line: &[u8], line_bytes: usize) -> Result<(), Malformed> {
        match self.position {
            // Parsers skip empty lines before a head.
            Position::RequestLine if line.is_empty() => {}
            Position::RequestLine => {
                self.head = Head::default();
                self.position = if line == HTTP2_PREFACE { Position::Unchecked } else { Position::Headers };
            }
            Position::Headers if line.is_empty() => self.position = self.head.body_position(),
            Position::Headers => self.head.check_header(line, line_bytes)?,
            Position::ChunkSize => {
                let size = chunk_size(line).filter(|_| line_bytes <= CHUNK_LINE_BYTES_MAX).ok_or(Malformed)?;
                self.position = if size == 0 { Position::Trailers } else { Position::Chunk(size.saturating_add(2)) };
            }
            Position::Trailers if line.is_empty() => self.position = Position::RequestLine,
            Position::Trailers | Position::Body(_) | Position::Chunk(_) | Position::Unchecked => {}
        }
        Ok(())
    }
}

impl Head {
    /// Checks a header that defines the end of a request, its host or an upgrade.
    fn check_header(&mut self, line: &[u8], line_bytes: usize) -> Result<(), Malformed> {
        // The first letter excludes most headers.
        if !matches!(line.first().map(u8::to_ascii_lowercase), Some(b'h' | b'c' | b't' | b'u')) {
            return Ok(());
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(()) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is_whole = line_bytes <= LINE_BYTES_MAX;
        if name.eq_ignore_ascii_case(b"host") {
            if std::mem::replace(&mut self.has_host, true) {
                return Err(Malformed);
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = decimal(value).filter(|_| is_whole).ok_or(Malformed)?;
            if self.is_chunked || self.length.replace(length).is_some() {
                return Err(Malformed);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_known = is_whole && value.eq_ignore_ascii_case(b"chunked");
            if !is_known || self.length.is_some() || std::mem::replace(&mut self.is_chunked, true) {
                return Err(Malformed);
            }
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.requests_upgrade = true;
        }
        Ok(())
    }

    fn body_position(&self) -> Position {
        match self.length {
            _ if self.is_chunked => Position::ChunkSize,
            None | Some(0) => Position::RequestLine,
            Some(length) => Position::Body(length),
        }
    }
}

/// Returns true if an HTTP/2 request names two different hosts, which is malformed (RFC 9113, 8.3.1).
///
/// In HTTP/1.1 that is possible only with an absolute URI, which takes precedence over `Host` (RFC 9112, 3.2.2).
pub(super) fn has_conflicting_hosts<B>(request: &Request<B>) -> bool {
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return false };
    let differs =
        |authority: &http::uri::Authority| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
    hosts.next().is_some() || request.uri().authority().is_some_and(differs)
}

fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

/// Parses the size in the line before a chunk.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let digits = std::str::from_utf8(&line[..end]).ok().filter(|_| end <= CHUNK_DIGITS_MAX)?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Checks `text` in pieces. Returns the position of the byte that was overwritten.
    fn invalidated(text: &str, piece: usize) -> Option<usize> {
        let (mut framing, mut bytes) = (FramingCheck::new(), text.as_bytes().to_vec());
        for part in bytes.chunks_mut(piece) {
            framing.check(part, false);
        }
        bytes.iter().zip(text.bytes()).position(|(after, before)| *after != before)
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn valid_requests_pass() {
        for text in [
            GET.to_owned(),
            GET.repeat(3),
            format!("\r\n\r\n{GET}"),
            format!("GET / HTTP/1.1\r\nhost: a\r\nuser-agent: {}\r\n\r\n{GET}", "x".repeat(1000)),
            // A body may contain anything.
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na\nb\r\n\r\n\n\n{GET}"),
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:0\r\n\r\n{GET}"),
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n{GET}"),
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00a;x=y\r\n0123456\n\n\n\r\n0\r\nx: y\r\n\r\n{GET}"
            ),
            format!("{}\r\n\r\nSM\r\n\r\n\n\n\n", "PRI * HTTP/2.0"),
        ] {
            for piece in [1, 2, 7, 1 << 20] {
                assert_eq!(invalidated(&text, piece), None, "{text:?} by {piece}");
            }
        }
    }

    #[test]
    fn ambiguous_requests_are_invalidated() {
        let long = "0".repeat(2 * CHUNK_LINE_BYTES_MAX);
        for wrong in [
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\r\nhost: a\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\n",
            "\n",
            "GET / HTTP/1.1\r\nhost: a\r\nHost: a\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\nHOST:\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked, chunked\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\x0b\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding:\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n",
            "POST / HTTP/1.1\r\ncontent-length: +1\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1, 1\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n",
            &format!("POST / HTTP/1.1\r\ncontent-length: {long}1\r\n"),
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n10000000000000000\r\n",
        ] {
            for before in ["", GET] {
                let text = format!("{before}{wrong}");
                for piece in [1, 2, 7, 1 << 20] {
                    assert_eq!(invalidated(&text, piece), Some(text.len() - 1), "{text:?} by {piece}");
                }
            }
        }
        let endless = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{long}");
        for piece in [1, 100, 1 << 20] {
            assert!(invalidated(&endless, piece).is_some(), "by {piece}");
        }
    }

    #[test]
    fn other_protocols_are_not_checked() {
        const UPGRADE: &str = "GET / HTTP/1.1\r\nhost: a\r\nUpgrade: websocket\r\n\r\n";
        let check = |early: &str, late: &str, is_busy: bool| {
            let (mut framing, mut early) = (FramingCheck::new(), format!("{UPGRADE}{early}").into_bytes());
            framing.check(&mut early, false);
            let mut checked = late.as_bytes().to_vec();
            framing.check(&mut checked, is_busy);
            early.contains(&0) || checked != late.as_bytes()
        };
        assert!(!check("a\n", "b\n", false));
        assert!(!check("", "b\n", true));
        assert!(check("", "b\n", false), "the upgrade was rejected");
    }

    proptest! {
        #[test]
        fn the_size_of_pieces_does_not_matter(
            lines in prop::collection::vec("(GET / HTTP/1.1|host: a|content-length: [0-9]{1,2}|transfer-encoding: chunked|[0-9a-f]{1,2}|x{0,200}|)\r{0,1}\n", 0..12),
            piece in 1..40_usize,
        ) {
            let text = lines.concat();
            prop_assert_eq!(invalidated(&text, piece), invalidated(&text, usize::MAX));
        }

        #[test]
        fn any_bytes_are_accepted_without_panic(bytes in prop::collection::vec(prop::sample::select(b"\r\n:0aGhct ".to_vec()), 0..300), piece in 1..50_usize) {
            let mut framing = FramingCheck::new();
            let mut bytes = bytes;
            for part in bytes.chunks_mut(piece) {
                framing.check(part, false);
            }
        }
    }
}
