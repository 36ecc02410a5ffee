//! `POST /files` and composing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use serde_json::json;

use crate::connect::Codec;
use crate::daemon::{Daemon, other_user, within};
use crate::filesystem::Place;
use crate::http::{Reply, chunked, escape, post, post_json, send};

const RAW: (&str, &str) = ("content-type", "application/octet-stream");
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=xyz");

/// A part: the parameters of its name, and its content.
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
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
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
    value["message"].as_str().expect("text").to_owned()
}

// envd: F1, F4
#[tokio::test]
async fn every_way_up() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let big: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    for (number, content) in [&b""[..], b"hello", b"--xyz\r\n--xyz--", "grüße\r\n".as_bytes(), &big].iter().enumerate()
    {
        let file: &str = &place.path(&format!("new/tree/{number}"));
        let unnamed = form(&[("name=\"file\"", content)]);
        for (headers, body) in [
            (vec![RAW], content.to_vec()),
            (vec![("content-type", "application/octet-stream; x=y")], content.to_vec()),
            (vec![RAW, ("content-encoding", "gzip")], compress(content)),
            (vec![RAW, ("content-encoding", "identity")], content.to_vec()),
            (vec![FORM], unnamed.clone()),
            (vec![FORM, ("content-encoding", "gzip")], compress(&unnamed)),
        ] {
            // The boundary in the content would be one.
            if headers[0] == FORM && content.starts_with(b"--xyz") {
                continue;
            }
            let reply = daemon.upload(file, &headers, body.clone()).await;
            assert_eq!((reply.status, reply.json()), (200, json!([entry(file)])), "{headers:?}");
            assert!(fs::read(file).expect("written") == *content, "{headers:?}");
            // The same in pieces of unknown number.
            let pieces: Vec<Bytes> = body.chunks(60_001).map(Bytes::copy_from_slice).collect();
            let path = format!("/files?path={}", escape(file));
            let reply = send(&daemon, Method::POST, &path, &headers, chunked(futures::stream::iter(pieces))).await;
            assert_eq!(reply.status, 200, "{headers:?}: {reply:?}");
            assert!(fs::read(file).expect("written") == *content, "{headers:?}");
        }
    }
    assert_eq!(fs::metadata(place.path("new/tree/0")).expect("exists").permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::metadata(place.path("new/tree")).expect("exists").permissions().mode() & 0o777, 0o755);
}

// envd: F3
#[tokio::test]
async fn several_files_in_one_form() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let names = ["a.txt", "deep/er/b.txt", "ü \"q\" %41.bin"].map(|name| place.path(name));
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
        assert_eq!(fs::read(name).expect("written"), content);
    }
    // No file, twice the same one, one without a name.
    let reply = post(&daemon, "/files", &[FORM], form(&[("name=\"x\"", b"y")])).await;
    assert_eq!((reply.status, reply.json()), (200, json!([])));
    let twice = format!("name=\"file\"; filename=\"{}\"", place.path("twice"));
    let reply = post(&daemon, "/files", &[FORM], form(&[(&twice, b"first"), (&twice, b"second")])).await;
    assert_eq!(reply.status, 400, "{reply:?}");
    assert_eq!(fs::read(place.path("twice")).expect("written"), b"first");
    assert_eq!(post(&daemon, "/files", &[FORM], form(&[("name=\"file\"", b"x")])).await.status, 400);
    // Not whole: what came is there.
    let body = form(&[(&format!("name=\"file\"; filename=\"{}\"", place.path("cut")), b"begun")]);
    let reply = post(&daemon, "/files", &[FORM], body[..body.len() - 11].to_vec()).await;
    assert_eq!(reply.status, 500, "{reply:?}");
    let reply = post(&daemon, "/files", &[("content-type", "multipart/form-data")], body).await;
    assert_eq!(reply.status, 500, "{reply:?}");
}

#[tokio::test]
async fn refusals_reach_clients_that_are_still_sending() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    place.write("file", "x");
    let much = vec![b'x'; 8 << 20];
    for (path, headers, status, text) in [
        (place.path(""), vec![RAW], 400, format!("path is a directory: {}", place.path(""))),
        (
            place.path("file/x"),
            vec![RAW],
            500,
            format!("error ensuring directories: path is a file: {}", place.path("file")),
        ),
        ("~other/x".to_owned(), vec![RAW], 400, "cannot expand user-specific home dir".to_owned()),
        (String::new(), vec![RAW], 400, "path query parameter is required for raw body upload".to_owned()),
        (place.path("x"), vec![], 400, "unsupported content type: , expected multipart/form-data or".to_owned()),
        (place.path("x"), vec![("content-type", "text/plain")], 400, "unsupported content type: text/plain".to_owned()),
        (place.path("x"), vec![RAW, ("content-encoding", "br")], 400, "unsupported Content-Encoding: br".to_owned()),
        (place.path("x"), vec![RAW, ("content-encoding", "gzip")], 400, "error decompressing request body".to_owned()),
        (place.path("x"), vec![RAW, ("x-metadata-a", "é")], 400, "invalid metadata".to_owned()),
    ] {
        let reply = within("the answer", daemon.upload(&path, &headers, much.clone())).await;
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
    // Damage that shows later is another error.
    let mut packed = compress(&much);
    packed.truncate(packed.len() - 4);
    let reply = daemon.upload(&place.path("x"), &[RAW, ("content-encoding", "gzip")], packed).await;
    assert_eq!(reply.status, 500);
}

