//! Calls of the Connect protocol, and checks of their replies.

use axum::body::Body;
use axum::extract::State as Extract;
use axum::response::Response;
use bytes::Bytes;
use connectrpc::MethodKind;
use hearth_envd_api::filesystem::FilesystemExt as _;
use hearth_envd_api::process::ProcessExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use serde_json::{Value, json};

use super::{Ending, complete, gzip, pieces};
use crate::filesystem::FilesystemService;
use crate::process::ProcessService;
use crate::rpc;
use crate::state::{DaemonConfig, State};

/// A procedure that only reads the daemon's own state.
///
/// `Start` and procedures with a path must never be added: a fuzzer may run as root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Procedure {
    pub(super) path: &'static str,
    kind: MethodKind,
}

const fn unary(path: &'static str) -> Procedure {
    Procedure { path, kind: MethodKind::Unary }
}

pub(super) const PROCEDURES: [Procedure; 9] = [
    LIST,
    CONNECT,
    unary("/process.Process/Update"),
    Procedure { path: "/process.Process/StreamInput", kind: MethodKind::ClientStreaming },
    unary("/process.Process/SendInput"),
    unary("/process.Process/SendSignal"),
    unary("/process.Process/CloseStdin"),
    unary("/filesystem.Filesystem/GetWatcherEvents"),
    unary("/filesystem.Filesystem/RemoveWatcher"),
];
pub(super) const LIST: Procedure = unary("/process.Process/List");
pub(super) const CONNECT: Procedure = Procedure { path: "/process.Process/Connect", kind: MethodKind::ServerStreaming };

/// Control bytes before the body.
pub(super) const HEAD_BYTES: usize = 5;
const ENCODINGS: [Option<&str>; 4] = [None, Some("gzip"), Some("identity"), Some("br")];
const ACCEPTED: [Option<&str>; 4] = [None, Some("gzip, deflate"), Some("identity"), Some("zstd,gzip,br")];
const TIMEOUTS: [Option<&str>; 8] =
    [None, Some("1"), Some("60000"), Some("9999999999"), Some("0"), Some(""), Some("+5"), Some("10000000000")];
const VERSIONS: [Option<&str>; 4] = [None, Some("1"), Some("1"), Some("2")];

/// A call. The bytes before the body select:
///
/// | byte | bits | |
/// |---|---|---|
/// | 0 | all | the procedure, modulo their number |
/// | 1 | 0 | the codec: JSON, binary |
/// | | 1-2 | the content type: correct, twice; with a parameter; of the other kind of procedure |
/// | | 3-4 | the body's encoding ([`ENCODINGS`]) |
/// | | 5-6 | the accepted encoding ([`ACCEPTED`]) |
/// | | 7 | a client of the first schema |
/// | 2 | all | the size of the body's pieces; 0: one piece |
/// | 3 | 0-2 | the deadline ([`TIMEOUTS`]) |
/// | | 3-4 | the protocol's version ([`VERSIONS`]) |
/// | | 5-6 | the body's end: complete, twice; broken; never, which needs a deadline |
/// | | 7 | GET instead of POST |
/// | 4 | 0-1 | the form of the remaining data ([`Call::wrap`]) |
#[derive(Debug)]
pub(super) struct Call {
    procedure: Procedure,
    method: Method,
    headers: HeaderMap,
    body: Vec<u8>,
    piece_bytes: usize,
    ending: Ending,
}

impl Call {
    pub(super) fn read(data: &[u8]) -> Option<Self> {
        let (head, rest) = data.split_at_checked(HEAD_BYTES)?;
        let &[procedure, form, piece_bytes, times, shape] = head else { return None };
        let procedure = PROCEDURES[usize::from(procedure) % PROCEDURES.len()];
        let is_stream = is_stream(procedure.kind);
        let choice = |byte: u8, shift: u8, count: u8| usize::from(byte >> shift) % usize::from(count);

        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: Option<&str>| {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        };
        let content_choice = choice(form, 1, 4);
        let prefix = if is_stream == (content_choice != 3) { "application/connect+" } else { "application/" };
        let codec = ["json", "proto"][choice(form, 0, 2)];
        let parameter = if content_choice == 2 { "; charset=utf-8" } else { "" };
        put("content-type", Some(&format!("{prefix}{codec}{parameter}")));
        let encoding = ENCODINGS[choice(form, 3, 4)];
        put(if is_stream { "connect-content-encoding" } else { "content-encoding" }, encoding);
        put(if is_stream { "connect-accept-encoding" } else { "accept-encoding" }, ACCEPTED[choice(form, 5, 4)]);
        if is_stream {
            // Sent by a client's HTTP library; without effect.
            put("accept-encoding", Some("zstd,gzip,br"));
        }
        put("user-agent", (form >> 7 == 1).then_some("connect-python"));
        let timeout = choice(times, 0, 8);
        put("connect-timeout-ms", TIMEOUTS[timeout]);
        put("connect-protocol-version", VERSIONS[choice(times, 3, 4)]);

        let ending = match choice(times, 5, 4) {
            2 => Ending::Broken,
            3 if (1..=3).contains(&timeout) => Ending::Never,
            _ => Ending::Whole,
        };
        let body = Self::wrap(choice(shape, 0, 4), is_stream, rest);
        let method = if times >> 7 == 1 { Method::GET } else { Method::POST };
        Some(Self { procedure, method, headers, body, piece_bytes: piece_bytes.into(), ending })
    }

