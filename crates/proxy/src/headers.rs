//! Changes of a message's head as it passes a proxy.
//!
//! Hop-by-hop headers apply to one connection and are removed (RFC 9110, 7.6.1). Headers `hearth-*` are private to
//! Hearth's proxies: an edge names a request's target to a node in one. Clients cannot set them: an edge removes them
//! from requests before it writes its own, and a node removes them before it forwards a request to a guest.

use std::fmt::{self, Display, Write as _};
use std::str::FromStr;

use hearth_types::{ExecutionId, SandboxId};
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, StatusCode, Uri, Version, request, response};

use crate::serve::Peer;

/// Prefix of all private headers.
const PRIVATE_PREFIX: &str = "hearth-";
/// Target of a request: `SANDBOX/EXECUTION/PORT`, followed by `/tls` if the port speaks TLS.
const TARGET: HeaderName = HeaderName::from_static("hearth-target");
/// Initial capacity for a target, enough for most.
const TARGET_BYTES: usize = 96;

const FORWARDED_PREFIX: &str = "x-forwarded-";
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Hop-by-hop headers, whether `Connection` names them or not.
///
/// `Upgrade` is handled separately. `Trailer` is not among them: it announces the trailers, which are forwarded.
const CONNECTION_BOUND: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
];

/// Target of a request, as an edge names it to a node.
///
/// The execution id is a fencing token: a node rejects the request if the sandbox runs under another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetHeader {
    pub sandbox_id: SandboxId,
    /// Execution that the edge's route names.
    pub execution_id: ExecutionId,
    /// Port inside the sandbox.
    pub port: u16,
    /// The port speaks TLS.
    pub tls: bool,
}

/// Rejection of a request without a valid target. It was not sent by an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header `hearth-target` is missing or malformed")]
pub struct TargetHeaderError;

impl TargetHeader {
    /// Replaces all private headers with this target.
    ///
    /// # Panics
    /// Never: ids and numbers are visible ASCII.
    pub fn write(&self, headers: &mut HeaderMap) {
        strip_private(headers);
        let mut text = String::with_capacity(TARGET_BYTES);
        write!(text, "{self}").expect("writing to a string succeeds");
        headers.insert(TARGET, HeaderValue::try_from(text).expect("ids and numbers are ASCII"));
    }

    /// Removes all private headers and returns the target.
    ///
    /// # Errors
    /// The target is missing or malformed. The headers are removed in any case.
    pub fn take(headers: &mut HeaderMap) -> Result<Self, TargetHeaderError> {
        let target = headers.remove(TARGET);
        strip_private(headers);
        target.as_ref().and_then(|target| target.to_str().ok()).ok_or(TargetHeaderError)?.parse()
    }
}

impl Display for TargetHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sandbox_id, execution_id, port, tls } = self;
        write!(f, "{sandbox_id}/{execution_id}/{port}{}", if *tls { "/tls" } else { "" })
    }
}

impl FromStr for TargetHeader {
    type Err = TargetHeaderError;

    fn from_str(text: &str) -> Result<Self, TargetHeaderError> {
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or(TargetHeaderError);
        let sandbox_id = next()?.parse().map_err(|_| TargetHeaderError)?;
        let execution_id = next()?.parse().map_err(|_| TargetHeaderError)?;
        let port = next()?.parse().map_err(|_| TargetHeaderError)?;
        let tls = match (parts.next(), parts.next()) {
            (None, _) => false,
            (Some("tls"), None) => true,
            _ => return Err(TargetHeaderError),
        };
        Ok(Self { sandbox_id, execution_id, port, tls })
    }
}

/// Removes all headers that only Hearth's proxies may set.
pub fn strip_private(headers: &mut HeaderMap) {
    remove_all(headers, |name| name.as_str().starts_with(PRIVATE_PREFIX));
}