#[tokio::test]
async fn owners_and_modes() {
    let daemon = Daemon::start().await;
    let Some((name, uid)) = other_user() else { return };
    let place = Place::new();
    place.write("old", "longer than the new text");
    fs::set_permissions(place.path("old"), fs::Permissions::from_mode(0o750)).expect("sets");
    std::os::unix::fs::symlink(place.path("old"), place.path("link")).expect("links");
    for path in [place.path("link"), place.path("new/file")] {
        let target = format!("/files?path={}&username={name}", escape(&path));
        assert_eq!(post(&daemon, &target, &[RAW], "new").await.json(), json!([entry(&path)]));
    }
    let (old, new) =
        (fs::metadata(place.path("old")).expect("exists"), fs::metadata(place.path("new/file")).expect("exists"));
    assert_eq!((old.uid(), old.permissions().mode() & 0o777, old.len()), (uid, 0o750, 3));
    assert_eq!((new.uid(), new.permissions().mode() & 0o777), (uid, 0o644));
    assert_eq!(fs::metadata(place.path("new")).expect("exists").uid(), uid);
    assert!(fs::symlink_metadata(place.path("link")).expect("exists").is_symlink());
}

// envd: F2
#[tokio::test]
async fn a_new_tree_by_many_at_once() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let paths: Vec<String> = (0..30).map(|number| place.path(&format!("x/y/z/{number}"))).collect();
    let uploads = paths.iter().map(|path| daemon.upload(path, &[RAW], path.clone()));
    for (reply, path) in futures::future::join_all(uploads).await.iter().zip(&paths) {
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(fs::read_to_string(path).expect("written"), *path);
    }
}

// envd: F16
#[tokio::test]
async fn metadata_is_kept_with_the_file() {
    let daemon = Daemon::start().await;
    // Not every temporary folder has extended attributes.
    let Ok(folder) = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")) else {
        eprintln!("skipped: {} is not writable", env!("CARGO_TARGET_TMPDIR"));
        return;
    };
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    fs::write(path("probe"), "").expect("writes");
    if let Err(error) = xattr::set(path("probe"), "user.probe", b"x") {
        eprintln!("skipped: no extended attributes here: {error}");
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
    xattr::set(path("file"), "user.foreign", b"x").expect("sets");
    xattr::set(path("file"), "user.e2b.inside", b"guest").expect("sets");
    let entry = daemon.stat(Codec::Json, &path("file")).await.expect("exists");
    let mut told: Vec<_> = entry.metadata.into_iter().collect();
    told.sort();
    let known = [("author", "me"), ("inside", "guest"), ("note", "a b")];
    assert_eq!(told, known.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let form_headers = [FORM, ("x-metadata-author", "other")];
    let reply = daemon.upload(&path("file"), &form_headers, form(&[("name=\"file\"", b"x")])).await;
    assert_eq!(reply.json()[0]["metadata"], json!({ "author": "other" }));
    let reply = daemon.upload(&path("file"), &[RAW], "text").await;
    assert_eq!(reply.json()[0].get("metadata"), None, "none clears");
    assert_eq!(xattr::get(path("file"), "user.foreign").expect("reads").as_deref(), Some(&b"x"[..]));
}

#[tokio::test]
async fn composing() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    for (name, content) in [("a", "one "), ("b", "two "), ("c", "three")] {
        place.write(name, content);
    }
    let compose = async |body: serde_json::Value| post_json(&daemon, "/files/compose", &body).await;
    let (a, b, c, out) = (place.path("a"), place.path("b"), place.path("c"), place.path("new/out"));
    for (body, status) in [
        (json!("x"), 400),
        (json!({ "source_paths": [a] }), 400),
        (json!({ "source_paths": [], "destination": out }), 400),
        (json!({ "source_paths": [a], "destination": "" }), 400),
        (json!({ "source_paths": [a, b], "destination": a }), 400),
        (json!({ "source_paths": [a, place.path("")], "destination": out }), 400),
        (json!({ "source_paths": [a], "destination": "~other/x" }), 400),
        (json!({ "source_paths": [a], "destination": out, "username": "no-such-user" }), 401),
        (json!({ "source_paths": [a, place.path("gone")], "destination": out }), 404),
    ] {
        let reply = compose(body.clone()).await;
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        message(&reply);
    }
    let missing = compose(json!({ "source_paths": [place.path("gone")], "destination": out })).await;
    assert_eq!(message(&missing), format!("source file not found: {}", place.path("gone")));
    let reply = compose(json!({ "source_paths": [a, b, c], "destination": out })).await;
    assert_eq!((reply.status, reply.json()), (200, entry(&out)));
    assert_eq!(fs::read_to_string(&out).expect("written"), "one two three");
    assert_eq!(fs::read_dir(place.path("")).expect("lists").count(), 1, "the sources are gone");
    assert_eq!(fs::read_dir(place.path("new")).expect("lists").count(), 1, "and there is nothing temporary");
}

// envd: S2
#[tokio::test]
async fn signed_uploads() {
    let daemon = Daemon::start().await;
    let place = Place::new();
    let path = place.path("a b+c.txt");
    daemon.init(json!({ "accessToken": "secret" })).await;
    let signature = crate::download::sign(&path, "write", "", "secret", None);
    let query = |signature: &str| format!("/files?path={}&signature={}", escape(&path), escape(signature));
    let body = form(&[("name=\"file\"", b"signed")]);
    let reply = post(&daemon, &query(&signature), &[FORM], body.clone()).await;
    assert_eq!((reply.status, reply.json()), (200, json!([entry(&path)])));
    // A form encodes a space as a plus.
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
async fn a_full_disk_has_a_status_of_its_own() {
    // A file system that is always full.
    let daemon = Daemon::start().await;
    let reply = daemon.upload("/dev/full", &[RAW], "x").await;
    if !crate::daemon::is_root() {
        eprintln!("skipped: only root may own a device");
        return;
    }
    assert_eq!(reply.status, 507, "{reply:?}");
    assert_eq!(message(&reply), "attempted to write 1 bytes: not enough disk space available");
}
