//! The parts of `/files` that parse client input, without a file; see [`crate::fuzz`].

use std::io;
use std::path::{Component, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Query;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::{HeaderMap, StatusCode, Uri, header};

use super::encoding::{self, Encoding};
use super::gunzip::gunzip;
use super::multipart::Multipart;
use super::parameters::parameter;
use super::range::{self, Selection};
use super::signature::{self, Operation};
use super::{Parameters, content, metadata};
use crate::failure::Failure;
use crate::fuzz::{Ending, complete, gzip, pieces};
use crate::paths;
use crate::state::State;
use crate::users::User;

/// Control bytes before a multipart body.
pub(crate) const MULTIPART_HEAD_BYTES: usize = 3;
const CONTENT_TYPES: [&str; 3] = [
    "multipart/form-data; boundary=xyz",
    "multipart/mixed; boundary=\"a=b;c\"; charset=utf-8",
    "Multipart/X;boundary=-",
];
/// Largest size of a file: the kernel's offsets are signed.
const SIZE_MAX: u64 = i64::MAX as u64;
const SIZES: [u64; 7] = [0, 1, 2, 10, 1000, 1 << 40, SIZE_MAX];
const NAMES: [&str; 5] = ["boundary", "filename", "name", "charset", ""];

/// Fuzzes an upload. The bytes before the body select:
///
/// | byte | bits | |
/// |---|---|---|
/// | 0 | 0-1 | the content type ([`CONTENT_TYPES`]); 3: the first line of the remaining data |
/// | 1 | all | the size of the body's pieces; 0: one piece |
/// | 2 | 0-1 | the body: plain; plain, but declared compressed; compressed; plain |
/// | | 2-3 | the body's end: 0-2 complete; 3 broken |
pub(crate) fn multipart(data: &[u8]) {
    let Some((&[kind, piece_bytes, form], mut rest)) = data.split_first_chunk::<MULTIPART_HEAD_BYTES>() else {
        return;
    };
    let content_type = match CONTENT_TYPES.get(usize::from(kind % 4)) {
        Some(content_type) => content_type.as_bytes(),
        None => {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            let (line, body) = rest.split_at(end);
            rest = body.get(1..).unwrap_or_default();
            line
        }
    };
    let is_gzip = matches!(form & 3, 1 | 2);
    let body = if form & 3 == 2 { gzip(rest) } else { rest.to_vec() };
    let ending = if form >> 2 & 3 == 3 { Ending::Broken } else { Ending::Whole };
    let receive = |piece_bytes| complete(receive(content_type, pieces(&body, piece_bytes, ending), is_gzip));

    let found = receive(piece_bytes.into());
    // A boundary with a line break in it cannot be split from the data reliably, and no header value has one.
    let is_plain = !parameter(content_type, "boundary").is_some_and(|boundary| boundary.contains('\r'));
    // Damage in a compressed body may lie behind the end of the form, where it may remain undetected.
    let is_sound = form & 3 != 1;
    if piece_bytes != 0 && ending == Ending::Whole && is_plain && is_sound {
        let in_one_piece = receive(0);
        assert_eq!(found.is_some(), in_one_piece.is_some(), "pieces change the result");
        if let (Some(found), Some(in_one_piece)) = (found, in_one_piece) {
            assert_eq!(found, in_one_piece, "pieces change the result");
        }
    }
}

/// A file of an upload: its name and its content.
type Received = (Option<String>, Vec<u8>);

/// Returns all files of an upload, or `None` if the upload is broken.
async fn receive(
    content_type: &[u8],
    body: BoxStream<'static, io::Result<Bytes>>,
    is_gzip: bool,
) -> Option<Vec<Received>> {
    let body = if is_gzip { gunzip(body).await.ok()?.boxed() } else { body };
    let received = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&received);
    let body = body.inspect(move |piece| {
        counter.fetch_add(piece.as_ref().map_or(0, Bytes::len), Ordering::Relaxed);
    });
    let mut parts = Multipart::new(content_type, body)?;
    let (mut files, mut bytes) = (Vec::new(), 0);
    let mut is_broken = false;
    while !is_broken {
        let Ok(part) = parts.next("file").await else {
            is_broken = true;
            break;
        };
        let Some(part) = part else { break };
        let name = part.file_name.clone();
        let mut data = part.into_data();
        let mut file = Vec::new();
        while let Some(piece) = data.next().await {
            match piece {
                Ok(piece) => file.extend_from_slice(&piece),
                Err(_) => {
                    is_broken = true;
                    break;
                }
            }
        }
        bytes += file.len();
        // A part has at least a boundary and an empty line.
        assert!(bytes + 4 * (files.len() + 1) <= received.load(Ordering::Relaxed), "more bytes out than in");
        files.push((name, file));
    }
    (!is_broken).then_some(files)
}

