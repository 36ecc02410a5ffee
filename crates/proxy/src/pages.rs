//! Responses of the proxy itself.
//!
//! Two of the messages are part of the contract: by them clients decide if a sandbox does not exist or only a port is
//! closed. Programs get JSON, browsers the same message as HTML.

use hearth_types::SandboxId;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;

use crate::body::{self, Body};
use crate::target::TargetError;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Headers that scripts in browsers set.
const REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// Set to `false` if clients must not retry automatically.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// Reader of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A program, which gets JSON.
    Program,
    /// A browser that opened an address, which gets HTML.
    Browser,
}

impl Audience {
    /// Returns the sender of a request: a browser that opens an address, unless a script in it sent the request.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let agent = text(USER_AGENT).to_ascii_lowercase();
        let by_browser = || ["mozilla/", "opera/"].iter().any(|name| agent.contains(name));
        let by_script = || {
            headers.contains_key(REQUESTED_WITH)
                || ["cors", "no-cors", "same-origin", "websocket"].contains(&text(FETCH_MODE))
        };
        if by_browser() && !by_script() && !prefers_json(text(ACCEPT)) { Self::Browser } else { Self::Program }
    }
}

/// Returns true if an `Accept` header prefers JSON to HTML.
fn prefers_json(accept: &str) -> bool {
    let quality = |kind: &str, of_kind: &str| {
        let entries = accept.split(',').filter_map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let range = parts.next()?.to_ascii_lowercase();
            let specificity = [kind, of_kind, "*/*"].iter().rev().position(|pattern| *pattern == range)?;
            let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(|weight| weight.parse::<f32>().ok());
            Some((specificity, weight.unwrap_or(1.0)))
        });
        // The most specific range that matches is used (RFC 9110, 12.5.1).
        entries.max_by_key(|(specificity, _)| *specificity).map_or(0.0, |(_, weight)| weight)
    };
    quality("application/json", "application/*") > quality("text/html", "text/*")
}

/// Response of the proxy itself about a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page<'a> {
    /// The sandbox does not exist or is not running.
    NotFound { sandbox_id: &'a SandboxId },
    /// The sandbox is running, but its port is closed.
    PortClosed { sandbox_id: &'a SandboxId, port: u16 },
    /// The sandbox or its node cannot be reached, or broke off before its response.
    Unreachable { sandbox_id: &'a SandboxId },
    /// The maximum number of requests is in flight.
    TooManyConnections {
        sandbox_id: &'a SandboxId,
        /// The maximum.
        limit: usize,
    },
    /// The sandbox is private, and the request has no traffic token.
    TokenMissing { sandbox_id: &'a SandboxId },
    /// The sandbox is private, and the traffic token is wrong.
    TokenInvalid { sandbox_id: &'a SandboxId },
    /// The route is not available to clients.
    Reserved {
        /// The route in its canonical spelling.
        route: &'a str,
    },
}

/// JSON body, with the members in the contract's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Members<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<&'a str>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_limit: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    code: u16,
}

impl Page<'_> {
    /// Returns the HTTP status of the page.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound { .. } | Self::PortClosed { .. } | Self::Unreachable { .. } => StatusCode::BAD_GATEWAY,
            Self::TooManyConnections { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TokenMissing { .. } | Self::TokenInvalid { .. } => StatusCode::FORBIDDEN,
            Self::Reserved { .. } => StatusCode::NOT_FOUND,
        }
    }

    fn message(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "The sandbox was not found",
            Self::PortClosed { .. } => "The sandbox is running but port is not open",
            Self::Unreachable { .. } => "The sandbox could not be reached or broke off before it answered",
            Self::TooManyConnections { .. } => "Too many connections to the sandbox are open",
            Self::TokenMissing { .. } => {
                "The sandbox takes no public traffic, and the e2b-traffic-access-token header is missing"
            }
            Self::TokenInvalid { .. } => {
                "The sandbox takes no public traffic, and the token in the e2b-traffic-access-token header is invalid"
            }
            Self::Reserved { .. } => {
                "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL"
            }
        }
    }

    fn members(&self) -> Members<'_> {
        let code = self.status().as_u16();
        let members =
            Members { sandbox_id: None, message: self.message(), port: None, connection_limit: None, path: None, code };
        match *self {
            Self::NotFound { sandbox_id }
            | Self::Unreachable { sandbox_id }
            | Self::TokenMissing { sandbox_id }
            | Self::TokenInvalid { sandbox_id } => Members { sandbox_id: Some(sandbox_id.as_str()), ..members },
            Self::PortClosed { sandbox_id, port } => {
                Members { sandbox_id: Some(sandbox_id.as_str()), port: Some(port), ..members }
            }
            Self::TooManyConnections { sandbox_id, limit } => {
                Members { sandbox_id: Some(sandbox_id.as_str()), connection_limit: Some(limit), ..members }
            }
            Self::Reserved { route } => Members { path: Some(route), ..members },
        }
    }

    /// Returns the page as a response. It is not cacheable, since it may soon be outdated.
    ///
    /// # Panics
    /// Never: the members always have a JSON form.
    #[must_use]
    pub fn response(&self, audience: Audience) -> Response<Body> {
        let members = self.members();
        let (content_type, content) = match audience {
            Audience::Program => (JSON, serde_json::to_string(&members).expect("texts and numbers have a JSON form")),
            Audience::Browser => (HTML, html(&members)),
        };
        let mut response = Response::new(body::full(content));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self {
            // The next request that ends frees capacity.
            Self::TooManyConnections { .. } => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))),
            // A retry would get the same page, or the request may have had its effect.
            _ => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"))),
        }
        response
    }
}