    /// Builds the body: the data unchanged, as one message, as a compressed message, or as several messages.
    ///
    /// Each of several messages has a byte of flags and a byte of length in front. A fuzzer does not find checksums and
    /// long lengths by itself.
    fn wrap(shape: usize, is_stream: bool, rest: &[u8]) -> Vec<u8> {
        match (shape, is_stream) {
            (1, true) => envelope(0, rest),
            (2, true) => envelope(1, &gzip(rest)),
            (2, false) => gzip(rest),
            (3, true) => {
                let mut body = Vec::new();
                let mut rest = rest;
                while let [flags, length, after @ ..] = rest {
                    let (message, behind) = after.split_at(after.len().min((*length).into()));
                    let compressed = if flags & 1 == 1 { gzip(message) } else { message.to_vec() };
                    body.extend(envelope(*flags, &compressed));
                    rest = behind;
                }
                body
            }
            _ => rest.to_vec(),
        }
    }

    /// Returns true if the head alone causes a rejection.
    fn is_rejected(&self) -> bool {
        let is_other_kind = self.headers["content-type"].as_bytes().starts_with(b"application/connect+")
            != is_stream(self.procedure.kind);
        let is_other_version = self.headers.get("connect-protocol-version").is_some_and(|version| version != "1");
        self.method != Method::POST || is_other_kind || is_other_version
    }

    pub(super) fn send(&self) -> Reply {
        self.send_in_pieces(self.piece_bytes)
    }

    fn send_in_pieces(&self, piece_bytes: usize) -> Reply {
        let body = Body::from_stream(pieces(&self.body, piece_bytes, self.ending));
        call_procedure(self.procedure, &self.method, &self.headers, body)
    }
}

pub(super) fn run(data: &[u8]) {
    let Some(call) = Call::read(data) else { return };
    let reply = call.send();
    check(call.procedure, &call.method, &call.headers, &reply);
    match call.ending {
        // A call that has started and whose body is not read to its end closes the connection. One that is rejected for
        // its head is left to the HTTP library, which also closes the connection.
        Ending::Never if !call.is_rejected() => {
            assert_eq!(reply.headers.get(header::CONNECTION), Some(&HeaderValue::from_static("close")));
        }
        Ending::Whole if call.piece_bytes != 0 => {
            let in_one_piece = call.send_in_pieces(0);
            assert_eq!(
                (reply.status, reply.code()),
                (in_one_piece.status, in_one_piece.code()),
                "pieces change the result"
            );
        }
        Ending::Whole | Ending::Broken | Ending::Never => {}
    }
}

pub(super) fn envelope(flags: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("inputs are shorter than 4 GiB");
    [&[flags][..], &length.to_be_bytes(), message].concat()
}

/// A complete reply.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn header(&self, name: impl header::AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("the daemon's headers are text"))
    }

    /// Returns true if the content type is that of a stream.
    fn is_stream(&self) -> bool {
        self.header(header::CONTENT_TYPE).starts_with("application/connect+")
    }

    /// Returns the error code of either kind of reply.
    pub(super) fn code(&self) -> Option<String> {
        let error = if self.is_stream() {
            let (_, end) = envelopes(&self.body).pop()?;
            serde_json::from_slice::<Value>(&end).ok()?.get_mut("error")?.take()
        } else {
            serde_json::from_slice::<Value>(&self.body).ok()?
        };
        error.get("code")?.as_str().map(str::to_owned)
    }
}

