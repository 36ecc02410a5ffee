//! `POST /files` and `POST /files/compose`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use serde_json::json;

use crate::connect::Codec;
use crate::daemon::{Daemon, other_user, until, within};
use crate::filesystem::TestDirectory;
use crate::http::{Reply, chunked, escape, post, post_json, send};

const RAW: (&str, &str) = ("content-type", "application/octet-stream");
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=xyz");

/// Builds a form of parts, each with its disposition's parameters and its content.
fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (parameters, content) in parts {
        body.extend(
            format!("--xyz\r\nContent-Disposition: form-data; {parameters}\r\nContent-Type: text/plain\r\n\r\n")
                .bytes(),
        );
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--xyz--\r\n");
    body
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("compress");
    encoder.finish().expect("finish")
}

impl Daemon {
    pub(crate) async fn upload(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        post(self, &format!("/files?path={}", escape(path)), headers, body).await
    }
}

fn entry(path: &str) -> serde_json::Value {
    json!({ "path": path, "name": path.rsplit('/').next(), "type": "file" })
}

fn message(reply: &Reply) -> String {
    let value = reply.json();
    assert_eq!(value["code"], reply.status);
    value["message"].as_str().expect("UTF-8").to_owned()
}

// envd: F1, F4
#[tokio::test]
async fn every_form_of_upload() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let big: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    for (number, content) in [&b""[..], b"hello", b"--xyz\r\n--xyz--", "grüße\r\n".as_bytes(), &big].iter().enumerate()
    {
        let file: &str = &directory.path(&format!("new/tree/{number}"));
        let unnamed = form(&[("name=\"file\"", content)]);
        for (headers, body) in [
            (vec![RAW], content.to_vec()),
            (vec![("content-type", "application/octet-stream; x=y")], content.to_vec()),
            (vec![RAW, ("content-encoding", "gzip")], compress(content)),
            (vec![RAW, ("content-encoding", "identity")], content.to_vec()),
            (vec![FORM], unnamed.clone()),
            (vec![FORM, ("content-encoding", "gzip")], compress(&unnamed)),
        ] {
            // The content would contain a boundary.
            if headers[0] == FORM && content.starts_with(b"--xyz") {
                continue;
            }
            let reply = daemon.upload(file, &headers, body.clone()).await;
            assert_eq!((reply.status, reply.json()), (200, json!([entry(file)])), "{headers:?}");
            assert!(fs::read(file).expect("read") == *content, "{headers:?}");
            // The same body in chunks.
            let pieces: Vec<Bytes> = body.chunks(60_001).map(Bytes::copy_from_slice).collect();
            let path = format!("/files?path={}", escape(file));
            let reply = send(&daemon, Method::POST, &path, &headers, chunked(futures::stream::iter(pieces))).await;
            assert_eq!(reply.status, 200, "{headers:?}: {reply:?}");
            assert!(fs::read(file).expect("read") == *content, "{headers:?}");
        }
    }
    assert_eq!(fs::metadata(directory.path("new/tree/0")).expect("exists").permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::metadata(directory.path("new/tree")).expect("exists").permissions().mode() & 0o777, 0o755);
}

