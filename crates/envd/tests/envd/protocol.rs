//! The Connect protocol: methods, content types, codecs, compression, deadlines.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::{StreamExt as _, stream};
use hearth_envd_api::process::{ListRequest, ListResponse};
use http::Method;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::connect::{CODECS, Codec, Events, Messages, envelope};
use crate::daemon::{Daemon, within};
use crate::http::{Body, Reply, chunked, get, open, post, send, whole};
use crate::process::{START, shell};

const LIST: &str = "/process.Process/List";
const STAT: &str = "/filesystem.Filesystem/Stat";
const JSON: (&str, &str) = ("content-type", "application/json");
const CONNECT_JSON: (&str, &str) = ("content-type", "application/connect+json");

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("compress");
    encoder.finish().expect("finish")
}

fn decompress(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).expect("decompress");
    plain
}

/// Returns the error code of a streaming reply with a single envelope.
async fn stream_error(daemon: &Daemon, headers: &[(&str, &str)], body: Vec<u8>) -> String {
    let response = open(daemon, Method::POST, START, headers, whole(body)).await;
    let mut messages = Messages::of(Codec::Json, response);
    messages.next::<ListResponse>().await.expect_err("error").code
}

#[tokio::test]
async fn only_post_to_existing_procedures() {
    let daemon = Daemon::start().await;
    for path in [LIST, START, STAT] {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let reply = send(&daemon, method, path, &[JSON], whole("{}")).await;
            assert_eq!((reply.status, reply.header("allow"), reply.text()), (405, Some("POST"), ""), "{path}");
        }
    }
    for path in ["/process.Process/Nope", "/process.Process/", "/process.Nope/List", "/process.Process/List/"] {
        let reply = post(&daemon, path, &[JSON], "{}").await;
        assert_eq!((reply.status, reply.text()), (404, "404 page not found\n"), "{path}");
    }
}

#[tokio::test]
async fn content_types_depend_on_the_kind_of_method() {
    let daemon = Daemon::start().await;
    let unary = Some("application/json, application/proto");
    let streaming = Some("application/connect+json, application/connect+proto");
    for (path, content_type, accepted) in [
        (LIST, "application/connect+json", unary),
        (LIST, "text/plain", unary),
        (LIST, "application/grpc", unary),
        (START, "application/json", streaming),
        (START, "application/proto", streaming),
        ("/process.Process/StreamInput", "application/json", streaming),
        ("/filesystem.Filesystem/WatchDir", "application/json", streaming),
    ] {
        let reply = post(&daemon, path, &[("content-type", content_type)], "{}").await;
        assert_eq!((reply.status, reply.header("accept-post"), reply.text()), (415, accepted, ""), "{path}");
    }
    assert_eq!(post(&daemon, LIST, &[], "{}").await.status, 415, "a missing content type");
    let reply = post(&daemon, LIST, &[("content-type", "application/json; charset=utf-8")], "{}").await;
    assert_eq!((reply.status, reply.text()), (200, "{}"));
    let headers = [("content-type", "application/connect+json; charset=utf-8")];
    let body = envelope(0, &Codec::Json.encode(&shell("echo ok")));
    let response = open(&daemon, Method::POST, START, &headers, whole(body)).await;
    let mut events = Events::of(Messages::of(Codec::Json, response));
    events.pid().await;
    assert_eq!(events.rest().await.stdout(), "ok\n");
}

