//! Ids. Every kind of id is its own type; none is a bare string or UUID.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const RANDOM_CHARS: usize = 20;
/// Longest id that a parser accepts; generated sandbox ids have 21 characters.
const ID_CHARS_MAX: usize = 64;

/// Reason why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {kind}: {rule}")]
pub struct IdError {
    kind: &'static str,
    rule: &'static str,
    text: String,
}

impl IdError {
    fn new(kind: &'static str, rule: &'static str, text: &str) -> Self {
        // A hostile id may be long; the message must be short.
        Self { kind, rule, text: text.chars().take(ID_CHARS_MAX).collect() }
    }
}

/// Returns characters from the operating system's random source, each of `[a-z0-9]` equally likely.
///
/// # Panics
/// If the operating system has no random source (`getrandom(2)` fails): no id could be trusted then.
fn random_chars() -> String {
    let mut chars = String::with_capacity(RANDOM_CHARS);
    while chars.len() < RANDOM_CHARS {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).expect("the operating system has a random source");
        // 252 is the largest multiple of 36 in a byte: larger values would make the first letters more likely.
        let unbiased =
            bytes.iter().filter(|byte| **byte < 252).map(|byte| char::from(ALPHABET[usize::from(*byte) % 36]));
        chars.extend(unbiased.take(RANDOM_CHARS - chars.len()));
    }
    chars
}

fn is_lower_alphanumeric(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= ID_CHARS_MAX
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Returns a new random id.
            #[must_use]
            pub fn generate() -> Self {
                Self(format!("{}{}", $prefix, random_chars()))
            }

            /// Returns the id as it is written on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_lower_alphanumeric(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::new($kind, "1 to 64 characters of a-z and 0-9", text))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Returns a new random id.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::new_v4())
            }

            /// Wraps an id that was read from storage.
            #[must_use]
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Returns the id as a UUID.
            #[must_use]
            pub fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::from_str(text).map(Self).map_err(|_| IdError::new($kind, "a UUID", text))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text_id!(
    /// A user's isolated VM across all its pauses: `i` and 20 characters of `[a-z0-9]`.
    ///
    /// It never contains a dash: host names are split there.
    SandboxId, "sandbox id", "i"
);
text_id!(
    /// A buildable environment: 20 characters of `[a-z0-9]`.
    TemplateId, "template id", ""
);
uuid_id!(
    /// One run of a sandbox on one node: the fencing token. New at each create and resume.
    ExecutionId, "execution id"
);
uuid_id!(
    /// One result of building a template, or one pause; owns an artifact set.
    BuildId, "build id"
);
uuid_id!(
    /// A tenant.
    TeamId, "team id"
);
uuid_id!(
    /// A team's credential (its row, not its secret).
    ApiKeyId, "API key id"
);
uuid_id!(
    /// A person who may act for teams.
    UserId, "user id"
);
uuid_id!(
    /// A user's login at one client, from authentication to logout or expiry.
    LoginId, "login id"
);

/// A host that runs sandboxes, named by its operator: `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(String);

impl NodeId {
    /// Returns the id as it is written on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let valid = !text.is_empty()
            && text.len() <= ID_CHARS_MAX
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::new("node id", "1 to 64 characters of A-Z, a-z, 0-9, dot, dash and underscore", text))
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_match_the_contract() {
        let sandbox = SandboxId::generate();
        assert_eq!(sandbox.as_str().len(), 21);
        assert!(sandbox.as_str().starts_with('i'));
        assert_eq!(sandbox.as_str().parse::<SandboxId>().as_ref(), Ok(&sandbox));
        assert_eq!(TemplateId::generate().as_str().len(), 20);
        assert_ne!(SandboxId::generate(), SandboxId::generate());
    }

    #[test]
    fn hostile_ids_are_rejected_with_a_short_message() {
        for text in ["", "i-a", "I0", "i/../../etc", "ä", "i\0", &"a".repeat(65)] {
            let error = text.parse::<SandboxId>().expect_err("hostile");
            assert!(error.to_string().len() < 250, "{error}");
        }
        assert!("a b".parse::<NodeId>().is_err());
        assert!("node-1.example".parse::<NodeId>().is_ok());
    }
}
