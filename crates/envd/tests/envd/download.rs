//! `GET /files`.

use std::fs;
use std::io::Read;
use std::time::{Duration, SystemTime};

use flate2::read::GzDecoder;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::daemon::{Daemon, test_user, within};
use crate::filesystem::TestDirectory;
use crate::http::{Reply, escape, get};

impl Daemon {
    async fn download(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        get(self, &format!("/files?path={}", escape(path)), headers).await
    }
}

/// Signs by the contract's algorithm.
pub(crate) fn sign(path: &str, operation: &str, user: &str, token: &str, expiration: Option<u64>) -> String {
    use base64::Engine as _;

    let expiration = expiration.map(|seconds| format!(":{seconds}")).unwrap_or_default();
    let digest = Sha256::digest(format!("{path}:{operation}:{user}:{token}{expiration}"));
    format!("v1_{}", base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest))
}

fn unpack(reply: &Reply) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(&reply.body[..]).read_to_end(&mut plain).expect("decompress");
    plain
}

fn numbers(count: u32) -> Vec<u8> {
    (0..count).flat_map(u32::to_le_bytes).collect()
}

// envd: F4, F5
#[tokio::test]
async fn downloads_are_plain_or_compressed() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    // Sizes around the limit up to which files are sent from memory.
    for content in
        [Vec::new(), b"hello".to_vec(), numbers(16_383), numbers(16_384), numbers(16_385), numbers(1_000_000)]
    {
        directory.write("file", &content);
        let reply = daemon.download(&directory.path("file"), &[]).await;
        assert_eq!(reply.status, 200);
        assert!(reply.body == content, "{} bytes", content.len());
        assert_eq!(reply.header("content-length"), Some(content.len().to_string().as_str()));
        assert_eq!((reply.header("accept-ranges"), reply.header("content-encoding")), (Some("bytes"), None));
        assert!(reply.header("last-modified").is_some());
        assert_eq!((reply.header("vary"), reply.header("etag")), (Some("Accept-Encoding"), None));
        let reply = daemon.download(&directory.path("file"), &[("accept-encoding", "gzip, deflate")]).await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, Some("gzip")));
        assert_eq!((reply.header("content-length"), reply.header("accept-ranges")), (None, None));
        assert!(unpack(&reply) == content, "{} bytes", content.len());
    }
}

#[tokio::test]
async fn file_names_and_content_types() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    for (name, content, disposition, kind, packed_kind) in [
        ("a.txt", "x", "inline; filename=a.txt", "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("a b.json", "{}", "inline; filename=\"a b.json\"", "application/json", "application/json"),
        ("ü", "text", "inline; filename*=utf-8''%C3%BC", "text/plain; charset=utf-8", "application/octet-stream"),
        ("data", "\0\u{1}", "inline; filename=data", "application/octet-stream", "application/octet-stream"),
    ] {
        directory.write(name, content);
        let reply = daemon.download(&directory.path(name), &[]).await;
        assert_eq!(
            (reply.header("content-disposition"), reply.header("content-type")),
            (Some(disposition), Some(kind))
        );
        let reply = daemon.download(&directory.path(name), &[("accept-encoding", "gzip")]).await;
        assert_eq!(reply.header("content-type"), Some(packed_kind), "{name}");
    }
}

