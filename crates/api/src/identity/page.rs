//! HTML pages of the login, without scripts and external resources.

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

use super::target::LoopbackTarget;
use super::{PAGE, START};

const STYLE: &str = include_str!("page.css");
/// Hash that allows only this style (Content Security Policy Level 3, section 2.3.1).
static STYLE_HASH: LazyLock<String> = LazyLock::new(|| STANDARD.encode(Sha256::digest(STYLE)));
/// Maximum length of a foreign text on a page.
const TEXT_CHARS_MAX: usize = 500;

/// A page of the login.
pub(super) enum Page<'a> {
    /// Form for email address and password.
    Form {
        target: LoopbackTarget,
        /// Email address of the previous attempt; empty on the first.
        email: &'a str,
        /// Error of the previous attempt.
        error: Option<LoginError>,
    },
    /// No user has a password yet.
    NoPasswords,
    /// Link to the provider.
    Provider { target: LoopbackTarget, issuer: &'a str },
    /// The command line received the tokens.
    LoggedIn { email: Option<&'a str> },
    /// The login failed.
    Failed { reason: &'a str },
    /// The request is invalid, or another site caused it.
    Rejected { status: StatusCode, reason: &'a str },
}

/// Error of an attempt to log in with a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginError {
    /// The email address or the password is wrong.
    Password,
    /// The user is not a member of a team that is not banned.
    NoTeam,
    /// Too many attempts; another one is allowed after this time.
    TooMany(Duration),
    /// Too many concurrent attempts of all users.
    Busy,
}

impl LoginError {
    fn status(self) -> StatusCode {
        match self {
            // 401 requires a challenge, for which browsers do not prompt the user (RFC 9110, section 15.5.2).
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

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password => f.write_str("There is nobody with this address and this password."),
            Self::NoTeam => f.write_str(
                "You are not a member of a team on this server. The operator can add you to one: hearth user join \
                 EMAIL TEAM",
            ),
            Self::TooMany(wait) => {
                let minutes = wait.as_secs().div_ceil(60).max(1);
                let unit = if minutes == 1 { "minute" } else { "minutes" };
                write!(f, "Too many attempts. Try again in {minutes} {unit}.")
            }
            Self::Busy => f.write_str("Too many users are logging in at the moment. Try again."),
        }
    }
}

impl IntoResponse for Page<'_> {
    fn into_response(self) -> Response {
        let (status, wait) = match &self {
            Self::Form { error: Some(error), .. } => (error.status(), error.wait()),
            Self::Rejected { status, .. } => (*status, None),
            _ => (StatusCode::OK, None),
        };
        // Browsers apply `form-action` to the redirect after the form too.
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
        // The conversion does not fail, because a target contains only characters that a header allows.
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

/// Adds headers that forbid caching the response and sending its URL to other sites.
///
/// `no-referrer` is not used, because browsers would then hide the origin of Hearth's own form.
pub(super) fn private(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = match self {
            Self::Form { .. } | Self::NoPasswords | Self::Provider { .. } => "Log in to Hearth",
            Self::LoggedIn { .. } => "You are logged in",
            Self::Failed { .. } => "You are not logged in",
            Self::Rejected { .. } => "Request rejected",
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
            Self::Form { target, email, error } => form(f, *target, email, *error),
            Self::NoPasswords => f.write_str(
                "<p>No user of this server has a password yet. The operator creates a user and sets a password:</p>\n\
                 <p><code>hearth user create EMAIL --team local</code><br>\n<code>hearth user password EMAIL</code></p>\n",
            ),
            Self::Provider { target, issuer } => {
                requested_by(f, *target)?;
                let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", &target.to_string()).finish();
                let (issuer, next) = (Escaped(issuer), Escaped(&next));
                writeln!(f, "<p><a class=\"button\" href=\"{START}?{next}\">Log in at {issuer}</a></p>")
            }
            Self::LoggedIn { email } => {
                if let Some(email) = email {
                    writeln!(f, "<p>The command line is logged in as <strong>{}</strong>.</p>", Escaped(email))?;
                }
                f.write_str("<p class=\"quiet\">You can close this page.</p>\n")
            }
            Self::Failed { reason } => writeln!(
                f,
                "<p class=\"bad\">{}</p>\n<p class=\"quiet\">To try again, run <code>e2b auth login</code> again.</p>",
                Escaped(reason)
            ),
            Self::Rejected { reason, .. } => writeln!(
                f,
                "<p class=\"bad\">{}</p>\n<p class=\"quiet\"><code>e2b auth login</code> opens this page.</p>",
                Escaped(reason)
            ),
        }
    }
}

fn requested_by(f: &mut fmt::Formatter<'_>, target: LoopbackTarget) -> fmt::Result {
    let port = target.port();
    writeln!(f, "<p class=\"quiet\">Requested by the command line on this computer (port {port}).</p>")
}

fn form(f: &mut fmt::Formatter<'_>, target: LoopbackTarget, email: &str, error: Option<LoginError>) -> fmt::Result {
    requested_by(f, target)?;
    let described = if let Some(error) = error {
        writeln!(f, "<p class=\"bad\" id=\"error\" role=\"alert\">{}</p>", Escaped(&error.to_string()))?;
        " aria-describedby=\"error\" aria-invalid=\"true\""
    } else {
        ""
    };
    // After an error the focus is on the password, unless the email address is empty.
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

/// Foreign text, escaped for use between tags or in quotes.
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
