//! The effective configuration as `hearth config` prints it, without the passwords that URLs may contain.

use std::fmt;

use super::{Options, Settings};

/// Configuration without secrets; displays as TOML.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Redacted {
    pub(crate) options: Options,
    /// Keys whose URL had a password.
    redacted_keys: Vec<&'static str>,
}

impl Redacted {
    /// Returns a note that lists the keys whose password was removed; `None` if there are none.
    pub(crate) fn note(&self) -> Option<String> {
        let keys = (!self.redacted_keys.is_empty()).then(|| self.redacted_keys.join(", "))?;
        Some(format!("passwords are omitted from {keys}; set a database password in PGPASSWORD or ~/.pgpass"))
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(note) = self.note() {
            writeln!(f, "# {note}")?;
        }
        f.write_str(&toml::to_string(&self.options).map_err(|_| fmt::Error)?)
    }
}

impl Settings {
    /// Returns the options that give these settings, without passwords.
    pub(crate) fn redacted(&self) -> Redacted {
        let mut options = self.to_options();
        let mut redacted_keys = Vec::new();
        let addresses = [
            ("database_url", &mut options.database_url),
            ("mirror", &mut options.mirror),
            ("user_jwks", &mut options.user_jwks),
            ("acme_directory", &mut options.acme_directory),
            ("oidc_issuer", &mut options.oidc_issuer),
        ];
        for (key, address) in addresses {
            if let Some(bare) = address.as_deref().and_then(without_password) {
                *address = Some(bare);
                redacted_keys.push(key);
            }
        }
        Redacted { options, redacted_keys }
    }
}

/// Removes the passwords of a URL: the one after the user (RFC 3986, section 3.2.1) and Postgres's parameter
/// `password`.
///
/// Returns `None` if it has none.
fn without_password(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    // A password that is not percent-encoded may contain any character: it ends at the last `@`.
    let (user, host) = match rest.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, rest),
    };
    let bare_user = user.map(|user| user.split_once(':').map_or(user, |(name, _)| name));
    let is_password = |parameter: &&str| parameter.starts_with("password=");
    let bare_query =
        query.map(|query| query.split('&').filter(|parameter| !is_password(parameter)).collect::<Vec<_>>());
    let bare_query = bare_query.map(|parameters| parameters.join("&"));
    if bare_user == user && bare_query.as_deref() == query {
        return None;
    }
    let user = bare_user.map(|user| format!("{user}@")).unwrap_or_default();
    let query = bare_query.filter(|query| !query.is_empty()).map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("{scheme}://{user}{host}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_removed_from_urls() {
        for (address, bare) in [
            ("postgres://ada:hunter2@host:5432/rows", Some("postgres://ada@host:5432/rows")),
            ("postgres://ada:hun/t@er2@host/rows?sslmode=require", Some("postgres://ada@host/rows?sslmode=require")),
            ("postgres://host/rows?user=ada&password=hunter2", Some("postgres://host/rows?user=ada")),
            ("postgres://host/rows?password=hunter2", Some("postgres://host/rows")),
            ("postgres://ada@host/rows?sslmode=require", None),
            ("sqlite:///data/hearth.db?mode=rwc", None),
            ("https://ada:hunter2@mirror.example.com/debian", Some("https://ada@mirror.example.com/debian")),
            ("https://example.com/keys", None),
            ("/etc/keys.json", None),
        ] {
            assert_eq!(without_password(address).as_deref(), bare, "{address}");
        }
    }

    #[test]
    fn a_comment_lists_the_redacted_keys() {
        let redacted = Redacted {
            options: Options { database_url: Some("postgres://ada@host/rows".to_owned()), ..Options::default() },
            redacted_keys: vec!["database_url"],
        };
        let text = redacted.to_string();
        assert!(text.starts_with("# passwords are omitted from database_url"), "{text}");
        assert_eq!(toml::from_str::<Options>(&text).expect("valid"), redacted.options);
    }
}