#[tokio::test]
async fn parts() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let big = numbers(100_000);
    directory.write("small", "0123456789");
    directory.write("big", &big);
    directory.write("empty", "");
    for (name, range, status, body, content_range) in [
        ("small", "bytes=2-4", 206, &b"234"[..], Some("bytes 2-4/10")),
        ("small", "bytes=-3", 206, b"789", Some("bytes 7-9/10")),
        ("small", "bytes=8-", 206, b"89", Some("bytes 8-9/10")),
        ("small", "bytes=0-99", 206, b"0123456789", Some("bytes 0-9/10")),
        ("small", "bytes=10-", 416, b"", Some("bytes */10")),
        ("small", "bytes=x", 416, b"", Some("bytes */10")),
        ("small", "lines=1-2", 416, b"", Some("bytes */10")),
        ("empty", "bytes=0-", 200, b"", None),
        // Before, across and behind the end of the first read.
        ("big", "bytes=10-19", 206, &big[10..20], Some("bytes 10-19/400000")),
        ("big", "bytes=65000-66000", 206, &big[65_000..66_001], Some("bytes 65000-66000/400000")),
        ("big", "bytes=70000-", 206, &big[70_000..], Some("bytes 70000-399999/400000")),
    ] {
        // Parts are not compressed.
        let headers = [("range", range), ("accept-encoding", "gzip, identity;q=0.5")];
        let reply = daemon.download(&directory.path(name), &headers).await;
        assert_eq!((reply.status, reply.header("content-range")), (status, content_range), "{name} {range}");
        assert!(reply.body == body, "{name} {range}");
        assert_eq!(reply.header("content-encoding"), None);
    }
    let reply = daemon.download(&directory.path("big"), &[("range", "bytes=0-1,65530-65540,399998-")]).await;
    let kind = reply.header("content-type").expect("set").to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("parts");
    assert_eq!((reply.status, reply.header("content-length")), (206, Some(reply.body.len().to_string().as_str())));
    let part = |range: &str, bytes: &[u8]| {
        let head = format!(
            "--{boundary}\r\nContent-Range: bytes {range}/400000\r\nContent-Type: application/octet-stream\r\n\r\n"
        );
        [head.as_bytes(), bytes, b"\r\n"].concat()
    };
    let parts =
        [part("0-1", &big[..2]), part("65530-65540", &big[65_530..65_541]), part("399998-399999", &big[399_998..])];
    let expected = [parts.concat(), format!("--{boundary}--\r\n").into_bytes()].concat();
    assert!(reply.body == expected, "{}", String::from_utf8_lossy(&reply.body));
}

#[tokio::test]
async fn conditions() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    directory.write("file", "0123456789");
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    fs::File::options().write(true).open(directory.path("file")).expect("open").set_modified(modified).expect("set");
    let (then, before) = ("Tue, 14 Nov 2023 22:13:20 GMT", "Tue, 14 Nov 2023 22:13:19 GMT");
    for (headers, status, length) in [
        (vec![("if-modified-since", then)], 304, 0),
        (vec![("if-modified-since", before)], 200, 10),
        (vec![("if-none-match", "*")], 304, 0),
        (vec![("if-none-match", "\"x\""), ("if-modified-since", then)], 200, 10),
        (vec![("range", "bytes=0-1"), ("if-range", then)], 206, 2),
        (vec![("range", "bytes=0-1"), ("if-range", before)], 200, 10),
        (vec![("if-modified-since", before), ("accept-encoding", "gzip")], 200, 10),
    ] {
        let reply = daemon.download(&directory.path("file"), &headers).await;
        assert_eq!((reply.status, reply.body.len()), (status, length), "{headers:?}");
        assert_eq!(reply.header("last-modified"), Some(then), "{headers:?}");
    }
    for (headers, text) in [
        (
            vec![("accept-encoding", "br, identity;q=0")],
            "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]",
        ),
        (
            vec![("accept-encoding", "gzip, identity;q=0"), ("range", "bytes=0-1")],
            "identity encoding not acceptable for Range or conditional request",
        ),
    ] {
        let reply = daemon.download(&directory.path("file"), &headers).await;
        assert_eq!((reply.status, reply.json()), (406, json!({ "code": 406, "message": text })));
    }
}

#[tokio::test]
async fn kernel_files_are_sent_regardless_of_their_size() {
    let daemon = Daemon::start().await;
    for path in ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let Ok(content) = fs::read(path) else { continue };
        for headers in [&[][..], &[("range", "bytes=0-")]] {
            let reply = daemon.download(path, headers).await;
            assert!([200, 206].contains(&reply.status));
            assert_eq!(reply.body, content, "{path}");
        }
        assert_eq!(unpack(&daemon.download(path, &[("accept-encoding", "gzip")]).await), content);
    }
    // Larger than the first read, but reported with size zero.
    let symbols = fs::read("/proc/kallsyms").expect("read");
    assert!(symbols.len() > 100_000);
    let reply = daemon.download("/proc/kallsyms", &[]).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, None));
    assert_eq!(reply.body.len(), symbols.len());
}

