//! Choice of the HTTP version for a request.
//!
//! A node speaks both versions, so the client's version is used. A guest's port speaks either or both, and only a
//! request shows which. That must not harm an HTTP/1.1 server, for example one that serves a single connection: HTTP/2
//! is tried first only for gRPC, which requires it. Other requests are sent in HTTP/1.1, and resent in HTTP/2 if the
//! server responds with HTTP/2 frames: then it has not understood the request. Over TLS both versions are offered, and
//! the server chooses.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, Version, header, request};
use tokio::time::Instant;

use crate::dial::Protocol;
use crate::engine::Destination;

/// Maximum number of ports per group with a recorded version. A sandbox has few servers; a forgotten port is probed
/// again.
const PORTS_MAX: usize = 64;
/// Time until a port without HTTP/2 is probed again. Another server may listen there by then.
const NO_HTTP2_TTL: Duration = Duration::from_secs(5);

/// HTTP versions that a port supports, as far as requests have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortSupport {
    /// HTTP/1.1; HTTP/2 is not tried before `until`.
    NoHttp2 { until: Instant },
    /// HTTP/2, and possibly HTTP/1.1.
    Http2,
    /// HTTP/2 and not HTTP/1.1.
    Http2Only,
}

impl PortSupport {
    /// Returns the support of a port that has just rejected HTTP/2.
    pub(super) fn no_http2() -> Self {
        Self::NoHttp2 { until: Instant::now() + NO_HTTP2_TTL }
    }
}

/// Known protocol support of a group's ports. Unknown ports are tried in HTTP/1.1.
#[derive(Debug, Default)]
pub(super) struct Ports(HashMap<Option<u16>, PortSupport>);

impl Ports {
    pub(super) fn get(&self, port: Option<u16>) -> Option<PortSupport> {
        self.0.get(&port).copied()
    }

    pub(super) fn set(&mut self, port: Option<u16>, support: PortSupport) {
        if self.0.len() >= PORTS_MAX && !self.0.contains_key(&port) {
            self.0.clear();
        }
        self.0.insert(port, support);
    }
}

/// Properties of a request that decide its HTTP version.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestKind {
    /// The client speaks HTTP/2.
    pub(super) http2: bool,
    /// gRPC, which is not possible in HTTP/1.1.
    pub(super) grpc: bool,
    /// An upgrade request, which is possible in HTTP/1.1 only.
    pub(super) upgrade: bool,
}

impl RequestKind {
    pub(super) fn of(parts: &request::Parts, upgrade: bool) -> Self {
        Self { http2: parts.version == Version::HTTP_2, grpc: is_grpc(&parts.headers), upgrade }
    }

    /// Returns the version to try first.
    pub(super) fn first_version(self, destination: Destination, support: Option<PortSupport>) -> Protocol {
        let http2 = match (destination, support) {
            _ if self.upgrade => false,
            (Destination::Nodes, _) => self.http2,
            (Destination::Guests, Some(PortSupport::Http2Only)) => true,
            (Destination::Guests, Some(PortSupport::Http2)) => self.http2,
            (Destination::Guests, Some(PortSupport::NoHttp2 { until })) => {
                self.http2 && self.grpc && Instant::now() >= until
            }
            (Destination::Guests, None) => self.http2 && self.grpc,
        };
        if http2 { Protocol::Http2 } else { Protocol::Http1 }
    }

    /// Returns the newest version that may be negotiated, where the connection can.
    pub(super) fn best_version(self, first: Protocol) -> Protocol {
        if self.http2 && !self.upgrade { Protocol::Http2 } else { first }
    }
}

/// Returns true for gRPC itself; gRPC-Web is made for HTTP/1.1.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return false };
    kind.strip_prefix("application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn http2_is_tried_only_where_it_is_needed_or_supported() {
        let http1 = RequestKind { http2: false, grpc: false, upgrade: false };
        let http2 = RequestKind { http2: true, ..http1 };
        let grpc = RequestKind { grpc: true, ..http2 };
        let now = Some(PortSupport::no_http2());
        let check = |kind: RequestKind, support, expected| {
            let first = kind.first_version(Destination::Guests, support);
            assert_eq!(first == Protocol::Http2, expected, "{kind:?} {support:?}");
        };
        for (kind, expected) in [(http1, false), (http2, false), (grpc, true)] {
            check(kind, None, expected);
            check(kind, now, false);
            check(kind, Some(PortSupport::Http2), kind.http2);
            check(kind, Some(PortSupport::Http2Only), true);
            check(RequestKind { upgrade: true, ..kind }, Some(PortSupport::Http2Only), false);
        }
        tokio::time::advance(NO_HTTP2_TTL).await;
        check(grpc, now, true);
        check(http2, now, false);
        for kind in [http1, http2, grpc] {
            assert_eq!(kind.first_version(Destination::Nodes, None) == Protocol::Http2, kind.http2);
        }
    }

    #[test]
    fn the_number_of_known_ports_is_bounded() {
        let mut ports = Ports::default();
        for port in 0..1000 {
            ports.set(Some(port), PortSupport::Http2);
            assert_eq!(ports.get(Some(port)), Some(PortSupport::Http2));
            assert!(ports.0.len() <= PORTS_MAX);
        }
    }

    #[test]
    fn grpc_is_recognized_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let headers = [(header::CONTENT_TYPE, http::HeaderValue::from_static(kind))].into_iter().collect();
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