/// Returns the plain-text response to a request without a valid target.
#[must_use]
pub fn target_error(error: TargetError) -> Response<Body> {
    let mut response = Response::new(body::full(error.to_string()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// Returns the page as HTML.
///
/// The only variable parts are an id (`[a-z0-9]`), numbers and Hearth's own routes, so nothing needs escaping.
fn html(members: &Members<'_>) -> String {
    let Members { sandbox_id, message, port, connection_limit, path, code } = members;
    let facts: String = [
        sandbox_id.map(|id| ("Sandbox", id.to_owned())),
        port.map(|port| ("Port", port.to_string())),
        connection_limit.map(|limit| ("Limit", limit.to_string())),
        path.map(|path| ("Path", path.to_owned())),
    ]
    .into_iter()
    .flatten()
    .map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>"))
    .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{message}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;\
         margin:20vh auto 0;padding:0 1rem}}h1{{font-size:1.25rem}}dl{{display:grid;grid-template-columns:max-content \
         1fr;gap:.25rem 1rem}}dt{{opacity:.6}}dd{{margin:0;font-family:ui-monospace,monospace}}</style></head>\n\
         <body><h1>{message}</h1><dl>{facts}<dt>Code</dt><dd>{code}</dd></dl></body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn check(page: Page<'_>, status: u16, expected: &str) {
        let response = page.response(Audience::Program);
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json; charset=utf-8");
        let content = response.into_body().collect().await.expect("known").to_bytes();
        assert_eq!(content, expected);

        let response = page.response(Audience::Browser);
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        let content = response.into_body().collect().await.expect("known").to_bytes();
        assert!(String::from_utf8_lossy(&content).contains(page.message()));
    }

    #[tokio::test]
    async fn pages_have_the_bytes_of_the_contract() {
        let id: SandboxId = "i123".parse().expect("an id");
        let sandbox_id = &id;
        check(
            Page::NotFound { sandbox_id },
            502,
            r#"{"sandboxId":"i123","message":"The sandbox was not found","code":502}"#,
        )
        .await;
        check(
            Page::PortClosed { sandbox_id, port: 8080 },
            502,
            r#"{"sandboxId":"i123","message":"The sandbox is running but port is not open","port":8080,"code":502}"#,
        )
        .await;
        check(
            Page::TooManyConnections { sandbox_id, limit: 7 },
            429,
            r#"{"sandboxId":"i123","message":"Too many connections to the sandbox are open","connectionLimit":7,"code":429}"#,
        )
        .await;
        check(
            Page::TokenMissing { sandbox_id },
            403,
            r#"{"sandboxId":"i123","message":"The sandbox takes no public traffic, and the e2b-traffic-access-token header is missing","code":403}"#,
        )
        .await;
        check(
            Page::TokenInvalid { sandbox_id },
            403,
            r#"{"sandboxId":"i123","message":"The sandbox takes no public traffic, and the token in the e2b-traffic-access-token header is invalid","code":403}"#,
        )
        .await;
        check(
            Page::Reserved { route: "/init" },
            404,
            r#"{"message":"This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL","path":"/init","code":404}"#,
        )
        .await;
    }

    #[tokio::test]
    async fn unreachable_has_neither_message_of_the_contract() {
        let message = Page::Unreachable { sandbox_id: &"i1".parse().expect("an id") }.message();
        assert!(!message.contains("was not found") && !message.contains("port is not open"));
    }

    #[test]
    fn browsers_that_open_an_address_get_html() {
        const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
        const OPENS: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let cases: &[(&[(&str, &str)], Audience)] = &[
            (&[], Audience::Program),
            (&[("user-agent", "curl/8.5")], Audience::Program),
            (&[("user-agent", "e2b-js-sdk/2.51.0"), ("accept", OPENS)], Audience::Program),
            (&[("user-agent", FIREFOX)], Audience::Browser),
            (&[("user-agent", FIREFOX), ("accept", OPENS), ("sec-fetch-mode", "navigate")], Audience::Browser),
            (&[("user-agent", FIREFOX), ("accept", "*/*")], Audience::Browser),
            (&[("user-agent", FIREFOX), ("accept", "*/*"), ("sec-fetch-mode", "cors")], Audience::Program),
            (&[("user-agent", FIREFOX), ("sec-fetch-mode", "no-cors")], Audience::Program),
            (&[("user-agent", FIREFOX), ("sec-fetch-mode", "same-origin")], Audience::Program),
            (&[("user-agent", FIREFOX), ("sec-fetch-mode", "websocket")], Audience::Program),
            (&[("user-agent", FIREFOX), ("x-requested-with", "XMLHttpRequest")], Audience::Program),
            (&[("user-agent", FIREFOX), ("accept", "application/json")], Audience::Program),
            (&[("user-agent", FIREFOX), ("accept", "application/json, text/plain, */*")], Audience::Browser),
            (&[("user-agent", FIREFOX), ("accept", "text/html;q=0.5, application/json")], Audience::Program),
            (&[("user-agent", FIREFOX), ("accept", "text/html, application/json;q=0.5")], Audience::Browser),
        ];
        for (headers, expected) in cases {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            assert_eq!(Audience::of(&headers), *expected, "{headers:?}");
        }
    }
}
