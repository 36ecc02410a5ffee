//! API keys: `e2b_` and 40 lowercase hexadecimal digits.
//!
//! A secret is shown once, when it is generated. The store has only its hash, by which a presented key is found, and a
//! mask, by which its owner recognizes it in a list. Secrets have 160 random bits, so the hash needs neither salt nor
//! stretching, and finding it by an index reveals nothing that helps an attacker to find another secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hearth_types::Secret;
use sha2::{Digest as _, Sha256};

/// Prefix of every key. Clients check it before they send a key.
pub const PREFIX: &str = "e2b_";

/// Random bytes of a generated key.
const BYTES: usize = 20;
/// Minimum bytes of a key: fewer could be guessed, and the mask would reveal the whole key.
const BYTES_MIN: usize = 16;
/// Maximum bytes of a key; longer texts are rejected unparsed.
const BYTES_MAX: usize = 64;

/// Digits that a mask shows at either end.
const MASK_PREFIX: usize = 2;
const MASK_SUFFIX: usize = 4;

/// The text is not an API key. The message does not repeat it: it may be a credential of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: `{PREFIX}` and an even number of lowercase hexadecimal digits are expected")]
pub struct ParseError;

/// Secret of an API key.
#[derive(Clone)]
pub struct KeySecret {
    text: Secret,
    bytes: Vec<u8>,
}

impl KeySecret {
    /// Generates a random key.
    ///
    /// # Panics
    /// If the operating system has no random source (`getrandom(2)` fails): no key could be trusted then.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = vec![0u8; BYTES];
        getrandom::fill(&mut bytes).expect("the operating system has a random source");
        Self { text: Secret::new(format!("{PREFIX}{}", hex::encode(&bytes))), bytes }
    }

    /// Returns the whole key. Never log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// Returns the hash to store.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash(format!("$sha256${}", STANDARD_NO_PAD.encode(Sha256::digest(&self.bytes))))
    }

    /// Returns the mask to show in lists.
    #[must_use]
    pub fn mask(&self) -> KeyMask {
        let digits = &self.expose()[PREFIX.len()..];
        KeyMask {
            prefix: PREFIX.to_owned(),
            value_length: u32::try_from(digits.len()).expect("a key has at most 128 digits"),
            masked_prefix: digits[..MASK_PREFIX].to_owned(),
            masked_suffix: digits[digits.len() - MASK_SUFFIX..].to_owned(),
        }
    }
}

impl FromStr for KeySecret {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseError)?;
        let is_lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !(BYTES_MIN * 2..=BYTES_MAX * 2).contains(&digits.len()) || !digits.bytes().all(is_lower_hex) {
            return Err(ParseError);
        }
        // Only an odd number of digits can still be invalid here.
        let bytes = hex::decode(digits).map_err(|_| ParseError)?;
        Ok(Self { text: Secret::new(text), bytes })
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// Stored form of a key: `$sha256$` and the unpadded base64 of the SHA-256 of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyHash(String);

impl KeyHash {
    /// Returns the hash as it is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Part of a key that may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMask {
    /// `e2b_`.
    pub prefix: String,
    /// Number of digits after the prefix.
    pub value_length: u32,
    /// The first two digits.
    pub masked_prefix: String,
    /// The last four digits.
    pub masked_suffix: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hash_as_in_the_contract() {
        let key: KeySecret = format!("e2b_{}", "0".repeat(40)).parse().expect("valid");
        assert_eq!(key.hash().as_str(), "$sha256$3kfJsn640wDbtfLDU+Yyw5MmLPBjQMT6fxtAxMvTb5A");
    }

    #[test]
    fn generated_keys_are_what_clients_accept() {
        let key = KeySecret::generate();
        let digits = key.expose().strip_prefix("e2b_").expect("the prefix");
        assert_eq!(digits.len(), 40);
        let again: KeySecret = key.expose().parse().expect("valid");
        assert_eq!(again.hash(), key.hash());
        assert_ne!(KeySecret::generate().hash(), key.hash());
        assert_eq!(format!("{key:?}"), "<redacted>");
        let mask = KeyMask {
            prefix: "e2b_".to_owned(),
            value_length: 40,
            masked_prefix: digits[..2].to_owned(),
            masked_suffix: digits[36..].to_owned(),
        };
        assert_eq!(key.mask(), mask);
    }

    #[test]
    fn other_texts_are_rejected() {
        let hex = |digits: usize| "0123456789abcdef".repeat(10)[..digits].to_owned();
        for (text, valid) in [
            (format!("e2b_{}", hex(40)), true),
            (format!("e2b_{}", hex(32)), true),
            (format!("e2b_{}", hex(128)), true),
            (format!("e2b_{}", hex(30)), false),
            (format!("e2b_{}", hex(39)), false),
            (format!("e2b_{}", hex(130)), false),
            (format!("e2b_{}", hex(40).to_uppercase()), false),
            (format!("e2b_{}g", hex(39)), false),
            (format!("e2b_{} ", hex(39)), false),
            (format!("E2B_{}", hex(40)), false),
            (format!("sk_e2b_{}", hex(40)), false),
            (hex(40), false),
            ("e2b_".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(text.parse::<KeySecret>().is_ok(), valid, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", hexlike in "e2b_[0-9a-fA-Fé]{0,140}") {
            let _ = text.parse::<KeySecret>();
            if let Ok(key) = hexlike.parse::<KeySecret>() {
                prop_assert_eq!(key.expose(), hexlike.as_str());
                let _ = key.mask();
            }
        }
    }
}
