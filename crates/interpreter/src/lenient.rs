//! Repair of JSON that kernels write and the standard forbids.
//!
//! Python's encoder writes `NaN` and `Infinity`, and passes lone surrogates on; programs in other languages write control
//! characters. Such a message is repaired, so that its other values are not lost.

use std::borrow::Cow;

/// Parses JSON with `parse`; if that fails, repairs the JSON and tries again.
pub(crate) fn parse<T>(json: &[u8], parse: impl Fn(&str) -> serde_json::Result<T>) -> serde_json::Result<T> {
    let strict = std::str::from_utf8(json).ok().and_then(|text| parse(text).ok());
    match strict {
        Some(value) => Ok(value),
        None => parse(&repaired(&String::from_utf8_lossy(json))),
    }
}

/// Replaces lone surrogates in JSON that was validated but not decoded.
pub(crate) fn without_lone_surrogates(json: &str) -> Cow<'_, str> {
    if json.contains("\\ud") || json.contains("\\uD") { Cow::Owned(repaired(json)) } else { Cow::Borrowed(json) }
}

/// Returns the text with numbers that JSON lacks as `null`, lone surrogates as U+FFFD, and control characters escaped.
pub(crate) fn repaired(json: &str) -> String {
    let mut output = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(character) = rest.chars().next() {
        if character == '"' {
            rest = repair_string(rest, &mut output);
            continue;
        }
        if let Some(number) = ["NaN", "-Infinity", "Infinity", "-NaN"].iter().find(|number| rest.starts_with(**number))
        {
            output.push_str("null");
            rest = &rest[number.len()..];
            continue;
        }
        output.push(character);
        rest = &rest[character.len_utf8()..];
    }
    output
}

/// Appends the string at the start of `text`, and returns the text behind it.
fn repair_string<'a>(text: &'a str, output: &mut String) -> &'a str {
    output.push('"');
    let mut rest = &text[1..];
    while let Some(character) = rest.chars().next() {
        let after = &rest[character.len_utf8()..];
        match character {
            '"' => {
                output.push('"');
                return after;
            }
            '\\' => {
                let (escape, behind) = repaired_escape(rest);
                output.push_str(&escape);
                rest = behind;
                continue;
            }
            control if u32::from(control) < 0x20 => output.push_str(&format!("\\u{:04x}", u32::from(control))),
            plain => output.push(plain),
        }
        rest = after;
    }
    rest
}

/// Splits off an escape sequence; a surrogate without its other half is replaced.
fn repaired_escape(text: &str) -> (Cow<'_, str>, &str) {
    if let Some(unit) = unit(text) {
        let (first, rest) = text.split_at(6);
        return match unit {
            0xD800..=0xDBFF => match self::unit(rest) {
                Some(0xDC00..=0xDFFF) => (Cow::Borrowed(&text[..12]), &text[12..]),
                _ => (Cow::Borrowed("\\ufffd"), rest),
            },
            0xDC00..=0xDFFF => (Cow::Borrowed("\\ufffd"), rest),
            _ => (Cow::Borrowed(first), rest),
        };
    }
    let mut characters = text.chars();
    characters.next();
    match characters.next() {
        Some(kind @ ('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't')) => {
            (Cow::Owned(format!("\\{kind}")), characters.as_str())
        }
        // Not an escape sequence: the backslash means itself.
        _ => (Cow::Borrowed("\\\\"), &text[1..]),
    }
}

/// Returns the UTF-16 code unit of an escape sequence `\uXXXX` at the start of the text.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_json_of_kernels_is_repaired() {
        for (json, expected) in [
            (r#"[NaN, -Infinity,Infinity,"NaN"]"#, r#"[null, null,null,"NaN"]"#),
            (
                r#"{"a":"\ud800","b":"\udc00x","c":"\ud83d\ude00","d":"\ud800\u0041"}"#,
                r#"{"a":"\ufffd","b":"\ufffdx","c":"\ud83d\ude00","d":"\ufffd\u0041"}"#,
            ),
            ("\"a\nb\u{1}\"", r#""a\u000ab\u0001""#),
            (r#""\q\u12\" é""#, r#""\\q\\u12\" é""#),
        ] {
            assert_eq!(repaired(json), expected);
            serde_json::from_str::<serde::de::IgnoredAny>(expected).expect("valid");
        }
    }

    #[test]
    fn valid_json_is_not_changed() {
        let text = r#"{"a":[1,"\ud83d\ude00\u00e9\\\"",null]}"#;
        assert_eq!(repaired(text), text);
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        let value = parse(b"\"a\xffb\"", |text| serde_json::from_str::<String>(text)).expect("repaired");
        assert_eq!(value, "a\u{fffd}b");
        assert!(parse(b"{\"a\":", |text| serde_json::from_str::<serde_json::Value>(text)).is_err());
    }
}
