//! Page tokens of lists: the opaque text of `X-Next-Token`.
//!
//! The format is E2B's: URL-safe base64 of `<RFC 3339 time>__<id>`, followed by `__asc` in an ascending list. Clients
//! must not decode it; operators may, to debug a client.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use jiff::Timestamp;
use utoipa::ToSchema;

const SEPARATOR: &str = "__";
const ASCENDING: &str = "asc";
/// Longest token that is decoded. A time, an ID and the separators need 110 characters at most.
const TOKEN_CHARS_MAX: usize = 256;

/// Order of a list by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
pub enum Order {
    /// Oldest first.
    #[schema(rename = "asc")]
    Ascending,
    /// Newest first.
    #[schema(rename = "desc")]
    Descending,
}

/// Reason for rejecting a page token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is not a token of this server.
    #[error("nextToken is malformed")]
    Malformed,
    /// The token belongs to a list in the other order.
    #[error("nextToken belongs to a list in the other order")]
    Order,
}

/// Last item of a page. The next page starts after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Time of the item.
    pub at: Timestamp,
    /// ID of the item, which orders items with the same time.
    pub id: String,
}

impl Cursor {
    /// Returns the token for a list in this order.
    #[must_use]
    pub fn to_token(&self, order: Order) -> String {
        let Self { at, id } = self;
        let suffix = match order {
            Order::Ascending => "__asc",
            Order::Descending => "",
        };
        URL_SAFE.encode(format!("{at:.9}{SEPARATOR}{id}{suffix}"))
    }

    /// Parses a token of a list in this order.
    ///
    /// # Errors
    /// [`TokenError`] when the text is not a token, or belongs to a list in the other order.
    pub fn from_token(token: &str, order: Order) -> Result<Self, TokenError> {
        if token.len() > TOKEN_CHARS_MAX {
            return Err(TokenError::Malformed);
        }
        let bytes = URL_SAFE.decode(token).map_err(|_| TokenError::Malformed)?;
        let text = String::from_utf8(bytes).map_err(|_| TokenError::Malformed)?;
        let parts: Vec<&str> = text.split(SEPARATOR).collect();
        let (at, id, written) = match parts.as_slice() {
            [at, id] => (at, id, Order::Descending),
            [at, id, ASCENDING] => (at, id, Order::Ascending),
            _ => return Err(TokenError::Malformed),
        };
        if id.is_empty() {
            return Err(TokenError::Malformed);
        }
        let at = at.parse().map_err(|_| TokenError::Malformed)?;
        if written == order { Ok(Self { at, id: (*id).to_owned() }) } else { Err(TokenError::Order) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursor() -> Cursor {
        Cursor { at: "2026-01-02T03:04:05.678901Z".parse().expect("valid"), id: "i0123".to_owned() }
    }

    #[test]
    fn a_token_has_e2b_s_format_and_round_trips() {
        let token = cursor().to_token(Order::Ascending);
        let text = String::from_utf8(URL_SAFE.decode(&token).expect("base64")).expect("text");
        assert_eq!(text, "2026-01-02T03:04:05.678901000Z__i0123__asc");
        assert_eq!(Cursor::from_token(&token, Order::Ascending), Ok(cursor()));
        assert_eq!(Cursor::from_token(&token, Order::Descending), Err(TokenError::Order));
        let token = cursor().to_token(Order::Descending);
        assert_eq!(Cursor::from_token(&token, Order::Descending), Ok(cursor()));
        assert_eq!(Cursor::from_token(&token, Order::Ascending), Err(TokenError::Order));
    }

    #[test]
    fn other_texts_are_malformed() {
        let of = |text: &str| URL_SAFE.encode(text);
        for token in
            ["", "%", "x", &of("no time__i1"), &of("2026-01-02T03:04:05Z__"), &of("a__b__c__d"), &"A".repeat(300)]
        {
            assert_eq!(Cursor::from_token(token, Order::Descending), Err(TokenError::Malformed), "{token}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Cursor::from_token(&text, Order::Descending);
            let _ = Cursor::from_token(&URL_SAFE.encode(&text), Order::Ascending);
        }
    }
}
