//! CORS preflights of web pages that name their sandbox in headers.
//!
//! A browser first requests permission to send such headers. That preflight request does not contain them, so it cannot
//! be routed to a guest, whose daemon would respond. The edge responds to all of them as the daemon does (Fetch
//! standard, CORS protocol).

use hearth_proxy::{Body, body};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};

/// Headers that route the request after the preflight.
const ROUTING_HEADERS: [&str; 2] = ["e2b-sandbox-id", "e2b-sandbox-port"];
/// Seconds for which browsers may cache the response; the daemon's value.
const MAX_AGE: &str = "7200";
const VARY: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

/// Returns the response if the request is such a preflight.
pub(crate) fn respond(request: &Request<Body>) -> Option<Response<Body>> {
    let headers = request.headers();
    if request.method() != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    let method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let names = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS)?;
    let listed: Vec<_> = names.to_str().ok()?.split(',').map(str::trim).collect();
    if !ROUTING_HEADERS.iter().all(|required| listed.iter().any(|name| name.eq_ignore_ascii_case(required))) {
        return None;
    }
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    headers.insert(header::VARY, HeaderValue::from_static(VARY));
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn respond_to(method: &str, headers: &[(&str, &str)]) -> Option<Response<Body>> {
        let mut request = Request::builder().method(method).uri("/process.Process/Start");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        respond(&request.body(body::empty()).expect("a request"))
    }

    #[test]
    fn only_preflights_of_requests_that_name_a_sandbox_are_answered() {
        let origin = ("origin", "https://page.example");
        let method = ("access-control-request-method", "POST");
        let names = ("access-control-request-headers", "content-type,E2b-Sandbox-Id, e2b-sandbox-port");
        let response = respond_to("OPTIONS", &[origin, method, names]).expect("a response");
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        assert_eq!(response.headers()["access-control-allow-headers"], names.1);
        assert_eq!(response.headers()["access-control-allow-methods"], "POST");
        let one_missing = ("access-control-request-headers", "e2b-sandbox-id");
        for (verb, headers) in [
            ("GET", &[origin, method, names][..]),
            ("OPTIONS", &[method, names]),
            ("OPTIONS", &[origin, names]),
            ("OPTIONS", &[origin, method]),
            ("OPTIONS", &[origin, method, one_missing]),
        ] {
            assert!(respond_to(verb, headers).is_none(), "{verb} {headers:?}");
        }
    }
}
