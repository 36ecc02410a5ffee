//! JSON in ASCII characters, without line breaks.
//!
//! Clients split the stream at every character that Unicode calls a line break, and decode each network chunk on its
//! own. An event therefore contains no character outside of ASCII.

/// Digits of an escape sequence.
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends a JSON string.
pub(crate) fn push_string(line: &mut Vec<u8>, text: &str) {
    line.reserve(text.len() + 2);
    line.push(b'"');
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (at, character) in text.char_indices() {
        if matches!(character, ' '..='~') && character != '"' && character != '\\' {
            continue;
        }
        line.extend_from_slice(&bytes[plain_from..at]);
        plain_from = at + character.len_utf8();
        match character {
            '"' => line.extend_from_slice(b"\\\""),
            '\\' => line.extend_from_slice(b"\\\\"),
            '\n' => line.extend_from_slice(b"\\n"),
            '\r' => line.extend_from_slice(b"\\r"),
            '\t' => line.extend_from_slice(b"\\t"),
            other => push_escaped(line, other),
        }
    }
    line.extend_from_slice(&bytes[plain_from..]);
    line.push(b'"');
}

/// Appends a JSON text that is valid, without the white space between its tokens.
pub(crate) fn push_json(line: &mut Vec<u8>, json: &str) {
    line.reserve(json.len());
    let mut in_string = false;
    let mut after_backslash = false;
    for character in json.chars() {
        if !in_string && matches!(character, ' ' | '\n' | '\r' | '\t') {
            continue;
        }
        match character {
            '"' if !after_backslash => in_string = !in_string,
            _ => {}
        }
        after_backslash = character == '\\' && !after_backslash;
        if matches!(character, ' '..='~') {
            // The pattern allows only ASCII characters.
            line.push(u8::try_from(character).unwrap_or(b'?'));
        } else {
            push_escaped(line, character);
        }
    }
}

fn push_escaped(line: &mut Vec<u8>, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        let digit = |shift: u16| HEX[usize::from(*unit >> shift & 0xF)];
        line.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> String {
        let mut line = Vec::new();
        push_string(&mut line, text);
        String::from_utf8(line).expect("ASCII")
    }

    #[test]
    fn strings_are_escaped_to_ascii_and_read_back() {
        assert_eq!(string("a\"\\\n\u{1}\u{7f}"), r#""a\"\\\n\u0001\u007f""#);
        assert_eq!(string("é\u{85}\u{2028}\u{2029}😀"), r#""\u00e9\u0085\u2028\u2029\ud83d\ude00""#);
        for text in ["", "plain", "\0\x0b\x0c\x1c\x1e", "x😀y\u{feff}z", "\u{10ffff}"] {
            let line = string(text);
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
            assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), text);
        }
    }

    #[test]
    fn json_loses_white_space_only_between_tokens() {
        let mut line = Vec::new();
        push_json(&mut line, "{ \"a b\" :\n[1.50, \"é \\\" \\\\\", true ] ,\"\u{2028}\":null}\r\n");
        let line = String::from_utf8(line).expect("ASCII");
        assert_eq!(line, r#"{"a b":[1.50,"\u00e9 \" \\",true],"\u2028":null}"#);
    }
}