// envd: F3
#[tokio::test]
async fn several_files_in_one_form() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let names = ["a.txt", "deep/er/b.txt", "ü \"q\" %41.bin"].map(|name| directory.path(name));
    let quoted: Vec<String> =
        names.iter().map(|name| format!("name=\"file\"; filename=\"{}\"", name.replace('"', "\\\""))).collect();
    let parts = [
        (quoted[0].as_str(), &b"one"[..]),
        ("name=\"other\"; filename=\"/nonexistent/x\"", b"skipped"),
        (quoted[1].as_str(), b"two"),
        (quoted[2].as_str(), b"\0\xff"),
    ];
    let reply = post(&daemon, "/files", &[FORM], form(&parts)).await;
    let expected: Vec<_> = names.iter().map(|name| entry(name)).collect();
    assert_eq!((reply.status, reply.json()), (200, json!(expected)));
    for (name, content) in names.iter().zip([&b"one"[..], b"two", b"\0\xff"]) {
        assert_eq!(fs::read(name).expect("read"), content);
    }
    // No file, the same file twice, and a file without a name.
    let reply = post(&daemon, "/files", &[FORM], form(&[("name=\"x\"", b"y")])).await;
    assert_eq!((reply.status, reply.json()), (200, json!([])));
    let twice = format!("name=\"file\"; filename=\"{}\"", directory.path("twice"));
    let reply = post(&daemon, "/files", &[FORM], form(&[(&twice, b"first"), (&twice, b"second")])).await;
    assert_eq!(reply.status, 400, "{reply:?}");
    assert_eq!(fs::read(directory.path("twice")).expect("read"), b"first");
    assert_eq!(post(&daemon, "/files", &[FORM], form(&[("name=\"file\"", b"x")])).await.status, 400);
    // A truncated form creates no file.
    let body = form(&[(&format!("name=\"file\"; filename=\"{}\"", directory.path("cut")), b"begun")]);
    let reply = post(&daemon, "/files", &[FORM], body[..body.len() - 11].to_vec()).await;
    assert_eq!(reply.status, 500, "{reply:?}");
    assert!(!fs::exists(directory.path("cut")).expect("check existence"));
    let reply = post(&daemon, "/files", &[("content-type", "multipart/form-data")], body).await;
    assert_eq!(reply.status, 500, "{reply:?}");
}

#[tokio::test]
async fn rejections_reach_clients_that_are_still_sending() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    directory.write("file", "x");
    let much = vec![b'x'; 8 << 20];
    for (path, headers, status, text) in [
        (directory.path(""), vec![RAW], 400, format!("path is a directory: {}", directory.path(""))),
        (
            directory.path("file/x"),
            vec![RAW],
            500,
            format!("error ensuring directories: path is a file: {}", directory.path("file")),
        ),
        ("~other/x".to_owned(), vec![RAW], 400, "cannot expand user-specific home dir".to_owned()),
        (String::new(), vec![RAW], 400, "path query parameter is required for raw body upload".to_owned()),
        (directory.path("x"), vec![], 400, "unsupported content type: , expected multipart/form-data or".to_owned()),
        (
            directory.path("x"),
            vec![("content-type", "text/plain")],
            400,
            "unsupported content type: text/plain".to_owned(),
        ),
        (
            directory.path("x"),
            vec![RAW, ("content-encoding", "br")],
            400,
            "unsupported Content-Encoding: br".to_owned(),
        ),
        (
            directory.path("x"),
            vec![RAW, ("content-encoding", "gzip")],
            400,
            "error decompressing request body".to_owned(),
        ),
        (directory.path("x"), vec![RAW, ("x-metadata-a", "é")], 400, "invalid metadata".to_owned()),
    ] {
        let reply = within("the reply", daemon.upload(&path, &headers, much.clone())).await;
        assert_eq!(reply.status, status, "{path} {headers:?} {reply:?}");
        assert!(message(&reply).contains(&text), "{reply:?}");
    }
    for (query, status, text) in [
        ("path=x&username=no-such-user", 401, "error looking up user 'no-such-user': user: unknown user no-such-user"),
        ("path=x&username=", 401, "error looking up user ''"),
    ] {
        let reply = post(&daemon, &format!("/files?{query}"), &[RAW], much.clone()).await;
        assert_eq!(reply.status, status);
        assert!(message(&reply).contains(text), "{reply:?}");
    }
    let reply = post(&daemon, "/files?path=x&signature_expiration=soon", &[RAW], much.clone()).await;
    assert_eq!((reply.status, reply.header("content-type")), (400, Some("text/plain; charset=utf-8")));
    assert!(reply.text().starts_with("Invalid format for parameter signature_expiration: "), "{reply:?}");
    // Damage detected later causes another error.
    let mut packed = compress(&much);
    packed.truncate(packed.len() - 4);
    let reply = daemon.upload(&directory.path("x"), &[RAW, ("content-encoding", "gzip")], packed).await;
    assert_eq!(reply.status, 500);
}

