//! What changes in a head when it passes a proxy.
//!
//! Some headers speak about one connection and end with it (RFC 9110, 7.6.1), and some are a conversation among our own
//! proxies: `hearth-*` names the target on the way from an edge to a node. Clients cannot send those: an edge removes what
//! came from outside before it writes its own, and a node takes them out before a request goes on into a guest.

use std::fmt::{self, Display, Write as _};
use std::str::FromStr;

use hearth_types::{ExecutionId, SandboxId};
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, StatusCode, Uri, Version, request, response};

use crate::serve::Peer;

/// Every header of ours begins so.
const PRIVATE_PREFIX: &str = "hearth-";
/// Names the target of a request: `SANDBOX/EXECUTION/PORT`, and `/tls` where the port speaks it.
const TARGET: HeaderName = HeaderName::from_static("hearth-target");
/// Room for most targets, so that writing one does not grow it.
const TARGET_BYTES: usize = 96;

const FORWARDED_PREFIX: &str = "x-forwarded-";
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Speak about one connection, whether `Connection` names them or not. `Upgrade` is treated apart. `Trailer` is not among them:
/// it announces what follows the body, which passes through.
const CONNECTION_BOUND: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
];

/// Where in the cluster a request is to go, as an edge tells a node. The execution id is the fence: a node whose sandbox runs
/// under another one refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetHeader {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The run of it that the edge's route speaks of.
    pub execution_id: ExecutionId,
    /// The port inside it.
    pub port: u16,
    /// Whether that port speaks TLS.
    pub tls: bool,
}

/// A request to a node that does not say where it is to go. It did not come from an edge of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header `hearth-target` is missing or malformed")]
pub struct TargetHeaderError;

impl TargetHeader {
    /// Removes every private header that came from outside and writes this address.
    ///
    /// # Panics
    /// Never: ids and numbers are visible ASCII.
    pub fn write(&self, headers: &mut HeaderMap) {
        strip_private(headers);
        let mut text = String::with_capacity(TARGET_BYTES);
        write!(text, "{self}").expect("a string takes all");
        headers.insert(TARGET, HeaderValue::try_from(text).expect("ids and numbers are ASCII"));
    }

    /// Takes the address, and every other private header, out of a request.
    ///
    /// # Errors
    /// When it is missing or malformed. The headers are removed in any case.
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

/// Removes every header that only our own proxies may write.
pub fn strip_private(headers: &mut HeaderMap) {
    remove_all(headers, |name| name.as_str().starts_with(PRIVATE_PREFIX));
}

/// Removes the headers that `goes` says. A head has few: to look at each takes less than to look for each that may be there.
fn remove_all(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let going: Vec<HeaderName> = headers.keys().filter(|name| goes(name)).cloned().collect();
    for name in going {
        headers.remove(name);
    }
}

/// Whether what a request says about earlier proxies is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedPolicy {
    /// A load balancer of the operator is in front: it is believed, and the peer is added to the chain.
    Trust,
    /// Clients connect directly: whatever they say is replaced.
    Replace,
}

/// Tells the service behind us who asked, by which name and how: `X-Forwarded-For`, `-Host`, `-Proto`.
pub fn set_forwarded(parts: &mut request::Parts, forwarded: ForwardedPolicy, peer: &Peer) {
    let host = host_of(parts);
    let headers = &mut parts.headers;
    if forwarded == ForwardedPolicy::Replace {
        remove_all(headers, |name| [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO].contains(name));
    }
    // It is unknown behind a Unix socket.
    if let Some(address) = peer.forwarded_for() {
        add_to_list(headers, FORWARDED_FOR, address);
    }
    if let Some(host) = host {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(peer.scheme().as_str()));
}

/// Makes a request one for another host. Say who asked [before](set_forwarded).
pub fn set_host(parts: &mut request::Parts, host: HeaderValue) {
    parts.uri = origin_form(&parts.uri);
    parts.headers.insert(header::HOST, host);
}

/// Adds a member to a list header, in one line: not every reader knows that several lines mean the same.
fn add_to_list(headers: &mut HeaderMap, name: HeaderName, member: &HeaderValue) {
    let mut entry = match headers.entry(name) {
        Entry::Occupied(entry) => entry,
        Entry::Vacant(entry) => {
            entry.insert(member.clone());
            return;
        }
    };
    let members = entry.iter().chain([member]).map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let joined = HeaderValue::from_bytes(&members.join(&b", "[..])).expect("it is made of header values");
    entry.insert(joined);
}

