//! Forms and queries, as browsers and OAuth clients send them.

use axum::body::Body;
use http::{HeaderMap, StatusCode, header};

use crate::config::Config;
use crate::failure::Failure;
use crate::http::body;

/// Longest form: a password of the longest kind, an address and a port have a few KiB, tokens as well.
const FORM_BYTES_MAX: usize = 64 * 1024;
const KIND: &str = "application/x-www-form-urlencoded";

/// Names and values.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// Reads a body.
    pub(super) async fn read(config: &Config, headers: &HeaderMap, body: Body) -> Result<Self, Failure> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(KIND)) {
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("{KIND} is expected")));
        }
        let bytes = body::bytes_up_to(config, body, FORM_BYTES_MAX).await?;
        Ok(Self::parse(&bytes))
    }

    /// The value of a name that is there once. One that is repeated could mean two things to two readers.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(found, _)| found == name);
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// The same where an empty value is none.
    pub(super) fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Form;

    #[test]
    fn a_name_has_one_value() {
        let form = Form::parse(b"a=1&b=%C3%A9+%26&c=&d=1&d=1&e");
        let all = ["a", "b", "c", "d", "e", "f"].map(|name| form.get(name));
        assert_eq!(all, [Some("1"), Some("é &"), Some(""), None, Some(""), None]);
        assert_eq!((form.filled("a"), form.filled("c")), (Some("1"), None));
    }
}
