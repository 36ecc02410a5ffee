//! Content type of a file, by its name or by its first bytes.

use std::path::Path;

/// Bytes of a file that are examined.
pub(super) const SNIFFED_BYTES: usize = 512;
const BINARY: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";

/// Returns the content type for the file's name, if its extension is known.
pub(super) fn by_name(path: &Path) -> Option<String> {
    let kind = mime_guess::from_path(path).first()?;
    let is_text = kind.type_() == mime_guess::mime::TEXT && kind.get_param("charset").is_none();
    Some(if is_text { format!("{kind}; charset=utf-8") } else { kind.to_string() })
}

/// Returns the content type for the file's first bytes; without them, `application/octet-stream`.
pub(super) fn by_content(head: Option<&[u8]>) -> &'static str {
    let Some(head) = head else { return BINARY };
    let head = &head[..head.len().min(SNIFFED_BYTES)];
    if let Some((_, kind)) = SIGNATURES.iter().find(|(signature, _)| head.starts_with(signature)) {
        return kind;
    }
    if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
        return "image/webp";
    }
    let text = head.trim_ascii_start();
    let tag = |tag: &[u8]| {
        text.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag))
            && text.get(tag.len()).is_some_and(|next| b" >".contains(next))
    };
    if HTML_TAGS.iter().any(|name| tag(name)) {
        return "text/html; charset=utf-8";
    }
    if text.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    // Control characters that text does not contain.
    if head.iter().any(|byte| matches!(byte, 0..=8 | 0x0B | 0x0E..=0x1A | 0x1C..=0x1F)) { BINARY } else { TEXT }
}

const HTML_TAGS: [&[u8]; 7] = [b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<table"];

const SIGNATURES: [(&[u8], &str); 13] = [
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xFF\xD8\xFF", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"\x1F\x8B\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"\0asm", "application/wasm"),
    (b"\xEF\xBB\xBF", TEXT),
    (b"\xFE\xFF", "text/plain; charset=utf-16be"),
    (b"\xFF\xFE", "text/plain; charset=utf-16le"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_by_name() {
        for (name, kind) in [
            ("a.txt", Some("text/plain; charset=utf-8")),
            ("a.HTML", Some("text/html; charset=utf-8")),
            ("a.json", Some("application/json")),
            ("a.png", Some("image/png")),
            ("Makefile", None),
            ("a.unheard-of", None),
        ] {
            assert_eq!(by_name(Path::new(name)).as_deref(), kind, "{name}");
        }
    }

    #[test]
    fn content_types_by_content() {
        for (head, kind) in [
            (&b""[..], TEXT),
            (b"hello\n", TEXT),
            ("grüße".as_bytes(), TEXT),
            (b"\x7fELF\x02\x01\x01\0", BINARY),
            (b"\x89PNG\r\n\x1a\n....", "image/png"),
            (b"RIFF\x04\0\0\0WEBP", "image/webp"),
            (b"  <!DOCTYPE html>", "text/html; charset=utf-8"),
            (b"<htmlish", TEXT),
            (b"<?xml version", "text/xml; charset=utf-8"),
        ] {
            assert_eq!(by_content(Some(head)), kind, "{head:?}");
        }
        assert_eq!(by_content(None), BINARY);
    }
}