/// Fuzzes the headers and the query of a request to `/files`. `secured` has an access token.
pub(crate) fn headers(secured: &State, headers: &HeaderMap, uri: &Uri, size: u64) {
    check_ranges(headers, size);
    check_encodings(headers);
    check_metadata(headers);
    for value in headers.values() {
        for name in NAMES {
            // Invalid UTF-8 is replaced, by three bytes for each.
            let found = parameter(value.as_bytes(), name).map_or(0, |found| found.len());
            assert!(found <= 3 * value.len(), "{name} of {value:?}");
        }
        let _ = content::by_content(Some(value.as_bytes()));
    }
    if let Ok(Query(parameters)) = Query::<Parameters>::try_from_uri(uri) {
        check_signature(secured, &parameters, headers);
        check_resolution(&parameters);
    }
}

fn status(failure: Failure) -> StatusCode {
    failure.into_response().status()
}

fn check_ranges(headers: &HeaderMap, size: u64) {
    for range in headers.get_all(header::RANGE) {
        let text = range.to_str().unwrap_or_default();
        for size in SIZES.into_iter().chain([size.min(SIZE_MAX)]) {
            let Selection::Parts(parts) = range::parse(text, size) else { continue };
            assert!(!parts.is_empty() && parts.len() <= 1 + text.matches(',').count(), "{text} of {size}");
            let mut total = 0u64;
            for part in parts {
                assert!(part.length > 0, "{text} of {size} has an empty part");
                let end = part.start.checked_add(part.length);
                assert!(end.is_some_and(|end| end <= size), "{text} exceeds {size}");
                total = total.checked_add(part.length).expect("a sum within the file");
                assert!(part.content_range(size).ends_with(&format!("/{size}")));
            }
            assert!(total <= size, "{text} requests more than {size}");
        }
    }
}

fn check_encodings(headers: &HeaderMap) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let accepted = text(header::ACCEPT_ENCODING);
    match encoding::choose(headers) {
        Ok(Encoding::Gzip) => {
            assert!(accepted.contains("gzip") || accepted.contains('*'), "{accepted:?} does not accept gzip");
            assert!(!headers.contains_key(header::RANGE), "a part is never compressed");
        }
        Ok(Encoding::Identity) => {}
        Err(failure) => {
            assert_eq!(status(failure), StatusCode::NOT_ACCEPTABLE);
            assert!(accepted.contains("identity") || accepted.contains('*'), "{accepted:?} forbids no encoding");
        }
    }
    let body = text(header::CONTENT_ENCODING);
    match encoding::is_gzip_body(headers) {
        Ok(is_gzip) => assert_eq!(is_gzip, body.trim() == "gzip"),
        Err(failure) => assert!(status(failure) == StatusCode::BAD_REQUEST && !body.is_empty()),
    }
}

fn check_metadata(headers: &HeaderMap) {
    let Ok(metadata) = metadata::from_headers(headers) else { return };
    let mut total = 0;
    for (key, value) in &metadata {
        assert!((1..=246).contains(&key.len()) && !key.bytes().any(|byte| byte.is_ascii_uppercase()), "{key}");
        assert!(key.bytes().chain(value.bytes()).all(|byte| (0x20..0x7F).contains(&byte)), "{key}: {value}");
        let first = headers.get(format!("x-metadata-{key}"));
        assert!(first.is_some_and(|first| first == value), "{key} is not the first value sent");
        total += 9 + key.len() + value.len();
    }
    assert!(total <= 4096, "{total} bytes of metadata");
}

/// Checks that an accepted request has the token or a signature.
fn check_signature(secured: &State, parameters: &Parameters, headers: &HeaderMap) {
    let token = secured.access_token().expect("a secured daemon has a token");
    let given = headers.get("x-access-token").filter(|given| !given.is_empty());
    for operation in [Operation::Read, Operation::Write] {
        let checked = signature::check(secured, parameters, operation, headers);
        let has_token = given.is_some_and(|given| given == token.expose());
        let is_signed = given.is_none() && parameters.signature.as_ref().is_some_and(|text| text.starts_with("v1_"));
        match checked.map_err(status) {
            Ok(()) => assert!(has_token || is_signed, "{parameters:?} was accepted"),
            Err(StatusCode::BAD_REQUEST) => {
                assert!(parameters.signature_expiration.is_some(), "no other parameter is parsed");
            }
            Err(status) => assert!(status == StatusCode::UNAUTHORIZED && !has_token, "{parameters:?}"),
        }
    }
}

fn check_resolution(parameters: &Parameters) {
    let Some(path) = parameters.path.as_deref() else { return };
    let user = User { name: "user".to_owned(), uid: 1000, gid: 1000, home: PathBuf::from("/home/user") };
    let Ok(resolved) = paths::resolve(path, &user, None) else { return };
    assert!(resolved.is_absolute(), "{path:?}");
    if path.starts_with('/') {
        assert_eq!(resolved.as_os_str(), path, "an absolute path is used unchanged");
    } else {
        assert!(!resolved.components().any(|part| matches!(part, Component::ParentDir)), "{path:?}");
    }
    let _ = content::by_name(&resolved);
}