// envd: F6
#[tokio::test]
async fn rejections() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    for (path, status, text) in [
        (directory.path("gone"), 404, format!("path '{}' does not exist", directory.path("gone"))),
        (directory.path(""), 400, format!("path '{}' is a directory", directory.path(""))),
        (
            "~other/x".to_owned(),
            400,
            "error expanding and resolving path '~other/x': cannot expand user-specific home dir".to_owned(),
        ),
    ] {
        let reply = daemon.download(&path, &[]).await;
        assert_eq!((reply.status, reply.json()), (status, json!({ "code": status, "message": text })));
    }
    let reply = get(&daemon, "/files?path=x&username=no-such-user", &[]).await;
    let text = "error looking up user 'no-such-user': user: unknown user no-such-user";
    assert_eq!((reply.status, reply.json()), (401, json!({ "code": 401, "message": text })));
    // The parent is not a directory.
    directory.write("file", "x");
    assert_eq!(daemon.download(&directory.path("file/x"), &[]).await.status, 500);
}

/// Checks that a pipe without a writer blocks only its own request.
#[tokio::test]
async fn waiting_for_a_pipe_blocks_no_other_request() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let made = std::process::Command::new("mkfifo").arg(directory.path("pipe")).status().expect("run");
    assert!(made.success());
    let path = directory.path("pipe");
    let waiting: Vec<_> = (0..8).map(|_| daemon.download(&path, &[])).collect();
    let waiting = futures::future::join_all(waiting);
    tokio::pin!(waiting);
    for _ in 0..20 {
        tokio::select! {
            _ = &mut waiting => panic!("a reply without a writer"),
            reply = daemon.get("/health") => assert_eq!(reply.status, 204),
        }
    }
    let (target, descriptors) = (fs::canonicalize(&path).expect("exists"), daemon.descriptors());
    let writer = std::thread::spawn(move || {
        let mut pipe = fs::File::options().write(true).open(&target).expect("open");
        let is_pipe = |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|path| path == target);
        // All requests have the pipe open: one that opens it later would wait for another writer.
        while fs::read_dir(&descriptors).expect("list").flatten().map(is_pipe).filter(|is| *is).count() < 8 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::io::Write::write_all(&mut pipe, b"x").expect("write");
    });
    let replies = within("the replies", waiting).await;
    writer.join().expect("no panic");
    assert_eq!(replies.iter().map(|reply| reply.body.len()).sum::<usize>(), 1);
}

// envd: S2, S3, S4, S5, S6, S7
#[tokio::test]
async fn signed_downloads() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    directory.write("hello.txt", "hello");
    let path = directory.path("hello.txt");
    assert_eq!(daemon.download(&path, &[]).await.status, 200, "no token is set");
    daemon.init(json!({ "accessToken": "secret" })).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970").as_secs();
    let query = |path: &str, user: &str, expiration: Option<u64>, sent: Option<u64>| {
        let signature = escape(&sign(path, "read", user, "secret", expiration));
        let user = if user.is_empty() { String::new() } else { format!("&username={user}") };
        let expiration = sent.map(|seconds| format!("&signature_expiration={seconds}")).unwrap_or_default();
        format!("/files?path={}{user}&signature={signature}{expiration}", escape(path))
    };
    let user = test_user();
    let gone = directory.path("gone");
    for (target, status, body) in [
        (query(&path, "", None, None), 200, "hello".to_owned()),
        (query(&path, &user, None, None), 200, "hello".to_owned()),
        (query(&path, &user, Some(now + 1000), Some(now + 1000)), 200, "hello".to_owned()),
        (query(&path, "", Some(now - 10), Some(now - 10)), 401, "signature is already expired".to_owned()),
        (query(&path, "", Some(now + 1000), None), 401, "invalid signature".to_owned()),
        (query(&path, "", Some(now + 1000), Some(now + 2000)), 401, "invalid signature".to_owned()),
        (query(&path, "", None, Some(now + 1000)), 401, "invalid signature".to_owned()),
        (query(&gone, "", None, None), 404, format!("path '{gone}' does not exist")),
        (format!("/files?path={}", escape(&path)), 401, "missing signature query parameter".to_owned()),
    ] {
        let reply = get(&daemon, &target, &[]).await;
        assert_eq!(reply.status, status, "{target} {reply:?}");
        if status == 200 {
            assert_eq!(reply.text(), body);
        } else {
            assert_eq!(reply.text(), format!("{{\"code\":{status},\"message\":\"{body}\"}}\n"));
        }
    }
    for (token, status) in [("secret", 200), ("wrong", 401)] {
        assert_eq!(daemon.download(&path, &[("x-access-token", token)]).await.status, status);
    }
}
