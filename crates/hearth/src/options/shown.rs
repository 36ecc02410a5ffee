//! The effective configuration as `hearth config` prints it: without the passwords that addresses may have in them.

use std::fmt;

use super::{Options, Settings};

/// A configuration that may be shown to anybody, as TOML when it is displayed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) options: Options,
    /// Keys whose address had a password.
    left_out: Vec<&'static str>,
}

impl Shown {
    /// Returns the sentence that tells what is missing, if something is.
    pub(crate) fn note(&self) -> Option<String> {
        let keys = (!self.left_out.is_empty()).then(|| self.left_out.join(", "))?;
        Some(format!("passwords are left out of {keys}; that of a database may be given in PGPASSWORD or ~/.pgpass"))
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(note) = self.note() {
            writeln!(f, "# {note}")?;
        }
        f.write_str(&toml::to_string(&self.options).map_err(|_| fmt::Error)?)
    }
}

impl Settings {
    /// Returns the options that lead to these settings, without passwords.
    pub(crate) fn shown(&self) -> Shown {
        let mut options = self.to_options();
        let mut left_out = Vec::new();
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
                left_out.push(key);
            }
        }
        Shown { options, left_out }
    }
}

/// The address without its password: that of the user (RFC 3986, section 3.2.1) and Postgres's parameter `password`. `None`: it
/// has none.
fn without_password(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    // A password that is not encoded may have any sign in it: the last `@` ends it.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
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
    Some(format!("{scheme}://{user}{place}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_taken_out_of_addresses() {
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
    fn what_is_left_out_is_told_in_a_comment() {
        let shown = Shown {
            options: Options { database_url: Some("postgres://ada@host/rows".to_owned()), ..Options::default() },
            left_out: vec!["database_url"],
        };
        let text = shown.to_string();
        assert!(text.starts_with("# passwords are left out of database_url"), "{text}");
        assert_eq!(toml::from_str::<Options>(&text).expect("valid"), shown.options);
    }
}
