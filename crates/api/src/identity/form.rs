//! Form-encoded bodies and queries of browsers and OAuth clients.

use axum::body::Body;
use http::{HeaderMap, StatusCode, header};

use crate::config::Config;
use crate::failure::Failure;
use crate::http::body;

/// Maximum size of a form. The longest password with an email address, and tokens, have a few KiB.
const FORM_BYTES_MAX: usize = 64 * 1024;
const MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// Names and values of a form or query.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// Reads and parses a body.
    pub(super) async fn read(config: &Config, headers: &HeaderMap, body: Body) -> Result<Self, Failure> {
        let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !media_type.split(';').next().is_some_and(|value| value.trim().eq_ignore_ascii_case(MEDIA_TYPE)) {
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("{MEDIA_TYPE} is expected")));
        }
        let bytes = body::bytes_up_to(config, body, FORM_BYTES_MAX).await?;
        Ok(Self::parse(&bytes))
    }

    /// Returns the value of a name that occurs exactly once. A repeated name is ambiguous and has no value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(found, _)| found == name);
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// Returns the value of a name that occurs exactly once and is not empty.
    pub(super) fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Form;

    #[test]
    fn repeated_names_have_no_value() {
        let form = Form::parse(b"a=1&b=%C3%A9+%26&c=&d=1&d=1&e");
        let all = ["a", "b", "c", "d", "e", "f"].map(|name| form.get(name));
        assert_eq!(all, [Some("1"), Some("é &"), Some(""), None, Some(""), None]);
        assert_eq!((form.filled("a"), form.filled("c")), (Some("1"), None));
    }
}
