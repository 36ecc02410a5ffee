//! Initial inputs of the fuzzers: requests as clients send them.
//!
//! They are stored in the repository's `fuzz/corpus` beside inputs that fuzzers found; the tests here replay all of
//! them.

use std::fs;
use std::path::PathBuf;

use super::frames::{Call, HEAD_BYTES, PROCEDURES, envelope};
use super::gzip;
use super::headers::TOKEN;
use crate::files::fuzz::MULTIPART_HEAD_BYTES;

/// Limits of a target's corpus, because it is committed and replayed by every test run.
const FILES_MAX: usize = 200;
const BYTES_MAX: u64 = 300_000;

/// A target and its corpus.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<(String, Vec<u8>)>,
}

const TARGETS: [Target; 3] = [
    Target { name: "frames", run: super::frames, seeds: frames },
    Target { name: "multipart", run: super::multipart, seeds: multipart },
    Target { name: "headers", run: super::headers, seeds: headers },
];

impl Target {
    fn folder(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(self.name)
    }
}

/// A message for each procedure, as JSON and in the binary codec (written by hand with the contract's field numbers).
const MESSAGES: [(&str, &str, &[u8]); 14] = [
    ("List", "{}", b""),
    ("Connect", r#"{"process":{"pid":999999}}"#, b"\x0a\x04\x08\xbf\x84\x3d"),
    ("Connect", r#"{"process":{"tag":"t"}}"#, b"\x0a\x03\x12\x01t"),
    (
        "Update",
        r#"{"process":{"pid":341},"pty":{"size":{"cols":100,"rows":24}}}"#,
        b"\x0a\x03\x08\xd5\x02\x12\x06\x0a\x04\x08\x64\x10\x18",
    ),
    ("StreamInput", r#"{"keepalive":{}}"#, b"\x1a\x00"),
    ("StreamInput", r#"{"start":{"process":{"pid":341}}}"#, b"\x0a\x05\x0a\x03\x08\xd5\x02"),
    ("StreamInput", r#"{"data":{"input":{"stdin":"aGkK"}}}"#, b"\x12\x07\x12\x05\x0a\x03hi\n"),
    ("SendInput", r#"{"process":{"pid":341},"input":{"stdin":"aGkK"}}"#, b"\x0a\x03\x08\xd5\x02\x12\x05\x0a\x03hi\n"),
    ("SendInput", r#"{"process":{"tag":"t"},"input":{"pty":"aGk_"}}"#, b"\x0a\x03\x12\x01t\x12\x05\x12\x03hi?"),
    ("SendSignal", r#"{"process":{"pid":"341"},"signal":"SIGNAL_SIGKILL"}"#, b"\x0a\x03\x08\xd5\x02\x10\x09"),
    ("SendSignal", r#"{"process":null,"signal":15,"unknown":[1,{"a":-1.5e3}]}"#, b"\x10\x0f\x7a\x02\x08\x01"),
    ("CloseStdin", r#"{"process":{"pid":341}}"#, b"\x0a\x03\x08\xd5\x02"),
    ("GetWatcherEvents", r#"{"watcherId":"w1"}"#, b"\x0a\x02w1"),
    ("RemoveWatcher", r#"{"watcher_id":"w\u00fc"}"#, "\x0a\x03wü".as_bytes()),
];

fn frames() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (number, (name, json, binary)) in MESSAGES.iter().enumerate() {
        let found = PROCEDURES.iter().position(|procedure| procedure.path.ends_with(&format!("/{name}")));
        let procedure = u8::try_from(found.expect("a listed procedure")).expect("fewer than 256");
        for (codec, codec_name, message) in [(0, "json", json.as_bytes()), (1, "proto", binary)] {
            let mut add = |what: &str, form: u8, piece_bytes: u8, times: u8, shape: u8, rest: &[u8]| {
                let head: [u8; HEAD_BYTES] = [procedure, form | codec, piece_bytes, times, shape];
                let name = format!("seed-{number:02}-{}-{codec_name}-{what}", name.to_lowercase());
                seeds.push((name, [&head[..], rest].concat()));
            };
            add("plain", 0, 0, 0b1010, 1, message);
            add("gzip", 0b0010_1000, 3, 0b1000, 2, message);
        }
    }
    let stream_input = 3;
    let many = |codec: u8| {
        let messages = MESSAGES.iter().filter(|(name, ..)| *name == "StreamInput");
        let messages = messages.map(|(_, json, binary)| if codec == 0 { json.as_bytes() } else { binary });
        let framed = messages.enumerate().map(|(index, message)| {
            let length = u8::try_from(message.len()).expect("shorter than 256 bytes");
            [&[u8::try_from(index % 2).expect("a bit"), length], message].concat()
        });
        framed.collect::<Vec<_>>().concat()
    };
    let whole = [envelope(0, b"{\"keepalive\":{}}"), envelope(1, &gzip(b"{\"keepalive\":{}}"))].concat();
    for (name, head, rest) in [
        ("many-json", [stream_input, 0b1000, 7, 0, 3], many(0)),
        ("many-proto", [stream_input, 0b1001, 7, 0, 3], many(1)),
        ("raw", [stream_input, 0b1000, 1, 0, 0], whole),
        ("unannounced", [stream_input, 0, 0, 0, 2], b"{}".to_vec()),
        ("never-ends", [stream_input, 0, 0, 0b0110_0001, 1], b"{\"keepalive\":{}}".to_vec()),
        ("broken", [2, 0, 2, 0b0100_0000, 0], b"{\"process\":".to_vec()),
        ("other-kind", [1, 0b110, 0, 0, 1], b"{}".to_vec()),
        ("parameter", [0, 0b100, 0, 0, 0], b"{}".to_vec()),
        ("get", [0, 0, 0, 0b1000_0000, 0], Vec::new()),
        ("version", [0, 0, 0, 0b1_1000, 0], b"{}".to_vec()),
        ("legacy", [7, 0b1000_0000, 0, 0, 0], br#"{"watcherId":"w"}"#.to_vec()),
        ("deadline", [0, 0, 0, 0b111, 0], b"{}".to_vec()),
        ("encoding", [0, 0b1_1000, 0, 0, 0], b"{}".to_vec()),
        ("empty", [0, 0, 0, 0, 0], Vec::new()),
    ] {
        seeds.push((format!("seed-{name}"), [&head[..], &rest].concat()));
    }
    seeds
}

/// A form as the SDKs send it.
const FORM: &str = "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/home/user/a b.txt\"\r\n\
     Content-Type: text/plain\r\n\r\nhello\r\nworld\r\n\
     --xyz\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nnot a file\r\n\
     --xyz\r\nContent-Disposition: form-data; name=\"file\"; filename*=utf-8''%C3%BC.bin\r\n\
     Content-Type: application/octet-stream\r\n\r\n\0\r\n--xy\r\r\n--xyz--\r\n";

fn multipart() -> Vec<(String, Vec<u8>)> {
    let other = FORM.replace("--xyz", "--a=b;c");
    let named = format!("multipart/form-data; charset=x; boundary*=utf-8''xy%7A\n{FORM}");
    let many: String = (0..20)
        .map(|number| {
            format!("--xyz\r\nContent-Disposition: form-data; name=file; filename={number}\r\n\r\n{number}\r\n")
        })
        .collect();
    let seeds: [(&str, [u8; MULTIPART_HEAD_BYTES], &[u8]); 14] = [
        ("form", [0, 0, 0], FORM.as_bytes()),
        ("pieces", [0, 1, 0], FORM.as_bytes()),
        ("pieces-of-7", [0, 7, 0], FORM.as_bytes()),
        ("gzip", [0, 5, 2], FORM.as_bytes()),
        ("really-gzip", [0, 9, 1], &gzip(FORM.as_bytes())),
        ("not-gzip", [0, 0, 1], FORM.as_bytes()),
        ("quoted-boundary", [1, 11, 0], other.as_bytes()),
        ("named-boundary", [3, 13, 0], named.as_bytes()),
        ("no-boundary", [3, 0, 0], b"multipart/form-data\n--xyz--"),
        ("broken", [0, 3, 0b1100], &FORM.as_bytes()[..150]),
        ("cut", [0, 0, 0], &FORM.as_bytes()[..200]),
        ("many", [0, 50, 0], &[many.as_bytes(), b"--xyz--"].concat()),
        ("preamble", [0, 4, 0], b"before\r\n--xyz  \t\r\n\r\n\r\n--xyz--after"),
        ("empty", [0, 0, 0], b"--xyz--\r\n"),
    ];
    seeds.into_iter().map(|(name, head, body)| (format!("seed-{name}"), [&head[..], body].concat())).collect()
}

fn headers() -> Vec<(String, Vec<u8>)> {
    let signed = "v1_0x52WB0sjuScrew6Oh9sqh6PEFj6DuL9U8NUzyn3tUI";
    let seeds = [
        (
            "js-unary",
            ":method: POST\n:path: /process.Process/List\nuser-agent: e2b-js-sdk/2.51.0\ne2b-sandbox-id: i1\n\
             e2b-sandbox-port: 49983\nx-access-token: token\nconnect-protocol-version: 1\ncontent-type: application/json\n\
             accept-encoding: gzip, deflate"
                .to_owned(),
        ),
        (
            "js-stream",
            ":method: POST\n:path: /process.Process/Connect\nx-access-token: token\nconnect-protocol-version: 1\n\
             content-type: application/connect+json\nconnect-timeout-ms: 60000\nkeepalive-ping-interval: 50\n\
             authorization: Basic cm9vdDo="
                .to_owned(),
        ),
        (
            "python-unary",
            ":method: POST\n:path: /process.Process/List\nuser-agent: connectrpc/0.12.1\naccept-encoding: identity\n\
             content-encoding: identity\nconnect-timeout-ms: 60000"
                .to_owned(),
        ),
        (
            "python-stream",
            ":method: POST\n:path: /process.Process/StreamInput\nconnect-accept-encoding: identity\n\
             connect-content-encoding: identity\naccept-encoding: zstd,gzip,br\ntransfer-encoding: chunked\n\
             content-type: application/connect+proto"
                .to_owned(),
        ),
        (
            "preflight",
            ":method: OPTIONS\n:path: /files\norigin: https://example.com\naccess-control-request-method: POST\n\
             access-control-request-headers: x-access-token,connect-protocol-version"
                .to_owned(),
        ),
        (
            "preflight-odd",
            ":method: OPTIONS\norigin: null\naccess-control-request-method: TRACE".to_owned(),
        ),
        (
            "unknown-user",
            "authorization: Basic bm9ib2R5LWhlcmU6\ncontent-type: application/connect+json\norigin: x".to_owned(),
        ),
        ("odd-credentials", "authorization: bAsIc  dXNlcg==\nauthorization: Bearer x".to_owned()),
        (
            "range",
            ":path: /files?path=a.txt&username=user\n:size: 1000\nrange: bytes=0-4, 10-, -3\nif-range: x".to_owned(),
        ),
        ("range-odd", "range: bytes=99999999999999999999-,5-4\nrange: bytes=-18446744073709551615".to_owned()),
        (
            "encodings",
            "accept-encoding: identity;q=0, gzip;q=0.5, *;q=0\ncontent-encoding: GZIP\nconnect-accept-encoding: gzip"
                .to_owned(),
        ),
        (
            "metadata",
            ":method: POST\n:path: /files?path=~%2Fa\nx-metadata-author: me\nX-Metadata-Author: you\nx-metadata-: x\n\
             x-metadata-b: \u{fc}"
                .to_owned(),
        ),
        ("metadata-large", format!("x-metadata-k: {}\nx-metadata-l: {}", "v".repeat(2000), "v".repeat(2060))),
        (
            "parameters",
            "content-type: multipart/form-data; boundary=\"a\\\"b\"; charset=utf-8\n\
             content-disposition: form-data; name=\"file\"; filename=\"C:\\d\\a.txt\"; filename*=utf-8''%C3%BC"
                .to_owned(),
        ),
        ("signed", format!(":path: /files?path=a.txt&signature={signed}")),
        ("signature-odd", ":path: /files?path=a&signature=v1_AAAA&signature_expiration=1e9&username=".to_owned()),
        ("token", format!(":method: POST\n:path: /init\nx-access-token: {TOKEN}\nx-access-token: other")),
        ("content-type-in-capitals", "content-type: Application/Connect+JSON\nconnect-protocol-version: 2".to_owned()),
        ("inside", ":inside:\n:path: /me".to_owned()),
        (
            "other-protocols",
            "content-type: application/grpc-web+proto\ngrpc-timeout: 99999999H\ngrpc-encoding: gzip\nte: trailers\n\
             connect-timeout-ms: 10000000000\nconnect-protocol-version: 2"
                .to_owned(),
        ),
    ];
    seeds.into_iter().map(|(name, text)| (format!("seed-{name}"), text.into_bytes())).collect()
}

/// Checks that seeds cause the replies that their names promise.
#[test]
fn seeds_have_the_expected_replies() {
    let replies = frames().into_iter().map(|(name, data)| {
        let reply = Call::read(&data).expect("a complete head").send();
        (name, reply.status, reply.code().unwrap_or_default())
    });
    for (name, status, code) in replies {
        let has = |what: &str| name.contains(what);
        let expected = match name.as_str() {
            "seed-unannounced" => (200, "internal"),
            "seed-never-ends" => (200, "deadline_exceeded"),
            // The connection is broken, so no client reads the reply.
            "seed-broken" => (500, "internal"),
            "seed-other-kind" => (415, ""),
            "seed-get" => (405, ""),
            "seed-version" | "seed-deadline" | "seed-empty" => (400, "invalid_argument"),
            "seed-encoding" => (501, "unimplemented"),
            "seed-legacy" => (404, "not_found"),
            "seed-parameter" | "seed-raw" => (200, ""),
            _ if has("-list-") || has("-04-streaminput-") => (200, ""),
            _ if has("-06-streaminput-") => (200, "invalid_argument"),
            _ if has("-streaminput-") || has("-connect-") || has("-many-") => (200, "not_found"),
            _ if has("-10-sendsignal-") => (501, "unimplemented"),
            _ => (404, "not_found"),
        };
        assert_eq!((status, code.as_str()), expected, "{name}");
    }
}

#[test]
fn the_corpus_is_replayed() {
    for target in &TARGETS {
        let (mut files, mut bytes) = (0, 0);
        for (name, data) in (target.seeds)() {
            let path = target.folder().join(&name);
            let stored = fs::read(&path).unwrap_or_default();
            assert!(stored == data, "{} is stale: run the test `write_seeds`", path.display());
        }
        for entry in fs::read_dir(target.folder()).expect("read the corpus") {
            let data = fs::read(entry.expect("directory entry").path()).expect("read");
            (files, bytes) = (files + 1, bytes + data.len() as u64);
            (target.run)(&data);
        }
        assert!(files <= FILES_MAX && bytes <= BYTES_MAX, "{}: {files} files, {bytes} bytes", target.name);
    }
}

#[test]
#[ignore = "writes fuzz/corpus"]
fn write_seeds() {
    for target in &TARGETS {
        fs::create_dir_all(target.folder()).expect("create the corpus");
        for (name, data) in (target.seeds)() {
            fs::write(target.folder().join(name), data).expect("write");
        }
    }
}