#[tokio::test]
async fn owners_and_modes() {
    let daemon = Daemon::start().await;
    let Some((name, uid)) = other_user() else { return };
    let directory = TestDirectory::new();
    directory.write("old", "longer than the new text");
    fs::set_permissions(directory.path("old"), fs::Permissions::from_mode(0o750)).expect("set");
    std::os::unix::fs::symlink(directory.path("old"), directory.path("link")).expect("link");
    for path in [directory.path("link"), directory.path("new/file")] {
        let target = format!("/files?path={}&username={name}", escape(&path));
        assert_eq!(post(&daemon, &target, &[RAW], "new").await.json(), json!([entry(&path)]));
    }
    let (old, new) = (
        fs::metadata(directory.path("old")).expect("exists"),
        fs::metadata(directory.path("new/file")).expect("exists"),
    );
    assert_eq!((old.uid(), old.permissions().mode() & 0o777, old.len()), (uid, 0o750, 3));
    assert_eq!((new.uid(), new.permissions().mode() & 0o777), (uid, 0o644));
    assert_eq!(fs::metadata(directory.path("new")).expect("exists").uid(), uid);
    assert!(fs::symlink_metadata(directory.path("link")).expect("exists").is_symlink());
}

// envd: F2
#[tokio::test]
async fn concurrent_uploads_create_one_tree() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let paths: Vec<String> = (0..30).map(|number| directory.path(&format!("x/y/z/{number}"))).collect();
    let uploads = paths.iter().map(|path| daemon.upload(path, &[RAW], path.clone()));
    for (reply, path) in futures::future::join_all(uploads).await.iter().zip(&paths) {
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(fs::read_to_string(path).expect("read"), *path);
    }
}

// envd: F16
#[tokio::test]
async fn metadata_is_stored_with_the_file() {
    let daemon = Daemon::start().await;
    // Some temporary directories do not support extended attributes.
    let Ok(folder) = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")) else {
        eprintln!("skipped: {} is not writable", env!("CARGO_TARGET_TMPDIR"));
        return;
    };
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(path("probe"), "").expect("write");
    if let Err(error) = xattr::set(path("probe"), "user.probe", b"x") {
        eprintln!("skipped: no extended attributes: {error}");
        return;
    }
    let headers = [
        RAW,
        ("X-Metadata-Author", "me"),
        ("x-metadata-note", "a b"),
        ("x-metadata-author", "second"),
        ("x-metadata-", "x"),
    ];
    let reply = daemon.upload(&path("file"), &headers, "text").await;
    let metadata = json!({ "author": "me", "note": "a b" });
    assert_eq!(reply.json()[0]["metadata"], metadata, "{reply:?}");
    xattr::set(path("file"), "user.foreign", b"x").expect("set");
    xattr::set(path("file"), "user.e2b.inside", b"guest").expect("set");
    let entry = daemon.stat(Codec::Json, &path("file")).await.expect("exists");
    let mut reported: Vec<_> = entry.metadata.into_iter().collect();
    reported.sort();
    let known = [("author", "me"), ("inside", "guest"), ("note", "a b")];
    assert_eq!(reported, known.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let form_headers = [FORM, ("x-metadata-author", "other")];
    let reply = daemon.upload(&path("file"), &form_headers, form(&[("name=\"file\"", b"x")])).await;
    assert_eq!(reply.json()[0]["metadata"], json!({ "author": "other" }));
    let reply = daemon.upload(&path("file"), &[RAW], "text").await;
    assert_eq!(reply.json()[0].get("metadata"), None, "an upload without metadata clears it");
    assert_eq!(xattr::get(path("file"), "user.foreign").expect("read").as_deref(), Some(&b"x"[..]));
}

