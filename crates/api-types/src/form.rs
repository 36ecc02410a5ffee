//! Strict decoder for form encoding (`application/x-www-form-urlencoded`).
//!
//! Common decoders pass malformed input through unchanged. The contract's metadata filter is decoded three times, and a
//! guess at one level would change the meaning of the next, so malformed input is an error here.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Error for a text that is not form encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// `%` without two hexadecimal digits after it.
    #[error("`%` is not followed by two hexadecimal digits")]
    Escape,
    /// The decoded bytes are not UTF-8.
    #[error("the text is not UTF-8")]
    Utf8,
}

/// Decodes one key or value: `+` is a space, `%XX` a byte.
///
/// # Errors
/// [`FormError`] when no encoder could have produced the text.
pub fn decode(text: &str) -> Result<String, FormError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (high, low) = match after {
                    [high, low, ..] => (hex_digit(*high), hex_digit(*low)),
                    _ => (None, None),
                };
                let (Some(high), Some(low)) = (high, low) else { return Err(FormError::Escape) };
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).map_err(|_| FormError::Utf8)
}

fn hex_digit(byte: u8) -> Option<u8> {
    // A hexadecimal digit is below 16.
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Splits `a=b&c=d` into decoded pairs. A piece without `=` has an empty value; empty pieces are skipped.
///
/// # Errors
/// [`FormError`] when a key or value is malformed.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, FormError> {
    let pieces = text.split('&').filter(|piece| !piece.is_empty());
    pieces
        .map(|piece| {
            let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect()
}

/// Returns the parameters of a query. The first of each name is used; a parameter without a value counts as absent.
///
/// # Errors
/// Same as [`pairs`].
pub(crate) fn parameters(query: &str) -> Result<BTreeMap<String, String>, FormError> {
    let pairs = pairs(query)?;
    // `collect` stores the last pair of equal names, so the pairs are reversed.
    Ok(pairs.into_iter().rev().filter(|(_, value)| !value.is_empty()).collect())
}

/// Parses a number that consists of digits only. No number in a query has a sign.
pub(crate) fn digits<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn malformed_texts_are_rejected() {
        for (text, expected) in [
            ("a+b%20c", Ok("a b c")),
            ("%C3%a9", Ok("é")),
            ("é", Ok("é")),
            ("%", Err(FormError::Escape)),
            ("%2", Err(FormError::Escape)),
            ("%zz", Err(FormError::Escape)),
            ("%+1", Err(FormError::Escape)),
            ("%ff", Err(FormError::Utf8)),
        ] {
            assert_eq!(decode(text), expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn pairs_split_on_the_first_equals_sign() {
        let expected = [("a", "b=c"), ("d", ""), ("e", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(pairs("a=b=c&&d&e="), Ok(expected.to_vec()));
    }

    proptest! {
        #[test]
        fn encoded_texts_round_trip(text in ".*") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&encoded), Ok(text));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = pairs(&text);
        }
    }
}
