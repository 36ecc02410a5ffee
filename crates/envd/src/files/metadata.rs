//! Metadata of uploaded files, from request headers to extended attributes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use http::HeaderMap;
use xattr::FileExt;

use crate::attributes::unsupported;
use crate::failure::Failure;
use crate::filesystem::METADATA_PREFIX;

const HEADER_PREFIX: &str = "x-metadata-";
/// Longest key in bytes: an attribute's name has at most 255 (xattr(7)), of which the prefix takes nine.
const KEY_BYTES_MAX: usize = 246;
/// Size limit of all names and values of a file together, in bytes; they fit in one block of ext4.
const TOTAL_BYTES_MAX: usize = 4096;

/// Metadata of a request, by key.
pub(super) type Metadata = BTreeMap<String, String>;

pub(super) fn from_headers(headers: &HeaderMap) -> Result<Metadata, Failure> {
    let mut metadata = Metadata::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(HEADER_PREFIX).filter(|key| !key.is_empty()) else { continue };
        if metadata.contains_key(key) {
            continue;
        }
        let printable = |bytes: &[u8]| bytes.iter().all(|byte| (0x20..=0x7E).contains(byte));
        if key.len() > KEY_BYTES_MAX || !printable(key.as_bytes()) || !printable(value.as_bytes()) {
            let text = format!("invalid metadata: key or value of '{key}' is too long or has unprintable characters");
            return Err(Failure::bad_request(text));
        }
        metadata.insert(key.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let total: usize = metadata.iter().map(|(key, value)| METADATA_PREFIX.len() + key.len() + value.len()).sum();
    if total > TOTAL_BYTES_MAX {
        let text = format!("invalid metadata: {total} bytes exceed the limit of {TOTAL_BYTES_MAX}");
        return Err(Failure::bad_request(text));
    }
    Ok(metadata)
}

/// Replaces the metadata attributes of a file with `metadata`.
///
/// Does nothing if the file has no such attributes and `metadata` is empty. File systems without attributes are left
/// unchanged.
pub(super) fn replace(file: &File, metadata: &Metadata) -> io::Result<()> {
    let existing: Vec<_> = match file.list_xattr() {
        Ok(names) => names.filter(|name| name.to_str().is_some_and(|name| name.starts_with(METADATA_PREFIX))).collect(),
        Err(error) if unsupported(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in existing {
        let key = name.to_str().and_then(|name| name.strip_prefix(METADATA_PREFIX));
        if !key.is_some_and(|key| metadata.contains_key(key)) {
            file.remove_xattr(&name)?;
        }
    }
    for (key, value) in metadata {
        match file.set_xattr(format!("{METADATA_PREFIX}{key}"), value.as_bytes()) {
            Err(error) if unsupported(&error) => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name: http::HeaderName = name.parse().expect("a header name");
                (name, value.parse::<http::HeaderValue>().expect("a header value"))
            })
            .collect()
    }

    #[test]
    fn metadata_is_bounded() {
        let metadata = from_headers(&headers(&[("X-Metadata-Author", "me"), ("other", "x")])).expect("valid");
        assert_eq!(metadata, Metadata::from([("author".to_owned(), "me".to_owned())]));
        let long = "v".repeat(TOTAL_BYTES_MAX);
        assert!(from_headers(&headers(&[("x-metadata-a", &long)])).is_err());
        let key = format!("x-metadata-{}", "k".repeat(KEY_BYTES_MAX + 1));
        assert!(from_headers(&headers(&[(&key, "v")])).is_err());
    }

    /// A second implementation of the contract's rules for metadata (section 9.4), on pairs.
    fn model(pairs: &[(String, Vec<u8>)]) -> Option<Metadata> {
        let mut kept: Vec<(String, &[u8])> = Vec::new();
        for (name, value) in pairs {
            let name = name.to_lowercase();
            if let Some(key) = name.strip_prefix("x-metadata-")
                && !key.is_empty()
                && !kept.iter().any(|(known, _)| known == key)
            {
                kept.push((key.to_owned(), value));
            }
        }
        let printable = |bytes: &[u8]| bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
        let fits = kept.iter().all(|(key, value)| key.len() <= 246 && printable(key.as_bytes()) && printable(value));
        let total: usize = kept.iter().map(|(key, value)| 9 + key.len() + value.len()).sum();
        let text = |value: &[u8]| value.iter().copied().map(char::from).collect::<String>();
        (fits && total <= 4096).then(|| kept.into_iter().map(|(key, value)| (key, text(value))).collect())
    }

    fn pair() -> impl Strategy<Value = (String, Vec<u8>)> {
        let name = prop_oneof![
            6 => "[xX]-[mM]etadata-[a-cA-C]{0,2}",
            2 => "x-metadata-[a-z]{240,250}",
            1 => "[a-z-]{1,12}",
        ];
        // Bytes that a header value may contain.
        let byte = prop_oneof![20 => b' '..=b'~', 1 => Just(b'\t'), 1 => 0x80u8..=0xFF];
        let value = prop_oneof![
            4 => proptest::collection::vec(byte, 0..8),
            2 => (1300usize..1400).prop_map(|length| vec![b'v'; length]),
            1 => (4060usize..4100).prop_map(|length| vec![b'v'; length]),
        ];
        (name, value)
    }

    proptest! {
        #[test]
        fn metadata_matches_the_model(pairs in proptest::collection::vec(pair(), 0..6)) {
            let headers = pairs.iter().map(|(name, value)| {
                let name: http::HeaderName = name.parse().expect("a header name");
                (name, http::HeaderValue::from_bytes(value).expect("a header value"))
            });
            // `collect` would retain only the last value of a name, `append` retains all.
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, value);
            }
            prop_assert_eq!(from_headers(&map).ok(), model(&pairs));
        }
    }

    #[test]
    fn metadata_limits_are_exact() {
        let accepts = |key: usize, value: usize| {
            let (key, value) = (format!("x-metadata-{}", "k".repeat(key)), "v".repeat(value));
            from_headers(&headers(&[(&key, &value)])).is_ok()
        };
        assert!(accepts(246, 4096 - 9 - 246) && !accepts(246, 4096 - 9 - 245));
        assert!(!accepts(247, 0) && accepts(1, 4096 - 9 - 1) && !accepts(1, 4096 - 9));
    }
}
