//! Which version of HTTP a request is sent in.
//!
//! A node speaks both, so that the client's version decides. A port of a guest speaks either or both, and nothing but trying
//! tells. An HTTP/1.1 server must not be harmed by that, for example one that serves a single connection: HTTP/2 is tried first
//! only for gRPC, which needs it. Other requests are sent in HTTP/1.1, and again in HTTP/2 where the server has answered with
//! the beginning of that: then it has understood nothing. Over TLS both are offered, and the server chooses.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, Version, header, request};
use tokio::time::Instant;

use crate::dial::Protocol;
use crate::engine::Destination;

/// Ports of a group that a version is known of. A sandbox has few servers; the version of a forgotten port is found out again.
const PORTS_MAX: usize = 64;
/// How long a port that did not speak HTTP/2 is not asked again. Another server may listen there next.
const HTTP1_BELIEVED: Duration = Duration::from_secs(5);

/// What a port was found to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    /// HTTP/1.1; whether HTTP/2 as well is not asked until then.
    Http1 { until: Instant },
    /// HTTP/2, and perhaps HTTP/1.1.
    Http2,
    /// HTTP/2 and not HTTP/1.1.
    OnlyHttp2,
}

impl Spoken {
    /// A port that has just refused HTTP/2.
    pub(super) fn http1() -> Self {
        Self::Http1 { until: Instant::now() + HTTP1_BELIEVED }
    }
}

/// What ports of a group speak, as far as it is known. Ports of which nothing is known are tried in HTTP/1.1.
#[derive(Debug, Default)]
pub(super) struct Ports(HashMap<Option<u16>, Spoken>);

impl Ports {
    pub(super) fn get(&self, port: Option<u16>) -> Option<Spoken> {
        self.0.get(&port).copied()
    }

    pub(super) fn note(&mut self, port: Option<u16>, spoken: Spoken) {
        if self.0.len() >= PORTS_MAX && !self.0.contains_key(&port) {
            self.0.clear();
        }
        self.0.insert(port, spoken);
    }
}

/// What matters of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// The client speaks HTTP/2.
    pub(super) http2: bool,
    /// Has no meaning in HTTP/1.1.
    pub(super) grpc: bool,
    /// Can be sent in HTTP/1.1 only.
    pub(super) upgrade: bool,
}

impl Asked {
    pub(super) fn of(parts: &request::Parts, upgrade: bool) -> Self {
        Self { http2: parts.version == Version::HTTP_2, grpc: is_grpc(&parts.headers), upgrade }
    }

    /// The version to begin with.
    pub(super) fn first(self, destination: Destination, spoken: Option<Spoken>) -> Protocol {
        let http2 = match (destination, spoken) {
            _ if self.upgrade => false,
            (Destination::Nodes, _) => self.http2,
            (Destination::Guests, Some(Spoken::OnlyHttp2)) => true,
            (Destination::Guests, Some(Spoken::Http2)) => self.http2,
            (Destination::Guests, Some(Spoken::Http1 { until })) => self.http2 && self.grpc && Instant::now() >= until,
            (Destination::Guests, None) => self.http2 && self.grpc,
        };
        if http2 { Protocol::Http2 } else { Protocol::Http1 }
    }

    /// The newest version that may be spoken where both sides can agree on one.
    pub(super) fn best(self, first: Protocol) -> Protocol {
        if self.http2 && !self.upgrade { Protocol::Http2 } else { first }
    }
}

/// gRPC itself; gRPC-Web is made for HTTP/1.1.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return false };
    kind.strip_prefix("application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn guests_are_asked_for_http_2_only_where_it_helps() {
        let http1 = Asked { http2: false, grpc: false, upgrade: false };
        let http2 = Asked { http2: true, ..http1 };
        let grpc = Asked { grpc: true, ..http2 };
        let now = Some(Spoken::http1());
        let check = |asked: Asked, spoken, expected| {
            let first = asked.first(Destination::Guests, spoken);
            assert_eq!(first == Protocol::Http2, expected, "{asked:?} {spoken:?}");
        };
        for (asked, expected) in [(http1, false), (http2, false), (grpc, true)] {
            check(asked, None, expected);
            check(asked, now, false);
            check(asked, Some(Spoken::Http2), asked.http2);
            check(asked, Some(Spoken::OnlyHttp2), true);
            check(Asked { upgrade: true, ..asked }, Some(Spoken::OnlyHttp2), false);
        }
        tokio::time::advance(HTTP1_BELIEVED).await;
        check(grpc, now, true);
        check(http2, now, false);
        for asked in [http1, http2, grpc] {
            assert_eq!(asked.first(Destination::Nodes, None) == Protocol::Http2, asked.http2);
        }
    }

    #[test]
    fn few_ports_are_remembered() {
        let mut ports = Ports::default();
        for port in 0..1000 {
            ports.note(Some(port), Spoken::Http2);
            assert_eq!(ports.get(Some(port)), Some(Spoken::Http2));
            assert!(ports.0.len() <= PORTS_MAX);
        }
    }

    #[test]
    fn grpc_is_known_by_its_type() {
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
