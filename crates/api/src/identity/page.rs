//! The pages: plain HTML without scripts, and nothing from elsewhere.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER};
use http::header::{X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderValue, StatusCode};
use sha2::{Digest as _, Sha256};

use super::target::Target;
use super::{PAGE, START};

const STYLE: &str = include_str!("page.css");
/// What allows this style and no other (Content Security Policy Level 3, 2.3.1).
static STYLE_HASH: LazyLock<String> = LazyLock::new(|| STANDARD.encode(Sha256::digest(STYLE)));
/// Longest text of others that is shown.
const TEXT_CHARS_MAX: usize = 500;

/// What a page says.
pub(super) enum Page<'a> {
    /// Ask for a password.
    Form {
        target: Target,
        /// As it was given before.
        email: &'a str,
        /// What was wrong with it.
        wrong: Option<Wrong>,
    },
    /// There is no password to ask for yet.
    NobodyYet,
    /// Log in at the provider.
    Provider { target: Target, issuer: &'a str },
    /// The command line has what it needs.
    LoggedIn { email: Option<&'a str> },
    /// It has not.
    Failed { why: &'a str },
    /// The request makes no sense, or came from somewhere else.
    Refused { status: StatusCode, why: &'a str },
}

/// Why a form comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// There is nobody with this address and password.
    Password,
    /// They are a member of no team that could be used.
    NoTeam,
    /// Too many attempts.
    TooMany(Duration),
    /// Too many others.
    Busy,
}

impl Wrong {
    fn status(self) -> StatusCode {
        match self {
            // 401 would need a challenge that browsers do not ask people about (RFC 9110, 15.5.2).
            Self::Password | Self::NoTeam => StatusCode::FORBIDDEN,
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn wait(self) -> Option<Duration> {
        match self {
            Self::TooMany(wait) => Some(wait),
            Self::Busy => Some(Duration::from_secs(1)),
            Self::Password | Self::NoTeam => None,
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password => f.write_str("There is nobody with this address and this password."),
            Self::NoTeam => f.write_str(
                "You are a member of no team here, so there is nothing to log in to. Whoever runs this server can change \
                 that: hearth user join EMAIL TEAM",
            ),
            Self::TooMany(wait) => {
                let minutes = wait.as_secs().div_ceil(60).max(1);
                let unit = if minutes == 1 { "minute" } else { "minutes" };
                write!(f, "Too many attempts. Try again in {minutes} {unit}.")
            }
            Self::Busy => f.write_str("Too many people log in just now. Try again."),
        }
    }
}

impl IntoResponse for Page<'_> {
    fn into_response(self) -> Response {
        let (status, wait) = match &self {
            Self::Form { wrong: Some(wrong), .. } => (wrong.status(), wrong.wait()),
            Self::Refused { status, .. } => (*status, None),
            _ => (StatusCode::OK, None),
        };
        // A browser follows a form only where this lets it, also when it is redirected.
        let forms = match &self {
            Self::Form { target, .. } => format!("'self' {target}"),
            _ => "'none'".to_owned(),
        };
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; form-action {forms}; frame-ancestors 'none'; base-uri 'none'",
            *STYLE_HASH
        );
        let mut response = (status, self.to_string()).into_response();
        let headers = response.headers_mut();
        // A target is text of a kind that a header takes.
        if let Ok(policy) = HeaderValue::try_from(policy) {
            headers.insert(CONTENT_SECURITY_POLICY, policy);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        if let Some(wait) = wait {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        private(response)
    }
}

/// Not stored by anybody, and not named to other sites. With `no-referrer` browsers would hide the origin of our own form.
pub(super) fn private(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = match self {
            Self::Form { .. } | Self::NobodyYet | Self::Provider { .. } => "Log in to Hearth",
            Self::LoggedIn { .. } => "You are logged in",
            Self::Failed { .. } => "You are not logged in",
            Self::Refused { .. } => "This does not work",
        };
        write!(
            f,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"robots\" content=\"noindex\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
             <body>\n<main>\n<h1>{title}</h1>\n"
        )?;
        self.content(f)?;
        f.write_str("</main>\n</body>\n</html>\n")
    }
}

impl Page<'_> {
    fn content(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form { target, email, wrong } => form(f, *target, email, *wrong),
            Self::NobodyYet => f.write_str(
                "<p>Nobody has a password on this server yet. Whoever runs it makes a user and gives them one:</p>\n\
                 <p><code>hearth user create EMAIL --team local</code><br>\n<code>hearth user password EMAIL</code></p>\n",
            ),
            Self::Provider { target, issuer } => {
                asks(f, *target)?;
                let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", &target.to_string()).finish();
                let (issuer, next) = (Escaped(issuer), Escaped(&next));
                writeln!(f, "<p><a class=\"button\" href=\"{START}?{next}\">Log in at {issuer}</a></p>")
            }
            Self::LoggedIn { email } => {
                if let Some(email) = email {
                    writeln!(f, "<p>The command line works for <strong>{}</strong> now.</p>", Escaped(email))?;
                }
                f.write_str("<p class=\"quiet\">You can close this page.</p>\n")
            }
            Self::Failed { why } => writeln!(
                f,
                "<p class=\"bad\">{}</p>\n<p class=\"quiet\">To try again, run <code>e2b auth login</code> again.</p>",
                Escaped(why)
            ),
            Self::Refused { why, .. } => writeln!(
                f,
                "<p class=\"bad\">{}</p>\n<p class=\"quiet\">This page is opened by <code>e2b auth login</code>.</p>",
                Escaped(why)
            ),
        }
    }
}

fn asks(f: &mut fmt::Formatter<'_>, target: Target) -> fmt::Result {
    let port = target.port();
    writeln!(f, "<p class=\"quiet\">The command line on this computer asks for it (port {port}).</p>")
}

fn form(f: &mut fmt::Formatter<'_>, target: Target, email: &str, wrong: Option<Wrong>) -> fmt::Result {
    asks(f, target)?;
    let described = if let Some(wrong) = wrong {
        writeln!(f, "<p class=\"bad\" id=\"wrong\" role=\"alert\">{}</p>", Escaped(&wrong.to_string()))?;
        " aria-describedby=\"wrong\" aria-invalid=\"true\""
    } else {
        ""
    };
    // Whoever mistyped begins with the password, as long as there is an address.
    let (first, second) = if email.is_empty() { (" autofocus", "") } else { ("", " autofocus") };
    writeln!(
        f,
        "<form method=\"post\" action=\"{PAGE}\">\n<input type=\"hidden\" name=\"next\" value=\"{target}\">\n\
         <label for=\"email\">Email address</label>\n\
         <input id=\"email\" name=\"email\" type=\"text\" inputmode=\"email\" autocomplete=\"username\" \
         autocapitalize=\"none\" spellcheck=\"false\" required value=\"{}\"{described}{first}>\n\
         <label for=\"password\">Password</label>\n\
         <input id=\"password\" name=\"password\" type=\"password\" autocomplete=\"current-password\" required{described}{second}>\n\
         <button type=\"submit\">Log in</button>\n</form>",
        Escaped(email)
    )
}

/// A text of others between tags or in quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for character in self.0.chars().filter(|character| !character.is_control()).take(TEXT_CHARS_MAX) {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_becomes_markup(text in ".*") {
            let escaped = Escaped(&text).to_string();
            prop_assert!(!escaped.contains(['<', '>', '"', '\'', '\n', '\0']));
            let shown: String = text.chars().filter(|character| !character.is_control()).take(TEXT_CHARS_MAX).collect();
            let back = escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
            prop_assert_eq!(back.replace("&#39;", "'").replace("&amp;", "&"), shown);
        }
    }
}