/// Calls a procedure of a newly started daemon.
pub(super) fn call_procedure(procedure: Procedure, method: &Method, headers: &HeaderMap, body: Body) -> Reply {
    assert!(PROCEDURES.iter().any(|known| known.path == procedure.path), "only listed procedures are called");
    let state = State::new(DaemonConfig::default());
    let processes = std::sync::Arc::new(ProcessService::new(state.clone()));
    let files = std::sync::Arc::new(FilesystemService::new(state));
    let services = rpc::services(files.register(processes.register(connectrpc::Router::new())));
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = http::Uri::from_static(procedure.path);
    *request.headers_mut() = headers.clone();
    complete(async {
        let response: Response = rpc::serve(Extract(services), request).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("a reply is complete");
        Reply { status: parts.status.as_u16(), headers: parts.headers, body }
    })
}

/// Checks the contract's rules for every reply (sections 3.2 to 3.7).
pub(super) fn check(procedure: Procedure, method: &Method, headers: &HeaderMap, reply: &Reply) {
    let is_stream = is_stream(procedure.kind);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = text("content-type").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let prefix = if is_stream { "application/connect+" } else { "application/" };
    let codec = content_type.strip_prefix(prefix).filter(|codec| ["json", "proto"].contains(codec));
    if method != Method::POST {
        assert_eq!((reply.status, reply.header(header::ALLOW), reply.body.len()), (405, "POST", 0));
        return;
    }
    let Some(codec) = codec else {
        assert_eq!((reply.status, reply.body.len()), (415, 0), "{content_type:?}");
        assert_eq!(reply.header("accept-post"), format!("{prefix}json, {prefix}proto"));
        return;
    };
    if is_stream {
        let accepted = text("connect-accept-encoding").to_ascii_lowercase();
        check_stream(procedure, codec, accepted.contains("gzip"), reply);
    } else {
        // The protocol permits the request's own encoding for the reply.
        let accepted = format!("{} {}", text("accept-encoding"), text("content-encoding")).to_ascii_lowercase();
        check_unary(procedure, codec, accepted.contains("gzip"), reply);
    }
}

fn check_unary(procedure: Procedure, codec: &str, accepts_gzip: bool, reply: &Reply) {
    let encoding = reply.header(header::CONTENT_ENCODING);
    if reply.status != 200 {
        assert_eq!((reply.header(header::CONTENT_TYPE), encoding), ("application/json", ""), "{reply:?}");
        let error: Value = serde_json::from_slice(&reply.body).expect("an error is JSON");
        check_error(&error, Some(reply.status));
        return;
    }
    assert_eq!(reply.header(header::CONTENT_TYPE), format!("application/{codec}"));
    let body = match encoding {
        "" => reply.body.to_vec(),
        "gzip" if accepts_gzip => gunzip(&reply.body),
        other => panic!("not accepted: {other:?}"),
    };
    check_message(procedure, codec, &body);
}

fn check_stream(procedure: Procedure, codec: &str, accepts_gzip: bool, reply: &Reply) {
    assert_eq!(reply.status, 200, "a stream always has status 200");
    assert_eq!(reply.header(header::CONTENT_TYPE), format!("application/connect+{codec}"));
    assert_eq!(reply.header(header::CONTENT_ENCODING), "", "a stream is compressed by messages");
    let encoding = reply.header("connect-content-encoding");
    assert!(encoding.is_empty() || (encoding == "gzip" && accepts_gzip), "not accepted: {encoding:?}");
    let mut messages = envelopes(&reply.body);
    for (flags, message) in &mut messages {
        assert!(*flags <= 3, "unknown flags {flags}");
        if *flags & 1 == 1 {
            assert_eq!(encoding, "gzip", "compressed without the header");
            *message = gunzip(message);
        }
    }
    let (flags, end) = messages.pop().expect("a stream has an end message");
    assert!(flags & 2 == 2, "the last message is not the end");
    assert!(messages.iter().all(|(flags, _)| flags & 2 == 0), "two end messages");
    let end: Value = serde_json::from_slice(&end).expect("the end is JSON");
    let end = end.as_object().expect("the end is an object");
    match end.get("error") {
        // A failed call has no messages: none of the daemon's procedures fails in the middle here.
        Some(error) => {
            check_error(error, None);
            assert!(messages.is_empty(), "a message and an error");
        }
        None => {
            assert_eq!(messages.len(), 1, "a client stream has one reply message");
            check_message(procedure, codec, &messages[0].1);
        }
    }
}

