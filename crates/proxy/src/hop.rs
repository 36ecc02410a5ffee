//! What changes in a head when it passes a proxy.
//!
//! Some headers speak about one connection and end with it (RFC 9110, 7.6.1), and some are a conversation among our own
//! proxies: `hearth-*` names the target on the way from an edge to a node. Clients cannot send those: an edge removes what
//! came from outside before it writes its own, and a node takes them out before a request goes on into a guest.

use std::fmt::Display;
use std::net::IpAddr;

use hearth_types::{ExecutionId, SandboxId};
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, Version, request, response};

/// Every header of ours begins so.
const PRIVATE_PREFIX: &str = "hearth-";
const SANDBOX_ID: HeaderName = HeaderName::from_static("hearth-sandbox-id");
const EXECUTION_ID: HeaderName = HeaderName::from_static("hearth-execution-id");
const PORT: HeaderName = HeaderName::from_static("hearth-port");
const TLS: HeaderName = HeaderName::from_static("hearth-tls");

const FORWARDED_PREFIX: &str = "x-forwarded-";
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Speak about one connection, whether `Connection` names them or not. `TE`, `Upgrade` and `Connection` itself are treated
/// apart. `Trailer` is not among them: it announces what follows the body, which passes through.
const CONNECTION_BOUND: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
];

/// Where in the cluster a request is to go, as an edge tells a node. The execution id is the fence: a node whose sandbox runs
/// under another one refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the header `{header}` is missing or malformed")]
pub struct AddressError {
    header: HeaderName,
}

impl Address {
    /// Removes every private header that came from outside and writes this address.
    ///
    /// # Panics
    /// Never: ids and numbers are visible ASCII.
    pub fn write(&self, headers: &mut HeaderMap) {
        let value = |text: &dyn Display| HeaderValue::try_from(text.to_string()).expect("ids and numbers are ASCII");
        strip_private(headers);
        headers.insert(SANDBOX_ID, value(&self.sandbox_id));
        headers.insert(EXECUTION_ID, value(&self.execution_id));
        headers.insert(PORT, value(&self.port));
        if self.tls {
            headers.insert(TLS, HeaderValue::from_static("1"));
        }
    }

    /// Takes the address, and every other private header, out of a request.
    ///
    /// # Errors
    /// When a part is missing or malformed. The headers are removed in any case.
    pub fn take(headers: &mut HeaderMap) -> Result<Self, AddressError> {
        let address = (|| {
            Ok(Self {
                sandbox_id: parse(headers, SANDBOX_ID)?,
                execution_id: parse(headers, EXECUTION_ID)?,
                port: parse(headers, PORT)?,
                tls: headers.contains_key(TLS),
            })
        })();
        strip_private(headers);
        address
    }
}

fn parse<T: std::str::FromStr>(headers: &HeaderMap, header: HeaderName) -> Result<T, AddressError> {
    let text = headers.get(&header).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).ok_or(AddressError { header })
}

/// Removes every header that only our own proxies may write.
pub fn strip_private(headers: &mut HeaderMap) {
    let private: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(PRIVATE_PREFIX)).cloned().collect();
    for name in private {
        headers.remove(name);
    }
}

/// Whether what a request says about earlier proxies is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// A load balancer of the operator is in front: it is believed, and the peer is added to the chain.
    Believe,
    /// Clients connect directly: whatever they say is replaced.
    Replace,
}

/// Tells the service behind us who asked, by which name and how: `X-Forwarded-For`, `-Host`, `-Proto`.
///
/// `peer` is unknown behind a Unix socket. `scheme` is `http` or `https`, as the client connected to us.
pub fn set_forwarded(parts: &mut request::Parts, forwarded: Forwarded, peer: Option<IpAddr>, scheme: &'static str) {
    let host = host_of(parts);
    let headers = &mut parts.headers;
    if forwarded == Forwarded::Replace {
        for name in [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO] {
            headers.remove(name);
        }
    }
    if let Some(peer) = peer {
        // An address of IPv4 that was accepted on an IPv6 socket is known by its IPv4 form.
        add_to_list(headers, FORWARDED_FOR, &peer.to_canonical().to_string());
    }
    if let Some(host) = host {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(scheme));
}

/// Makes a request one for another host. Say who asked [before](set_forwarded).
pub fn set_host(parts: &mut request::Parts, host: HeaderValue) {
    parts.uri = origin_form(&parts.uri);
    parts.headers.insert(header::HOST, host);
}

/// Adds a member to a list header, in one line: not every reader knows that several lines mean the same.
///
/// # Panics
/// If the member is not visible ASCII.
fn add_to_list(headers: &mut HeaderMap, name: HeaderName, member: &str) {
    let mut members: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    members.push(member.as_bytes());
    let joined = HeaderValue::from_bytes(&members.join(&b", "[..])).expect("it is made of header values");
    headers.insert(name, joined);
}

fn host_of(parts: &request::Parts) -> Option<HeaderValue> {
    match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(header::HOST).cloned(),
    }
}

/// Whether a request asks to speak another protocol after its answer. Only HTTP/1.1 can.
pub(crate) fn asks_upgrade<B>(request: &Request<B>) -> bool {
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
    for name in named.into_iter().chain(CONNECTION_BOUND).chain([header::CONNECTION, header::TE]) {
        headers.remove(name);
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::UPGRADE);
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
                .header("connection", "keep-alive, host, content-length, hearth-port, x-forwarded-for")
                .header("hearth-port", "80")
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
                "hearth-port: 80",
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
            check_hop(Address { sandbox_id, execution_id, port: 49983, tls });
        }
    }

    fn check_hop(address: Address) {
        let mut headers = HeaderMap::new();
        headers.insert("hearth-tls", HeaderValue::from_static("1"));
        headers.insert("hearth-port", HeaderValue::from_static("1"));
        headers.append("hearth-port", HeaderValue::from_static("2"));
        headers.insert("hearth-anything", HeaderValue::from_static("1"));
        headers.insert("x-kept", HeaderValue::from_static("1"));
        address.write(&mut headers);
        assert_eq!(headers.len(), if address.tls { 5 } else { 4 });
        assert_eq!(Address::take(&mut headers), Ok(address));
        assert_eq!(lines(&headers), ["x-kept: 1"]);
    }

    #[test]
    fn an_address_with_a_part_missing_is_refused_and_removed() {
        let mut headers = HeaderMap::new();
        headers.insert(SANDBOX_ID, HeaderValue::from_static("i1"));
        headers.insert(PORT, HeaderValue::from_static("80"));
        assert_eq!(Address::take(&mut headers), Err(AddressError { header: EXECUTION_ID }));
        assert!(headers.is_empty());
    }

    #[test]
    fn who_asked_is_told() {
        let check = |forwarded, expected: &[&str]| {
            let request = Request::get("/").header("host", "a").header("x-forwarded-for", "1.1.1.1");
            let mut parts = parts(request.header("x-forwarded-proto", "https").header("forwarded", "for=1.1.1.1"));
            set_forwarded(&mut parts, forwarded, Some("::ffff:2.2.2.2".parse().expect("an address")), "http");
            assert_eq!(lines(&parts.headers), expected);
        };
        check(
            Forwarded::Replace,
            &["host: a", "x-forwarded-for: 2.2.2.2", "x-forwarded-host: a", "x-forwarded-proto: http"],
        );
        check(
            Forwarded::Believe,
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