/// Removes the headers that match `matches`.
///
/// A head has few headers, so checking each is cheaper than looking up every name.
fn remove_all(headers: &mut HeaderMap, matches: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| matches(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Policy for the forwarding headers of incoming requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedPolicy {
    /// A load balancer of the operator sets them: they are retained, and the peer's address is appended.
    Trust,
    /// Clients connect directly: they are replaced.
    Replace,
}

/// Sets `X-Forwarded-For`, `-Host` and `-Proto`, which name the client, the requested host and the scheme.
pub fn set_forwarded(parts: &mut request::Parts, forwarded: ForwardedPolicy, peer: &Peer) {
    let host = host_of(parts);
    let headers = &mut parts.headers;
    if forwarded == ForwardedPolicy::Replace {
        remove_all(headers, |name| [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO].contains(name));
    }
    // A Unix socket has no address.
    if let Some(address) = peer.forwarded_for() {
        add_to_list(headers, FORWARDED_FOR, address);
    }
    if let Some(host) = host {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(peer.scheme().as_str()));
}

/// Sets the host of a request. Call [`set_forwarded`] before, which reads the original host.
pub fn set_host(parts: &mut request::Parts, host: HeaderValue) {
    parts.uri = origin_form(&parts.uri);
    parts.headers.insert(header::HOST, host);
}

/// Appends a member to a list header, in a single line: not all servers join several lines.
fn add_to_list(headers: &mut HeaderMap, name: HeaderName, member: &HeaderValue) {
    let mut entry = match headers.entry(name) {
        Entry::Occupied(entry) => entry,
        Entry::Vacant(entry) => {
            entry.insert(member.clone());
            return;
        }
    };
    let members = entry.iter().chain([member]).map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let joined = HeaderValue::from_bytes(&members.join(&b", "[..])).expect("joined header values are valid");
    entry.insert(joined);
}

fn host_of(parts: &request::Parts) -> Option<HeaderValue> {
    match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(header::HOST).cloned(),
    }
}

/// Returns true for an upgrade request, which is possible in HTTP/1.1 only.
pub(crate) fn requests_upgrade<B>(request: &Request<B>) -> bool {
    is_upgrade(request.version(), request.headers())
}

fn is_upgrade(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && headers.contains_key(header::UPGRADE)
        && mentions(headers, &header::CONNECTION, "upgrade")
}

/// Prepares a request's head for an HTTP/1.1 upstream.
///
/// It has a path without authority, one `Host` and no hop-by-hop headers afterwards.
pub(crate) fn prepare_request(parts: &mut request::Parts) {
    let upgrade = is_upgrade(parts.version, &parts.headers);
    let wants_trailers = mentions(&parts.headers, &header::TE, "trailers");
    if parts.uri.authority().is_some()
        && let Some(host) = host_of(parts)
    {
        parts.headers.insert(header::HOST, host);
    }
    parts.uri = origin_form(&parts.uri);
    strip_connection_bound(&mut parts.headers, upgrade);
    if wants_trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // The expectation was addressed to this proxy, which fulfils it when the body is first read.
    parts.headers.remove(header::EXPECT);
    join_cookies(&mut parts.headers);
    parts.version = Version::HTTP_11;
    // Extensions of hyper and of the server belong to the client's connection.
    parts.extensions.clear();
}

/// Converts a request's head from HTTP/1.1 to HTTP/2: the host moves into the URI (RFC 9113, 8.3.1).
pub(crate) fn to_http2(parts: &mut request::Parts, scheme: &str) {
    let host = parts.headers.remove(header::HOST);
    let authority = host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    // An invalid host cannot be passed on in HTTP/2.
    let authority = authority.unwrap_or(Authority::from_static("localhost"));
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    parts.uri = uri.unwrap_or_default();
    parts.version = Version::HTTP_2;
}

/// Prepares a response's head for the client.
pub(crate) fn prepare_response(parts: &mut response::Parts) {
    strip_connection_bound(&mut parts.headers, parts.status == StatusCode::SWITCHING_PROTOCOLS);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
}

/// Returns true if a method is idempotent (RFC 9110, 9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from)
}