#[tokio::test]
async fn composing() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    for (name, content) in [("a", "one "), ("b", "two "), ("c", "three")] {
        directory.write(name, content);
    }
    let compose = async |body: serde_json::Value| post_json(&daemon, "/files/compose", &body).await;
    let (a, b, c, out) = (directory.path("a"), directory.path("b"), directory.path("c"), directory.path("new/out"));
    for (body, status) in [
        (json!("x"), 400),
        (json!({ "source_paths": [a] }), 400),
        (json!({ "source_paths": [], "destination": out }), 400),
        (json!({ "source_paths": [a], "destination": "" }), 400),
        (json!({ "source_paths": [a, b], "destination": a }), 400),
        (json!({ "source_paths": [a, directory.path("")], "destination": out }), 400),
        (json!({ "source_paths": [a], "destination": "~other/x" }), 400),
        (json!({ "source_paths": [a], "destination": out, "username": "no-such-user" }), 401),
        (json!({ "source_paths": [a, directory.path("gone")], "destination": out }), 404),
    ] {
        let reply = compose(body.clone()).await;
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        message(&reply);
    }
    let missing = compose(json!({ "source_paths": [directory.path("gone")], "destination": out })).await;
    assert_eq!(message(&missing), format!("source file not found: {}", directory.path("gone")));
    let reply = compose(json!({ "source_paths": [a, b, c], "destination": out })).await;
    assert_eq!((reply.status, reply.json()), (200, entry(&out)));
    assert_eq!(fs::read_to_string(&out).expect("read"), "one two three");
    assert_eq!(fs::read_dir(directory.path("")).expect("list").count(), 1, "the sources are removed");
    assert_eq!(fs::read_dir(directory.path("new")).expect("list").count(), 1, "no temporary file remains");
}

/// Returns the sorted names in a directory.
fn names(directory: &TestDirectory) -> Vec<String> {
    let entries = fs::read_dir(directory.path("")).expect("list").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Aborts an upload in the middle, after the daemon has started to write.
async fn abort_upload(daemon: &Daemon, path: &str) {
    use tokio::io::AsyncWriteExt as _;

    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", daemon.port)).await.expect("the daemon listens");
    let folder = format!("{}/", std::path::Path::new(path).parent().expect("a parent directory").display());
    let is_open = || daemon.open_files().iter().any(|file| file.starts_with(&folder));
    let head = format!(
        "POST /files?path={} HTTP/1.1\r\nhost: guest\r\ncontent-type: application/octet-stream\r\ncontent-length: 2097152\r\n\r\n",
        escape(path)
    );
    stream.write_all(head.as_bytes()).await.expect("send");
    stream.write_all(&vec![b'n'; 1 << 20]).await.expect("send");
    until("the file to be open", || async { is_open().then_some(()) }).await;
    drop(stream);
    until("the file to be closed", || async { (!is_open()).then_some(()) }).await;
}

#[tokio::test]
async fn an_aborted_upload_changes_nothing() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    for name in ["old", "linked"] {
        directory.write(name, "old content");
    }
    fs::hard_link(directory.path("linked"), directory.path("other name")).expect("link");
    for name in ["old", "new", "linked"] {
        abort_upload(&daemon, &directory.path(name)).await;
        assert_eq!(names(&directory), ["linked", "old", "other name"], "leftovers of {name}");
    }
    // A damaged body aborts an upload too.
    let mut packed = compress(&vec![b'x'; 1 << 20]);
    packed.truncate(packed.len() - 4);
    for name in ["old", "new"] {
        let reply = daemon.upload(&directory.path(name), &[RAW, ("content-encoding", "gzip")], packed.clone()).await;
        assert_eq!(reply.status, 500);
    }
    for name in ["old", "linked", "other name"] {
        assert_eq!(fs::read_to_string(directory.path(name)).expect("read"), "old content");
    }
    assert_eq!(names(&directory), ["linked", "old", "other name"]);
}

