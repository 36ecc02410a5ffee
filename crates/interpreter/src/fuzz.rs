//! Entry points of the fuzz targets (the repository's `fuzz/`): bytes that come from a kernel.
//!
//! Invariants that hold for every input are asserted here, so that a fuzzer and an ordinary test find the same
//! violations. Every input is deterministic: no socket, no process, and a fixed time.

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::message::{Kind, Message, Signer};
use crate::zmtp::Decoder;
use crate::{content, lenient};

#[cfg(test)]
mod seeds;

/// Key of the signed form. Seeds are signed with it.
const KEY: &str = "key";
/// Longest form of one input byte in a line: an escape sequence, for which invalid UTF-8 is first replaced.
const GROWTH_MAX: usize = 8;
/// Bytes of a line beside the input's.
const FRAME_BYTES_MAX: usize = 512;

/// Bytes of a kernel's socket behind the greeting.
///
/// The first byte is the size of the pieces in which they arrive, zero for one piece; an odd second byte requires
/// signatures.
pub fn kernels(data: &[u8]) {
    let Some((&[piece, signed], wire)) = data.split_first_chunk() else { return };
    let signer = Signer::new(if signed & 1 == 1 { KEY } else { "" });
    let size = if piece == 0 { wire.len().max(1) } else { usize::from(piece) };
    let mut decoder = Decoder::default();
    let (mut kept, mut messages) = (0, 0);
    for piece in wire.chunks(size) {
        decoder.buffer.extend_from_slice(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => {
                    kept += message.frames.iter().map(Bytes::len).sum::<usize>();
                    messages += 1;
                    if let Ok(message) = Message::parse(message, &signer) {
                        events(message.kind, &message.content);
                    }
                }
                Ok(None) => break,
                // The connection is closed.
                Err(_) => return,
            }
        }
    }
    assert!(kept <= wire.len() && messages <= wire.len(), "nothing is invented");
}

/// Content of a message. The first byte selects the type.
pub fn bundles(data: &[u8]) {
    let Some((kind, content)) = data.split_first() else { return };
    let kinds = [Kind::ExecuteResult, Kind::DisplayData, Kind::Stream, Kind::Error, Kind::ExecuteReply, Kind::Status];
    events(kinds[usize::from(*kind) % kinds.len()], &Bytes::copy_from_slice(content));
    let text = String::from_utf8_lossy(content);
    let repaired = lenient::repaired(&text);
    assert_eq!(lenient::repaired(&repaired), repaired, "a repair is complete");
    if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
        assert_eq!(repaired, text, "valid JSON is not changed");
    }
}

/// Makes the events of a message and checks them.
fn events(kind: Kind, content: &Bytes) {
    if kind == Kind::Stream {
        for line in content::stream_events(content, jiff::Timestamp::UNIX_EPOCH, content.len().is_multiple_of(2)) {
            check(&line, content.len());
        }
        return;
    }
    let line = match kind {
        Kind::ExecuteResult => content::result_event(content, true),
        Kind::DisplayData => content::result_event(content, false),
        Kind::Error => content::error_event(content),
        Kind::ExecuteInput => content::count_event(content, 1),
        Kind::ExecuteReply => match content::reply(content).status {
            content::ReplyStatus::Error(line) => Some(line),
            _ => None,
        },
        Kind::Status => {
            content::activity(content);
            None
        }
        Kind::Stream | Kind::KernelInfoReply | Kind::Other => None,
    };
    if let Some(line) = line {
        check(&line, content.len());
    }
}

/// Checks the form of a line: one line of ASCII characters, an object with a type, and of a bounded size.
fn check(line: &[u8], input_bytes: usize) {
    let (end, json) = line.split_last().expect("a line is not empty");
    assert_eq!(*end, b'\n');
    assert!(json.iter().all(|byte| (b' '..=b'~').contains(byte)), "only printable ASCII");
    let text = std::str::from_utf8(json).expect("ASCII");
    assert!(text.starts_with("{\"type\":\"") && text.ends_with('}'));
    serde_json::from_str::<IgnoredAny>(text).expect("valid JSON");
    assert!(line.len() <= input_bytes * GROWTH_MAX + FRAME_BYTES_MAX, "{} bytes of {input_bytes}", line.len());
}