fn strip_connection_bound(headers: &mut HeaderMap, upgrade: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A client must not remove headers that delimit or route the message, or that Hearth's proxies set.
        .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::UPGRADE].contains(name))
        .filter(|name| !name.as_str().starts_with(PRIVATE_PREFIX) && !name.as_str().starts_with(FORWARDED_PREFIX))
        .collect();
    // A length next to a transfer coding is void (RFC 9112, 6.3), and must not take effect once the coding is removed.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    // A client may name any number of headers, so each is looked up.
    for name in named {
        headers.remove(name);
    }
    remove_all(headers, |name| CONNECTION_BOUND.contains(name) || !upgrade && *name == header::UPGRADE);
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Joins cookie lines: HTTP/2 may split a cookie, HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let Entry::Occupied(mut cookies) = headers.entry(header::COOKIE) else { return };
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        cookies.insert(joined);
    }
}

/// Returns true if a list header contains a member, ignoring case.
fn mentions(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        // Members of `TE` may have a weight.
        .filter_map(|value| value.split(';').next())
        .any(|value| value.trim().eq_ignore_ascii_case(member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Scheme;

    fn parts(request: request::Builder) -> request::Parts {
        request.body(()).expect("a request").into_parts().0
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        lines.sort();
        lines
    }

    #[track_caller]
    fn check_request(request: request::Builder, expected: &[&str]) -> request::Parts {
        let mut parts = parts(request);
        prepare_request(&mut parts);
        assert_eq!(lines(&parts.headers), expected);
        parts
    }

    #[test]
    fn hop_by_hop_headers_are_removed() {
        check_request(
            Request::get("/")
                .header("host", "a")
                .header("connection", "close, X-Mine")
                .header("connection", "keep-alive, host, content-length, hearth-target, x-forwarded-for")
                .header("hearth-target", "80")
                .header("x-forwarded-for", "1.1.1.1")
                .header("x-mine", "1")
                .header("x-kept", "1")
                .header("keep-alive", "timeout=5")
                .header("proxy-connection", "keep-alive")
                .header("proxy-authorization", "Basic x")
                .header("expect", "100-continue")
                .header("upgrade", "websocket")
                .header("te", "gzip")
                .header("trailer", "x-sum")
                .header("content-length", "3"),
            &[
                "content-length: 3",
                "hearth-target: 80",
                "host: a",
                "trailer: x-sum",
                "x-forwarded-for: 1.1.1.1",
                "x-kept: 1",
            ],
        );
    }

    #[test]
    fn a_length_next_to_a_transfer_coding_is_removed() {
        check_request(
            Request::post("/").header("content-length", "3").header("transfer-encoding", "chunked").header("host", "a"),
            &["host: a"],
        );
    }

    #[test]
    fn upgrades_and_trailers_are_requested_from_the_upstream() {
        check_request(
            Request::get("/").header("connection", "keep-alive, Upgrade").header("upgrade", "websocket"),
            &["connection: upgrade", "upgrade: websocket"],
        );
        check_request(
            Request::get("/").header("connection", "te").header("te", "gzip;q=0.5, Trailers"),
            &["te: trailers"],
        );
        // HTTP/1.0 has no upgrades.
        let request = Request::get("/").version(Version::HTTP_10);
        check_request(request.header("connection", "upgrade").header("upgrade", "websocket"), &[]);
    }

    #[test]
    fn http2_requests_are_converted_to_http1() {
        let request = Request::get("https://80-i1.example.com:1/a%2Fb?c=d").version(Version::HTTP_2);
        let request = request.header("cookie", "a=1").header("cookie", "b=2").header("host", "other");
        let parts = check_request(request, &["cookie: a=1; b=2", "host: 80-i1.example.com:1"]);
        assert_eq!((parts.uri.to_string().as_str(), parts.version), ("/a%2Fb?c=d", Version::HTTP_11));
        assert_eq!(check_request(Request::options("*"), &[]).uri, "*");
    }

    #[test]
    fn http1_requests_are_converted_to_http2() {
        let check = |request: request::Builder, uri: &str, expected: &[&str]| {
            let mut parts = parts(request);
            to_http2(&mut parts, "http");
            assert_eq!((parts.uri.to_string().as_str(), parts.version), (uri, Version::HTTP_2));
            assert_eq!(lines(&parts.headers), expected);
        };
        let host = "80-i1.example.com:1";
        check(
            Request::get("/a%2Fb?c").header("host", host).header("te", "trailers"),
            "http://80-i1.example.com:1/a%2Fb?c",
            &["te: trailers"],
        );
        check(Request::get("/").header("host", "a b"), "http://localhost/", &[]);
        check(Request::get("/"), "http://localhost/", &[]);
    }

    #[test]
    fn responses_keep_upgrade_headers() {
        let check = |status: u16, expected: &[&str]| {
            let response = http::Response::builder().status(status).header("connection", "upgrade, x-a");
            let response =
                response.header("upgrade", "websocket").header("x-a", "1").header("transfer-encoding", "chunked");
            let mut parts = response.body(()).expect("a response").into_parts().0;
            prepare_response(&mut parts);
            assert_eq!(lines(&parts.headers), expected);
        };
        check(101, &["connection: upgrade", "upgrade: websocket"]);
        check(200, &[]);
    }

    #[test]
    fn the_target_header_passes_and_other_private_headers_do_not() {
        for tls in [false, true] {
            let (sandbox_id, execution_id) = (SandboxId::generate(), ExecutionId::generate());
            check_hop(TargetHeader { sandbox_id, execution_id, port: 49983, tls });
        }
    }

    fn check_hop(address: TargetHeader) {
        let mut headers = HeaderMap::new();
        headers.insert(TARGET, HeaderValue::from_static("1"));
        headers.append(TARGET, HeaderValue::from_static("2"));
        headers.insert("hearth-anything", HeaderValue::from_static("1"));
        headers.insert("x-kept", HeaderValue::from_static("1"));
        address.write(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(TargetHeader::take(&mut headers), Ok(address));
        assert_eq!(lines(&headers), ["x-kept: 1"]);
    }

    #[test]
    fn a_malformed_target_header_is_rejected_and_removed() {
        let execution = ExecutionId::generate();
        let malformed = ["", "i1", "i1/{}", "i1/x/80", "I1/{}/80", "i1/{}/65536", "i1/{}/80/", "i1/{}/80/tls/"];
        for text in malformed.map(|text| text.replace("{}", &execution.to_string())) {
            let mut headers = HeaderMap::new();
            headers.insert(TARGET, HeaderValue::try_from(&text).expect("visible ASCII"));
            headers.insert("hearth-anything", HeaderValue::from_static("1"));
            assert_eq!(TargetHeader::take(&mut headers), Err(TargetHeaderError), "{text}");
            assert!(headers.is_empty());
        }
        assert_eq!(TargetHeader::take(&mut HeaderMap::new()), Err(TargetHeaderError));
    }

    #[test]
    fn forwarding_headers_follow_the_policy() {
        let check = |forwarded, expected: &[&str]| {
            let request = Request::get("/").header("host", "a").header("x-forwarded-for", "1.1.1.1");
            let mut parts = parts(request.header("x-forwarded-proto", "https").header("forwarded", "for=1.1.1.1"));
            let peer = Peer::tcp("[::ffff:2.2.2.2]:1".parse().expect("an address"), Scheme::Http);
            set_forwarded(&mut parts, forwarded, &peer);
            assert_eq!(lines(&parts.headers), expected);
        };
        check(
            ForwardedPolicy::Replace,
            &["host: a", "x-forwarded-for: 2.2.2.2", "x-forwarded-host: a", "x-forwarded-proto: http"],
        );
        check(
            ForwardedPolicy::Trust,
            &[
                "forwarded: for=1.1.1.1",
                "host: a",
                "x-forwarded-for: 1.1.1.1, 2.2.2.2",
                "x-forwarded-host: a",
                "x-forwarded-proto: https",
            ],
        );
    }
}
