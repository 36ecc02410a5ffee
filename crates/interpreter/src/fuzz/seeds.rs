//! Initial inputs of the fuzzers: messages as kernels send them.
//!
//! They are stored in the repository's `fuzz/corpus` beside inputs that fuzzers found; the tests here replay all of
//! them.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::json;

use super::KEY;
use crate::message::{self, Signer};
use crate::zmtp::encoded;

/// Limits of a target's corpus, because it is committed and replayed by every test run.
const FILES_MAX: usize = 200;
const BYTES_MAX: u64 = 300_000;

/// A target and its corpus.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<(String, Vec<u8>)>,
}

const TARGETS: [Target; 2] = [
    Target { name: "bundles", run: super::bundles, seeds: bundles },
    Target { name: "kernels", run: super::kernels, seeds: kernels },
];

/// Contents by name; the number selects the type, see [`super::bundles`].
const CONTENTS: [(&str, u8, &str); 16] = [
    ("text", 0, r#"{"data":{"text/plain":"'it\\'s'"},"metadata":{},"execution_count":1}"#),
    ("plot", 1, r#"{"data":{"image/png":"iVBORw0KGgo=","e2b/chart":{"type":"line","elements":[]}},"transient":{}}"#),
    ("table", 0, r#"{"data":{"e2b/data":{"a":[1,NaN,null,-Infinity]},"text/html":"<table>"}}"#),
    ("json", 0, r#"{"data":{"application/json":[ 1, {"a" : "é\ud83d\ude00\ud800"} ]}}"#),
    ("extra", 1, r#"{"data":{"text/foo":"bar","x":null,"text/latex":5}}"#),
    ("deep", 0, r#"{"data":{"x":[[[[[[[[[[[[[[[[{"a":[]}]]]]]]]]]]]]]]]]}}"#),
    ("odd-data", 0, r#"{"data":[1]}"#),
    ("stdout", 2, r#"{"name":"stdout","text":"a\n\u2028\u0085\t\\\""}"#),
    ("stderr", 2, r#"{"text":"x","name":"stderr"}"#),
    ("control", 2, "{\"name\":\"stdout\",\"text\":\"a\nb\u{1}\"}"),
    ("error", 3, r#"{"ename":"E","evalue":"v","traceback":["\u001b[0;31ma\u001b[0m","b"]}"#),
    ("odd-error", 3, r#"{"ename":5,"evalue":null,"traceback":{}}"#),
    ("reply", 4, r#"{"status":"ok","execution_count":1,"payload":[{"source":"ask_exit","keepkernel":false}]}"#),
    ("error-reply", 4, r#"{"status":"error","ename":"E","evalue":"v","traceback":[]}"#),
    ("aborted", 4, r#"{"status":"aborted"}"#),
    ("status", 5, r#"{"execution_state":"idle"}"#),
];

fn bundles() -> Vec<(String, Vec<u8>)> {
    let seed = |(name, kind, content): &(&str, u8, &str)| {
        (format!("seed-{name}"), [&[*kind][..], content.as_bytes()].concat())
    };
    CONTENTS.iter().map(seed).collect()
}

/// A request with fixed parts, because seeds must be the same on every run.
fn message(key: &str, kind: &str, content: &str) -> Vec<Bytes> {
    let parts = [
        json!({ "msg_id": "1", "msg_type": kind, "version": "5.3" }).to_string(),
        json!({ "msg_id": "2" }).to_string(),
        "{}".to_owned(),
        content.to_owned(),
    ];
    message::signed(&Signer::new(key), parts.map(Bytes::from))
}

fn kernels() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, key, head) in [("plain", "", [0, 0]), ("signed", KEY, [7, 1]), ("forged", "other", [0, 1])] {
        let stream = message(key, "stream", r#"{"name":"stdout","text":"x\n"}"#);
        let mut addressed = vec![Bytes::from_static(b"kernel.stream")];
        addressed.extend(message(key, "execute_result", r#"{"data":{"text/plain":"1"}}"#));
        let status = message(key, "status", r#"{"execution_state":"idle"}"#);
        let wire: Vec<u8> = [stream, addressed, status].iter().flat_map(|frames| encoded(frames)).collect();
        seeds.push((format!("seed-{name}"), [&head[..], &wire].concat()));
    }
    for (name, wire) in [
        ("command", &b"\x04\x06\x05READY\x00\x01a"[..]),
        ("large", b"\x03\x7f\xff\xff\xff\xff\xff\xff\xff"),
        ("empty-frames", b"\x01\x00\x01\x00\x00\x00"),
        ("flags", b"\x80\x00"),
    ] {
        seeds.push((format!("seed-{name}"), [&[3, 0], wire].concat()));
    }
    seeds
}

impl Target {
    fn folder(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(self.name)
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