fn host_of(parts: &request::Parts) -> Option<HeaderValue> {
    match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(header::HOST).cloned(),
    }
}

/// Whether a request asks to speak another protocol after its answer. Only HTTP/1.1 can.
pub(crate) fn requests_upgrade<B>(request: &Request<B>) -> bool {
    is_upgrade(request.version(), request.headers())
}

fn is_upgrade(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && headers.contains_key(header::UPGRADE)
        && mentions(headers, &header::CONNECTION, "upgrade")
}

/// Makes the head of a request ready for an HTTP/1.1 upstream: path without authority, one `Host`, no connection-bound
/// headers.
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
    // It was the server in front of us that this asked, and it has been answered when the body was first read.
    parts.headers.remove(header::EXPECT);
    join_cookies(&mut parts.headers);
    parts.version = Version::HTTP_11;
    // What hyper and the server in front keep there is about the connection that the request came from.
    parts.extensions.clear();
}

/// Makes the head of a request that is ready for HTTP/1.1 one for HTTP/2: the host is in the URI (RFC 9113, 8.3.1).
pub(crate) fn to_http2(parts: &mut request::Parts, scheme: &str) {
    let host = parts.headers.remove(header::HOST);
    let authority = host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    // A host that is none cannot be passed on here.
    let authority = authority.unwrap_or(Authority::from_static("localhost"));
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    parts.uri = uri.unwrap_or_default();
    parts.version = Version::HTTP_2;
}

/// Makes the head of an answer ready for whoever asked.
pub(crate) fn prepare_response(parts: &mut response::Parts) {
    strip_connection_bound(&mut parts.headers, parts.status == StatusCode::SWITCHING_PROTOCOLS);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
}

/// Whether sending a request twice has the effect of sending it once (RFC 9110, 9.2.2).
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
        // Naming these must not take away what the message needs to arrive whole and where it belongs, nor what a proxy of
        // ours wrote.
        .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::UPGRADE].contains(name))
        .filter(|name| !name.as_str().starts_with(PRIVATE_PREFIX) && !name.as_str().starts_with(FORWARDED_PREFIX))
        .collect();
    // A length next to a transfer coding is void (RFC 9112, 6.3), and must not come to life when the coding is removed.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    // As many as a client likes, so they are looked for.
    for name in named {
        headers.remove(name);
    }
    remove_all(headers, |name| CONNECTION_BOUND.contains(name) || !upgrade && *name == header::UPGRADE);
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// HTTP/2 may split a cookie over several lines, HTTP/1.1 may not (RFC 9113, 8.2.3).
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

/// Whether a list header has this member, in any case.
fn mentions(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        // `TE` may weigh its members.
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
    fn connection_bound_headers_end_here() {
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
    fn a_length_next_to_a_coding_is_void() {
        check_request(
            Request::post("/").header("content-length", "3").header("transfer-encoding", "chunked").header("host", "a"),
            &["host: a"],
        );
    }

    #[test]
    fn upgrades_and_trailers_are_asked_for_again() {
        check_request(
            Request::get("/").header("connection", "keep-alive, Upgrade").header("upgrade", "websocket"),
            &["connection: upgrade", "upgrade: websocket"],
        );
        check_request(
            Request::get("/").header("connection", "te").header("te", "gzip;q=0.5, Trailers"),
            &["te: trailers"],
        );
        // HTTP/1.0 knows no upgrades.
        let request = Request::get("/").version(Version::HTTP_10);
        check_request(request.header("connection", "upgrade").header("upgrade", "websocket"), &[]);
    }

    #[test]
    fn http_2_becomes_http_1() {
        let request = Request::get("https://80-i1.example.com:1/a%2Fb?c=d").version(Version::HTTP_2);
        let request = request.header("cookie", "a=1").header("cookie", "b=2").header("host", "other");
        let parts = check_request(request, &["cookie: a=1; b=2", "host: 80-i1.example.com:1"]);
        assert_eq!((parts.uri.to_string().as_str(), parts.version), ("/a%2Fb?c=d", Version::HTTP_11));
        assert_eq!(check_request(Request::options("*"), &[]).uri, "*");
    }

    #[test]
    fn http_1_becomes_http_2() {
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
    fn answers_keep_what_an_upgrade_needs() {
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
    fn an_address_survives_the_hop_and_nothing_private_else() {
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
    fn a_malformed_address_is_refused_and_removed() {
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
    fn who_asked_is_told() {
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