#[tokio::test]
async fn readers_see_the_whole_old_or_new_content() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let contents = [vec![b'a'; 3 << 20], vec![b'b'; 2 << 20]];
    directory.write("file", &contents[0]);
    let (path, stop) = (directory.path("file"), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = std::sync::Arc::clone(&stop);
    let reader = std::thread::spawn(move || {
        let mut looks = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let content = fs::read(&path).expect("read");
            let is_whole =
                matches!((content.first(), content.len()), (Some(b'a'), 0x30_0000) | (Some(b'b'), 0x20_0000));
            assert!(is_whole && content.iter().all(|byte| *byte == content[0]), "{} bytes", content.len());
            looks += 1;
        }
        looks
    });
    for round in 1..=20 {
        let reply = daemon.upload(&directory.path("file"), &[RAW], contents[round % 2].clone()).await;
        assert_eq!(reply.status, 200);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(reader.join().expect("only complete contents") > 0);
}

#[tokio::test]
async fn uploads_retain_links_modes_and_attributes() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let inode = |name: &str| fs::metadata(directory.path(name)).expect("exists").ino();
    // Both hard links still lead to the same file.
    directory.write("linked", "old");
    fs::hard_link(directory.path("linked"), directory.path("second")).expect("link");
    let before = inode("linked");
    assert_eq!(daemon.upload(&directory.path("linked"), &[RAW], "new").await.status, 200);
    assert_eq!(
        (inode("linked"), fs::read_to_string(directory.path("second")).expect("read")),
        (before, "new".to_owned())
    );
    // Links are followed, including dangling ones, and their target is replaced.
    directory.write("file", "old");
    fs::create_dir(directory.path("folder")).expect("create");
    for (link, target) in [("link", "file"), ("folder/back", "../link"), ("dangling", "folder/made")] {
        std::os::unix::fs::symlink(target, directory.path(link)).expect("link");
    }
    let mut reading = fs::File::open(directory.path("file")).expect("open");
    for link in ["link", "folder/back", "dangling"] {
        assert_eq!(daemon.upload(&directory.path(link), &[RAW], link).await.status, 200);
        assert!(fs::symlink_metadata(directory.path(link)).expect("exists").is_symlink());
    }
    let mut before = String::new();
    std::io::Read::read_to_string(&mut reading, &mut before).expect("read");
    assert_eq!(before, "old", "an open file still has the old content");
    assert_eq!(fs::read_to_string(directory.path("file")).expect("read"), "folder/back");
    assert_eq!(fs::read_to_string(directory.path("folder/made")).expect("read"), "dangling");
    // Mode and access control list; for foreign attributes see `metadata_is_stored_with_the_file`.
    fs::set_permissions(directory.path("file"), fs::Permissions::from_mode(0o640)).expect("set");
    // Version 2; the owner, user 12345, the group, the mask, others: each with its rights and its id.
    let list = [(1u16, 6u16, u32::MAX), (2, 4, 12345), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in list {
        value.extend([&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    let has_list = xattr::set(directory.path("file"), "system.posix_acl_access", &value).is_ok();
    assert_eq!(daemon.upload(&directory.path("file"), &[RAW], "x").await.status, 200);
    assert_eq!(fs::metadata(directory.path("file")).expect("exists").permissions().mode() & 0o777, 0o640);
    if has_list {
        let kept = xattr::get(directory.path("file"), "system.posix_acl_access").expect("read");
        assert_eq!(kept.as_deref(), Some(&value[..]));
    }
    // A path with a trailing slash denotes a directory.
    assert_eq!(daemon.upload(&format!("{}/", directory.path("nothing")), &[RAW], "x").await.status, 400);
    // Composing replaces files in the same way.
    directory.write("part", "composed");
    let body = json!({ "source_paths": [directory.path("part")], "destination": directory.path("linked") });
    assert_eq!(post_json(&daemon, "/files/compose", &body).await.status, 200);
    assert_eq!(fs::read_to_string(directory.path("second")).expect("read"), "composed");
}

/// Checks that a file is written in place if no other file can be created beside it, or if its name cannot be replaced.
#[tokio::test]
async fn files_that_cannot_be_replaced_are_written_in_place() {
    if !crate::daemon::is_root() {
        eprintln!("skipped: mounting requires root");
        return;
    }
    let directory = TestDirectory::new();
    for name in ["below", "mounted"] {
        directory.write(name, "old");
    }
    let mut command = std::process::Command::new("unshare");
    let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
    command.args(["--mount", "--uts", "--propagation", "private", "/bin/sh", "-c", script, "sh"]);
    command.args([&directory.path("below"), &directory.path("mounted"), env!("CARGO_BIN_EXE_hearth-envd")]);
    let daemon = Daemon::spawn(command).await;
    let null = fs::metadata("/dev/null").expect("exists");
    for (path, content) in [
        (directory.path("mounted").as_str(), "new"),
        ("/proc/sys/kernel/hostname", "files-of-a-test"),
        ("/proc/self/oom_score_adj", "0"),
        ("/dev/null", "discarded"),
    ] {
        let reply = daemon.upload(path, &[RAW], content).await;
        assert_eq!((reply.status, reply.json()), (200, json!([entry(path)])), "{path}");
    }
    assert_eq!(fs::read_to_string(directory.path("below")).expect("read"), "new");
    assert_eq!(
        fs::read_to_string(directory.path("mounted")).expect("read"),
        "old",
        "the mount exists only in the daemon's namespace"
    );
    assert_eq!(daemon.run(&crate::process::shell("hostname")).await.stdout(), "files-of-a-test\n");
    assert_eq!(names(&directory), ["below", "mounted"]);
    // Another user's upload does not change the owner of a device, or of a file on a file system without owners.
    let Some((name, _)) = other_user() else { return };
    for path in ["/dev/null", "/proc/sys/kernel/hostname"] {
        let reply = post(&daemon, &format!("/files?path={path}&username={name}"), &[RAW], "files-of-a-test").await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
    }
    assert_eq!(fs::metadata("/dev/null").expect("exists").uid(), null.uid());
}

// envd: S2
#[tokio::test]
async fn signed_uploads() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let path = directory.path("a b+c.txt");
    daemon.init(json!({ "accessToken": "secret" })).await;
    let signature = crate::download::sign(&path, "write", "", "secret", None);
    let query = |signature: &str| format!("/files?path={}&signature={}", escape(&path), escape(signature));
    let body = form(&[("name=\"file\"", b"signed")]);
    let reply = post(&daemon, &query(&signature), &[FORM], body.clone()).await;
    assert_eq!((reply.status, reply.json()), (200, json!([entry(&path)])));
    // In a form encoding, a plus is a space.
    let plus = query(&signature).replace("%20", "+");
    assert_eq!(post(&daemon, &plus, &[FORM], body.clone()).await.status, 200);
    let reading = crate::download::sign(&path, "read", "", "secret", None);
    let reply = post(&daemon, &query(&reading), &[FORM], body.clone()).await;
    assert_eq!((reply.status, message(&reply)), (401, "invalid signature".to_owned()));
    let reply = post(&daemon, "/files?path=x", &[FORM], body.clone()).await;
    assert_eq!(message(&reply), "missing signature query parameter");
    let headers = [FORM, ("x-access-token", "wrong")];
    let reply = post(&daemon, &query(&signature), &headers, body).await;
    assert_eq!(message(&reply), "access token present in header but does not match");
}

#[tokio::test]
async fn a_full_disk_has_its_own_status() {
    // A file system that is always full.
    let daemon = Daemon::start().await;
    let reply = daemon.upload("/dev/full", &[RAW], "x").await;
    if !crate::daemon::is_root() {
        eprintln!("skipped: changing the owner of a device requires root");
        return;
    }
    assert_eq!(reply.status, 507, "{reply:?}");
    assert_eq!(message(&reply), "attempted to write 1 bytes: not enough disk space available");
}
