//! Parameters of header values: `form-data; name="file"; filename="a b.txt"` (RFC 2045, RFC 2183, RFC 8187).

/// Bytes that a backslash escapes in a quoted value.
///
/// Before other bytes a backslash is literal, because some clients send Windows paths.
const SPECIAL: &[u8] = b"()<>@,;:\\\"/[]?=";

/// Returns the value of a parameter. The extended form (`name*=utf-8''...`) has precedence.
pub(super) fn parameter(header: &[u8], name: &str) -> Option<String> {
    let all = parse(header);
    let find = |wanted: &str| all.iter().find(|(found, _)| found.eq_ignore_ascii_case(wanted)).map(|(_, value)| value);
    if let Some(value) = find(&format!("{name}*")).and_then(|value| extended(value)) {
        return Some(value);
    }
    find(name).map(|value| String::from_utf8_lossy(value).into_owned())
}

fn parse(header: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    // The text before the first semicolon is the header's own value.
    let Some(begin) = header.iter().position(|byte| *byte == b';') else { return found };
    let mut rest = &header[begin..];
    while let Some(equals) = rest.iter().position(|byte| *byte == b'=') {
        let name = rest[..equals].rsplit(|byte| *byte == b';').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name.trim_ascii()).into_owned();
        let after = rest[equals + 1..].trim_ascii_start();
        let (value, remaining) = match after.strip_prefix(b"\"") {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.iter().position(|byte| *byte == b';').unwrap_or(after.len());
                (after[..end].trim_ascii_end().to_vec(), &after[end..])
            }
        };
        found.push((name, value));
        rest = remaining;
    }
    found
}

/// Returns the text of a quoted value and the remaining input. An unclosed quote ends with the header.
fn unquote(quoted: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut value = Vec::new();
    let mut bytes = quoted.iter().enumerate();
    while let Some((index, byte)) = bytes.next() {
        match (byte, quoted.get(index + 1)) {
            (b'"', _) => return (value, &quoted[index + 1..]),
            (b'\\', Some(next)) if SPECIAL.contains(next) => {
                value.push(*next);
                bytes.next();
            }
            _ => value.push(*byte),
        }
    }
    (value, &[])
}

/// Decodes `charset'language'percent-encoded`; only UTF-8.
fn extended(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let mut fields = text.splitn(3, '\'');
    let (charset, _, encoded) = (fields.next()?, fields.next()?, fields.next()?);
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let mut decoded = Vec::new();
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_as_clients_send_them() {
        for (header, name, value) in [
            (r#"form-data; name="file"; filename="a b.txt""#, "filename", Some("a b.txt")),
            (r#"form-data; name="file"; filename="a b.txt""#, "name", Some("file")),
            ("form-data; name=file; filename=a.txt", "filename", Some("a.txt")),
            ("form-data;name=file;filename=a.txt", "name", Some("file")),
            (r#"form-data; filename="a\"b\\c""#, "filename", Some(r#"a"b\c"#)),
            (r#"form-data; filename="C:\dir\a.txt""#, "filename", Some(r"C:\dir\a.txt")),
            (r#"form-data; filename="ü %41.txt""#, "filename", Some("ü %41.txt")),
            (r#"form-data; filename="x; name=y"; name="file""#, "name", Some("file")),
            ("form-data; filename=plain; filename*=UTF-8''%C3%BC%20a.txt", "filename", Some("ü a.txt")),
            ("form-data; filename=plain; filename*=latin1''%FC", "filename", Some("plain")),
            ("form-data; FileName=\"/dir/a\"", "filename", Some("/dir/a")),
            (r#"form-data; name="open"#, "name", Some("open")),
            ("form-data; name=file", "filename", None),
            ("name=file", "name", None),
            (r#"multipart/form-data; boundary="a=b;c""#, "boundary", Some("a=b;c")),
            ("multipart/mixed; charset=utf-8; boundary=xyz", "boundary", Some("xyz")),
        ] {
            assert_eq!(parameter(header.as_bytes(), name).as_deref(), value, "{name} of {header}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_parsed(header in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parameter(&header, "filename");
        }

        #[test]
        fn quoted_values_round_trip(name in "[^\\x00]{0,20}") {
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("form-data; name=\"file\"; filename=\"{quoted}\"");
            prop_assert_eq!(parameter(header.as_bytes(), "filename"), Some(name));
        }
    }
}