#[tokio::test]
async fn json_is_parsed_leniently_and_written_strictly() {
    let daemon = Daemon::start().await;
    let file = tempfile::NamedTempFile::new().expect("create a temporary file");
    let path = file.path().to_str().expect("UTF-8");
    let stat = async |body: String| post(&daemon, STAT, &[JSON], body).await;
    let reply = stat(format!(r#"{{"path":"{path}","unknown":[1,{{"a":null}}]}}"#)).await;
    let entry = &reply.json()["entry"];
    assert_eq!((reply.status, &entry["type"]), (200, &"FILE_TYPE_FILE".into()));
    // Empty values are omitted, and 64-bit numbers are text.
    assert_eq!((entry.get("size"), entry.get("symlinkTarget"), entry.get("metadata")), (None, None, None));
    std::fs::write(path, "13 bytes long").expect("write");
    let entry = stat(format!(r#"{{"path":"{path}"}}"#)).await.json()["entry"].clone();
    assert_eq!((&entry["size"], &entry["mode"]), (&"13".into(), &384.into()));
    let time = entry["modifiedTime"].as_str().expect("UTF-8");
    assert!(time.ends_with('Z') && time.starts_with("20"), "{time}");
    for (path, body) in [
        (LIST, ""),
        (LIST, "{"),
        (STAT, "{\"path\":7}"),
        ("/process.Process/SendSignal", r#"{"process":{"pid":1},"signal":"SIGNAL_NOPE"}"#),
        ("/process.Process/SendSignal", r#"{"process":{"pid":1,"tag":"x"},"signal":9}"#),
        ("/process.Process/SendInput", r#"{"process":{"pid":1},"input":{"stdin":"???"}}"#),
    ] {
        let reply = post(&daemon, path, &[JSON], body).await;
        assert_eq!((reply.status, reply.json()["code"].as_str()), (400, Some("invalid_argument")), "{path} {body}");
    }
    // Null counts as absent, numbers may be text, enums may be numbers.
    let body = r#"{"process":{"pid":"999999999","tag":null},"signal":9}"#;
    let reply = post(&daemon, "/process.Process/SendSignal", &[JSON], body).await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (404, Some("not_found")));
    let watcher =
        post(&daemon, "/filesystem.Filesystem/CreateWatcher", &[JSON], r#"{"path":"/tmp","include_entry":true}"#).await;
    let id = watcher.json()["watcherId"].as_str().expect("a watcher id").to_owned();
    for name in ["watcherId", "watcher_id"] {
        let body = format!(r#"{{"{name}":"{id}"}}"#);
        assert_eq!(post(&daemon, "/filesystem.Filesystem/GetWatcherEvents", &[JSON], body).await.status, 200, "{name}");
    }
}

/// Checks the bytes of the contract's own example, and input in both base64 alphabets.
#[tokio::test]
async fn bytes_are_base64() {
    let daemon = Daemon::start().await;
    let message = br#"{"process":{"cmd":"/bin/cat","cwd":"/","unknown":1},"stdin":true}"#;
    let body = whole(envelope(0, message));
    let response = open(&daemon, Method::POST, START, &[CONNECT_JSON], body).await;
    let mut messages = Messages::of(Codec::Json, response);
    let (flags, start) = messages.envelope().await.expect("the start event");
    let start: serde_json::Value = serde_json::from_slice(&start).expect("JSON");
    let pid = start["event"]["start"]["pid"].as_u64().expect("a number");
    assert_eq!((flags, start), (0, serde_json::json!({ "event": { "start": { "pid": pid } } })));
    for input in ["-_-_", "+/+/", "-_8", "-_8=", "+/8", "+/8="] {
        let body = format!(r#"{{"process":{{"pid":{pid}}},"input":{{"stdin":"{input}"}}}}"#);
        let reply = post(&daemon, "/process.Process/SendInput", &[JSON], body).await;
        assert_eq!((reply.status, reply.text()), (200, "{}"), "{input}");
        let (_, data) = messages.envelope().await.expect("the echo");
        let echo = if input.contains('8') { "+/8=" } else { "+/+/" };
        assert_eq!(data, format!(r#"{{"event":{{"data":{{"stdout":"{echo}"}}}}}}"#));
    }
    let reply =
        post(&daemon, "/process.Process/CloseStdin", &[JSON], format!(r#"{{"process":{{"pid":{pid}}}}}"#)).await;
    assert_eq!(reply.status, 200);
    let (_, end) = messages.envelope().await.expect("the end event");
    assert_eq!(end, r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#);
    assert_eq!(messages.envelope().await, Some((2, "{}".into())));
    assert_eq!(messages.envelope().await, None);
}

#[tokio::test]
async fn versions_and_envelopes() {
    let daemon = Daemon::start().await;
    let version = ("connect-protocol-version", "2");
    let reply = post(&daemon, LIST, &[JSON, version], "{}").await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (400, Some("invalid_argument")));
    let one = envelope(0, &Codec::Json.encode(&shell("true"))).to_vec();
    assert_eq!(stream_error(&daemon, &[CONNECT_JSON, version], one.clone()).await, "invalid_argument");
    assert_eq!(stream_error(&daemon, &[CONNECT_JSON], envelope(0, b"{").to_vec()).await, "invalid_argument");
    for odd in [Vec::new(), [one.clone(), one.clone()].concat(), one[..one.len() - 1].to_vec()] {
        let code = stream_error(&daemon, &[CONNECT_JSON], odd).await;
        assert!(["invalid_argument", "unimplemented"].contains(&code.as_str()), "{code}");
    }
    let odd = post(&daemon, LIST, &[JSON, ("connect-timeout-ms", "x")], "{}").await;
    assert_eq!((odd.status, odd.json()["code"].as_str()), (400, Some("invalid_argument")));
    assert_eq!(post(&daemon, LIST, &[JSON, ("connect-timeout-ms", "0")], "{}").await.status, 200);
}

#[tokio::test]
async fn unary_calls_are_compressed_both_ways() {
    let daemon = Daemon::start().await;
    for codec in CODECS {
        let plain = codec.encode(&ListRequest::default());
        let content_type = ("content-type", codec.unary());
        let reply = post(&daemon, LIST, &[content_type, ("content-encoding", "gzip")], compress(&plain)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let identity = [content_type, ("content-encoding", "identity"), ("accept-encoding", "identity")];
        let reply = post(&daemon, LIST, &identity, plain.clone()).await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, None));
        let reply = post(&daemon, LIST, &[content_type, ("content-encoding", "br")], plain).await;
        assert_eq!((reply.status, reply.json()["code"].as_str()), (501, Some("unimplemented")));
    }
    // A longer reply is compressed if the client accepts that; an error never is.
    let listing = r#"{"path":"/etc"}"#;
    let path = "/filesystem.Filesystem/ListDir";
    let headers = [JSON, ("accept-encoding", "gzip, deflate")];
    let reply = post(&daemon, path, &headers, listing).await;
    assert_eq!((reply.header("content-encoding"), reply.header("accept-encoding")), (Some("gzip"), Some("gzip")));
    let unpacked: serde_json::Value = serde_json::from_slice(&decompress(&reply.body)).expect("JSON");
    let plain: Reply = post(&daemon, path, &[JSON], listing).await;
    assert_eq!(unpacked["entries"].as_array().map(Vec::len), plain.json()["entries"].as_array().map(Vec::len));
    let reply = post(&daemon, STAT, &headers, r#"{"path":"/nonexistent"}"#).await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (404, Some("not_found")));
    assert_eq!(reply.json()["message"], "file not found: /nonexistent");
}

#[tokio::test]
async fn streams_are_compressed_by_message() {
    let daemon = Daemon::start().await;
    let gzip = ("connect-content-encoding", "gzip");
    for codec in CODECS {
        let headers = [("content-type", codec.streaming()), gzip, ("accept-encoding", "zstd,gzip,br")];
        let body = whole(envelope(1, &compress(&codec.encode(&shell("echo ok")))));
        let response = within("a reply", open(&daemon, Method::POST, START, &headers, body)).await;
        assert!(!response.headers().contains_key("content-encoding"));
        let mut events = Events::of(Messages::of(codec, response));
        events.pid().await;
        assert_eq!(events.rest().await.stdout(), "ok\n");
    }
    let packed = envelope(1, &compress(&Codec::Json.encode(&shell("true")))).to_vec();
    assert_eq!(stream_error(&daemon, &[CONNECT_JSON], packed.clone()).await, "internal");
    let brotli = ("connect-content-encoding", "br");
    assert_eq!(stream_error(&daemon, &[CONNECT_JSON, brotli], packed).await, "unimplemented");
}

async fn connect(daemon: &Daemon) -> SendRequest<Body> {
    let stream = TcpStream::connect(("127.0.0.1", daemon.port)).await.expect("the daemon listens");
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let daemon = Daemon::start().await;
    let mut sender = connect(&daemon).await;
    let stream_body = || envelope(0, &Codec::Json.encode(&shell("echo ok")));
    for (path, content_type, body, status) in [
        (LIST, JSON.1, "{}".into(), 200),
        (START, CONNECT_JSON.1, stream_body(), 200),
        (START, JSON.1, "{}".into(), 415),
        (STAT, JSON.1, "{".into(), 400),
        ("/files?path=/tmp/x&signature_expiration=soon", "text/plain", "rejected".into(), 400),
        (LIST, JSON.1, "{}".into(), 200),
    ] {
        let request = http::Request::builder().method(Method::POST).uri(path).header("content-type", content_type);
        sender.ready().await.expect("the connection is open");
        let response = sender.send_request(request.body(whole(body)).expect("a request")).await.expect("a reply");
        assert_eq!(response.status(), status, "{path}");
        response.into_body().collect().await.expect("a whole body");
    }
    // Replies that need no body arrive before it, and the body is not parsed as the next request.
    for (path, content_type, status) in [
        (LIST, "text/plain", 415),
        (START, JSON.1, 415),
        ("/nowhere", JSON.1, 404),
        ("/health", JSON.1, 405),
        ("/files?path=/tmp/x&signature_expiration=soon", "text/plain", 400),
        (LIST, JSON.1, 200),
    ] {
        let (release, released) = tokio::sync::oneshot::channel::<Bytes>();
        let body = stream::once(released).filter_map(|bytes| std::future::ready(bytes.ok()));
        let request = http::Request::builder().method(Method::POST).uri(path).header("content-type", content_type);
        sender.ready().await.expect("the connection is open");
        let reply = sender.send_request(request.body(chunked(body)).expect("a request"));
        let response = if status == 200 {
            release.send("{}".into()).expect("the body is awaited");
            reply.await.expect("a reply")
        } else {
            let response = within("the reply before the body", reply).await.expect("a reply");
            release.send("x".repeat(100_000).into()).expect("the body is awaited");
            response
        };
        assert_eq!(response.status(), status, "{path}");
        response.into_body().collect().await.expect("a whole body");
    }
    // Hundreds of large headers.
    let names: Vec<String> = (0..400).map(|number| format!("x-filler-{number}")).collect();
    let value = "v".repeat(150);
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    assert_eq!(get(&daemon, "/health", &headers).await.status, 204);
}