/// Checks a successful message. Without processes and watches only two procedures succeed, with empty messages.
fn check_message(procedure: Procedure, codec: &str, message: &[u8]) {
    assert!(["/process.Process/List", "/process.Process/StreamInput"].contains(&procedure.path), "{procedure:?}");
    if codec == "json" {
        assert_eq!(serde_json::from_slice::<Value>(message).expect("JSON"), json!({}));
    } else {
        assert!(message.is_empty(), "{message:?}");
    }
}

fn check_error(error: &Value, status: Option<u16>) {
    let code = error["code"].as_str().expect("a code is text");
    assert!(error.get("message").is_none_or(Value::is_string), "a message is text");
    let expected = status_of(code).unwrap_or_else(|| panic!("`{code}` is not a code"));
    assert!(status.is_none_or(|status| status == expected), "{status:?} for `{code}`");
    // These codes would be defects of the daemon.
    assert!(!["unknown", "data_loss"].contains(&code), "{error}");
}

/// The contract's table (section 3.7).
fn status_of(code: &str) -> Option<u16> {
    Some(match code {
        "canceled" => 499,
        "unknown" | "internal" | "data_loss" => 500,
        "invalid_argument" | "failed_precondition" | "out_of_range" => 400,
        "deadline_exceeded" => 504,
        "not_found" => 404,
        "already_exists" | "aborted" => 409,
        "permission_denied" => 403,
        "resource_exhausted" => 429,
        "unimplemented" => 501,
        "unavailable" => 503,
        "unauthenticated" => 401,
        _ => return None,
    })
}

/// Returns flags and content of every envelope. Panics if the last one is truncated.
fn envelopes(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let ([flags, length @ ..], rest) = bytes.split_first_chunk::<5>().expect("a whole head of an envelope");
        let length = u32::from_be_bytes(*length) as usize;
        let (message, rest) = rest.split_at_checked(length).expect("a whole envelope");
        found.push((*flags, message.to_vec()));
        bytes = rest;
    }
    found
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    let read = std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut content);
    read.expect("decompress a gzip message");
    content
}

fn is_stream(kind: MethodKind) -> bool {
    kind != MethodKind::Unary
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM_INPUT: Procedure = PROCEDURES[3];

    /// Sends a stream of envelopes and returns status and code.
    fn outcome(body: &[u8], piece_bytes: usize) -> (u16, Option<String>) {
        let headers = [("content-type", "application/connect+json"), ("connect-content-encoding", "gzip")];
        let headers =
            headers.map(|(name, value)| (name.parse().expect("a header name"), HeaderValue::from_static(value)));
        let headers = HeaderMap::from_iter(headers);
        let body = Body::from_stream(pieces(body, piece_bytes, Ending::Whole));
        let reply = call_procedure(STREAM_INPUT, &Method::POST, &headers, body);
        check(STREAM_INPUT, &Method::POST, &headers, &reply);
        (reply.status, reply.code())
    }

    /// Generates a message without effect, of any length, compressed or not.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        (0usize..3000, any::<bool>()).prop_map(|(length, is_compressed)| {
            let text = format!("{}{{\"keepalive\":{{}}}}", " ".repeat(length));
            if is_compressed { envelope(1, &gzip(text.as_bytes())) } else { envelope(0, text.as_bytes()) }
        })
    }

    proptest! {
        #[test]
        fn envelopes_may_be_split_anywhere(
            messages in proptest::collection::vec(message(), 0..5),
            piece_bytes in prop_oneof![0usize..8, 0usize..2000],
        ) {
            prop_assert_eq!(outcome(&messages.concat(), piece_bytes), (200, None));
        }

        #[test]
        fn a_truncated_envelope_is_an_error(message in message(), cut in any::<prop::sample::Index>(), piece_bytes in 0usize..64) {
            let cut = 1 + cut.index(message.len() - 1);
            let (status, code) = outcome(&message[..cut], piece_bytes);
            prop_assert_eq!(status, 200);
            prop_assert!(code.is_some());
        }

        #[test]
        fn a_length_beyond_the_body_is_an_error(length in 1u32.., present in 0u32..64) {
            let present = present.min(length - 1);
            let body = [&[0][..], &length.to_be_bytes(), &vec![b' '; present as usize]].concat();
            let (status, code) = outcome(&body, 0);
            prop_assert_eq!(status, 200);
            prop_assert!(code.is_some());
        }
    }
}
