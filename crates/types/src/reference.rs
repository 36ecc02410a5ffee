//! References to templates: `[namespace/]name[:tag]`.

use std::fmt;
use std::str::FromStr;

/// Longest reference that is parsed; names have at most 128 characters, so no valid reference is longer.
const REFERENCE_CHARS_MAX: usize = 3 * 128 + 2;

/// The tag of a reference without one.
const TAG_DEFAULT: &str = "default";

/// Reason why a text is not a template reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Only white space, or nothing.
    #[error("template reference is empty")]
    Empty,
    /// Longer than any valid reference.
    #[error("template reference is longer than {REFERENCE_CHARS_MAX} characters")]
    TooLong,
    /// A part has a character that is not allowed there.
    #[error("invalid {part} in template reference: only letters, digits, `-` and `_`{also} are allowed")]
    Invalid {
        /// `namespace`, `name` or `tag`.
        part: &'static str,
        /// Further characters that are allowed in this part.
        also: &'static str,
    },
}

/// A tag, or the id of a build in place of a tag. Always lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(String);

impl Tag {
    /// Returns the tag's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tag {
    fn default() -> Self {
        Self(TAG_DEFAULT.to_owned())
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A parsed reference, trimmed and in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TemplateReference {
    namespace: Option<String>,
    name: String,
    tag: Option<Tag>,
}

impl TemplateReference {
    /// Returns the team slug before the slash.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Returns the alias or template id.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the tag, if the reference has one.
    #[must_use]
    pub fn explicit_tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// Returns the tag, or `default` if the reference has none.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag.clone().unwrap_or_default()
    }
}

impl FromStr for TemplateReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim().to_lowercase();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.chars().count() > REFERENCE_CHARS_MAX {
            return Err(ReferenceError::TooLong);
        }
        let (path, tag) = match text.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (text.as_str(), None),
        };
        let (namespace, name) = match path.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, path),
        };
        let word = |part| Err(ReferenceError::Invalid { part, also: "" });
        if namespace.is_some_and(|namespace| !is_word(namespace)) {
            return word("namespace");
        }
        if !is_word(name) {
            return word("name");
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Invalid { part: "tag", also: " and `.`" });
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.map(|tag| Tag(tag.to_owned())),
        })
    }
}

impl fmt::Display for TemplateReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn is_tag(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_as_in_the_contract() {
        for (text, namespace, name, tag) in [
            ("base", None, "base", None),
            (" Base ", None, "base", None),
            ("team/name:v1.2", Some("team"), "name", Some("v1.2")),
            ("name:default", None, "name", Some("default")),
        ] {
            let reference: TemplateReference = text.parse().expect(text);
            assert_eq!(reference.namespace(), namespace, "{text}");
            assert_eq!(reference.name(), name, "{text}");
            assert_eq!(reference.explicit_tag().map(Tag::as_str), tag, "{text}");
        }
        assert_eq!("base".parse::<TemplateReference>().expect("valid").tag().as_str(), "default");
        for text in ["", "  ", "a/b/c", "a:", ":a", "/a", "a/", "a:b:c", "a b", "ä", "a.b", &"a".repeat(400)] {
            assert!(text.parse::<TemplateReference>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(text in "([a-z0-9_-]{1,9}/)?[a-z0-9_-]{1,9}(:[a-z0-9_.-]{1,9})?") {
            let reference: TemplateReference = text.parse().expect("valid by construction");
            prop_assert_eq!(reference.to_string(), text);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<TemplateReference>();
        }
    }
}
