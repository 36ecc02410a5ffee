//! `GET /files`: headers and the order of checks. [`super::pieces`] streams the bytes.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use rustix::io::Errno;

use super::blocking;
use super::content;
use super::encoding::{self, Encoding};
use super::input::Input;
use super::pieces::{self, Piece, Prefix};
use super::range::{self, Part, Selection};
use crate::failure::Failure;
use crate::path_calls::Lane;
use crate::sys;

/// Random bytes of the boundary between parts; a file does not contain it by chance.
const BOUNDARY_BYTES: usize = 16;

pub(super) async fn serve(path: &Path, lane: Lane, headers: &HeaderMap) -> Result<Response, Failure> {
    let (opened_path, own) = (path.to_owned(), lane.clone());
    let opened = blocking(&lane, move || open(&opened_path, own)).await?;
    let encoding = encoding::choose(headers)?;
    let opening = |error: io::Error| Failure::internal(format!("error opening file '{}': {error}", path.display()));
    let mut input = opened.map_err(opening)?;
    let by_name = content::by_name(path);
    let (mut response, kind) = match encoding {
        Encoding::Gzip => {
            let mut response = Response::new(Body::from_stream(pieces::compressed(input)));
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            (response, by_name.unwrap_or_else(|| content::by_content(None).to_owned()))
        }
        Encoding::Identity => {
            let prefix = Prefix::read(&mut input).await.map_err(opening)?;
            let kind = by_name.unwrap_or_else(|| content::by_content(Some(&prefix.bytes)).to_owned());
            (plain(input, prefix, headers, &kind)?, kind)
        }
    };
    let fields = response.headers_mut();
    fields.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    fields.insert(header::CONTENT_DISPOSITION, disposition(path));
    if !fields.contains_key(header::CONTENT_TYPE)
        && let Ok(kind) = HeaderValue::from_str(&kind)
    {
        fields.insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

/// Opens the file to send. The inner error is reported only after other rejections.
fn open(path: &Path, lane: Lane) -> Result<io::Result<Input>, Failure> {
    let shown = path.display();
    match Input::open(path, lane) {
        Ok(input) if input.metadata.is_dir() => Err(Failure::bad_request(format!("path '{shown}' is a directory"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::new(StatusCode::NOT_FOUND, format!("path '{shown}' does not exist")))
        }
        // A socket, or a device without hardware (open(2)).
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
            Err(Failure::bad_request(format!("path '{shown}' is a socket or a device that cannot be read")))
        }
        opened => Ok(opened),
    }
}

/// Builds a reply without compression, of a part if the client requests one and the size is known.
fn plain(input: Input, prefix: Prefix, headers: &HeaderMap, kind: &str) -> Result<Response, Failure> {
    let found = &input.metadata;
    let modified = found.modified().ok();
    if modified.is_some_and(|modified| is_unchanged(headers, modified)) {
        return Ok(with_last_modified(status(StatusCode::NOT_MODIFIED), modified));
    }
    let size = match (prefix.is_all, found.is_file()) {
        // The bytes read are authoritative: `/proc` and `/sys` report sizes that their files do not have.
        (true, _) => prefix.bytes.len() as u64,
        (false, true) if found.len() >= prefix.bytes.len() as u64 => found.len(),
        // The size is unknown: send everything up to the end.
        (false, _) => {
            let all = [Piece::Bytes(prefix.bytes), Piece::Rest];
            return Ok(Response::new(Body::from_stream(pieces::stream(input, all))));
        }
    };
    let wanted = match headers.get(header::RANGE) {
        Some(range) if if_range_matches(headers, modified) => range::parse(range.to_str().unwrap_or_default(), size),
        _ => Selection::Whole,
    };
    let file = SizedFile { input, prefix, size };
    let mut response = match wanted {
        Selection::Whole => file.whole(),
        Selection::Parts(parts) => match parts.as_slice() {
            [part] => file.part(*part),
            parts => file.parts(parts, kind)?,
        },
        Selection::Unsatisfiable => {
            let mut response = status(StatusCode::RANGE_NOT_SATISFIABLE);
            insert(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    insert(&mut response, header::ACCEPT_RANGES, "bytes");
    Ok(with_last_modified(response, modified))
}

/// A file of known size.
struct SizedFile {
    input: Input,
    prefix: Prefix,
    size: u64,
}

impl SizedFile {
    fn whole(self) -> Response {
        let size = self.size;
        let pieces = self.pieces(Part { start: 0, length: size });
        self.respond(StatusCode::OK, pieces, size)
    }

    fn part(self, part: Part) -> Response {
        let (range, pieces) = (part.content_range(self.size), self.pieces(part));
        let mut response = self.respond(StatusCode::PARTIAL_CONTENT, pieces, part.length);
        insert(&mut response, header::CONTENT_RANGE, &range);
        response
    }

    /// Builds a reply of several parts, each with its headers (RFC 9110, section 14.6).
    fn parts(self, parts: &[Part], kind: &str) -> Result<Response, Failure> {
        let boundary = sys::random_hex::<BOUNDARY_BYTES>()
            .map_err(|error| Failure::internal(format!("error generating a boundary: {error}")))?;
        let mut pieces = Vec::new();
        let mut length = 0;
        for (index, part) in parts.iter().enumerate() {
            let before = if index == 0 { "" } else { "\r\n" };
            let range = part.content_range(self.size);
            let head = format!("{before}--{boundary}\r\nContent-Range: {range}\r\nContent-Type: {kind}\r\n\r\n");
            length += head.len() as u64 + part.length;
            pieces.push(Piece::Bytes(head.into()));
            pieces.extend(self.pieces(*part));
        }
        let end = format!("\r\n--{boundary}--\r\n");
        length += end.len() as u64;
        pieces.push(Piece::Bytes(end.into()));
        let mut response = self.respond(StatusCode::PARTIAL_CONTENT, pieces, length);
        insert(&mut response, header::CONTENT_TYPE, &format!("multipart/byteranges; boundary={boundary}"));
        Ok(response)
    }

    /// Splits a part into the bytes in memory and the remainder in the file.
    fn pieces(&self, part: Part) -> Vec<Piece> {
        let known = self.prefix.bytes.len() as u64;
        let end = part.start + part.length;
        let mut pieces = Vec::new();
        if part.start < known {
            // Both offsets are within the bytes in memory.
            let (from, to) = (part.start as usize, end.min(known) as usize);
            pieces.push(Piece::Bytes(self.prefix.bytes.slice(from..to)));
        }
        if end > known {
            let start = part.start.max(known);
            pieces.push(Piece::File { start, length: end - start });
        }
        pieces
    }

    fn respond(self, status: StatusCode, pieces: Vec<Piece>, length: u64) -> Response {
        let body = match pieces.as_slice() {
            // Without a stream, a small file is sent in one write together with the headers.
            [] => Body::empty(),
            [Piece::Bytes(bytes)] => Body::from(bytes.clone()),
            _ => Body::from_stream(pieces::stream(self.input, pieces)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        insert(&mut response, header::CONTENT_LENGTH, &length.to_string());
        response
    }
}

fn status(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn with_last_modified(mut response: Response, modified: Option<SystemTime>) -> Response {
    if let Some(modified) = modified {
        insert(&mut response, header::LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
    response
}

fn insert(response: &mut Response, name: HeaderName, value: &str) {
    // Built from numbers, dates and content types, so always valid.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Parses a date header, which has whole seconds.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns true if the client's copy is current.
///
/// There are no entity tags, so `If-None-Match` matches only with `*`; if the header is present, the date is ignored
/// (RFC 9110, section 13.1.3).
fn is_unchanged(headers: &HeaderMap, modified: SystemTime) -> bool {
    match headers.get(header::IF_NONE_MATCH) {
        Some(tags) => tags.as_bytes().trim_ascii() == b"*",
        None => date(headers, &header::IF_MODIFIED_SINCE).is_some_and(|since| seconds(modified) <= seconds(since)),
    }
}

/// Returns true if there is no `If-Range` or if it matches, so that a part may be sent.
fn if_range_matches(headers: &HeaderMap, modified: Option<SystemTime>) -> bool {
    if !headers.contains_key(header::IF_RANGE) {
        return true;
    }
    let wanted = date(headers, &header::IF_RANGE);
    wanted.zip(modified).is_some_and(|(wanted, modified)| seconds(wanted) == seconds(modified))
}

/// Formats `Content-Disposition` with the file's name (RFC 6266).
fn disposition(path: &Path) -> HeaderValue {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let text = if !name.is_empty() && name.bytes().all(is_token) {
        format!("inline; filename={name}")
    } else if name.bytes().all(|byte| (0x20..0x7F).contains(&byte)) {
        format!("inline; filename=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        let encode = |byte: u8| match byte {
            byte if is_token(byte) && !b"*'%".contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        format!("inline; filename*=utf-8''{}", name.bytes().map(encode).collect::<String>())
    };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("inline"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_in_content_disposition() {
        for (path, expected) in [
            ("/a/hello.txt", "inline; filename=hello.txt"),
            ("/a/a b.txt", "inline; filename=\"a b.txt\""),
            ("/a/a\"b", "inline; filename=\"a\\\"b\""),
            ("/a/ü.txt", "inline; filename*=utf-8''%C3%BC.txt"),
            ("/a/a\nb", "inline; filename*=utf-8''a%0Ab"),
        ] {
            assert_eq!(disposition(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn conditions() {
        let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_000_000_500);
        let at = |offset: i64| {
            httpdate::fmt_http_date(
                SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_u64.saturating_add_signed(offset)),
            )
        };
        let headers = |pairs: &[(HeaderName, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("a header value"))).collect()
        };
        for (pairs, unchanged) in [
            (vec![], false),
            (vec![(header::IF_MODIFIED_SINCE, at(0))], true),
            (vec![(header::IF_MODIFIED_SINCE, at(-1))], false),
            (vec![(header::IF_MODIFIED_SINCE, "yesterday".to_owned())], false),
            (vec![(header::IF_MODIFIED_SINCE, at(0)), (header::IF_NONE_MATCH, "\"x\"".to_owned())], false),
            (vec![(header::IF_NONE_MATCH, "*".to_owned())], true),
        ] {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.clone(), value.as_str())).collect();
            assert_eq!(is_unchanged(&headers(&pairs), modified), unchanged, "{pairs:?}");
        }
        for (value, holds) in [(at(0), true), (at(1), false), ("\"tag\"".to_owned(), false)] {
            assert_eq!(if_range_matches(&headers(&[(header::IF_RANGE, &value)]), Some(modified)), holds, "{value}");
        }
    }
}
