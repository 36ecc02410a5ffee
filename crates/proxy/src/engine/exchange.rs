//! Selection of the connection for a request, and the decision to retry on another one.

use std::future::Future;
use std::hash::Hash;
use std::io;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{Destination, Engine, Error};
use crate::body::Body;
use crate::dial::{NewConnection, Protocol};
use crate::engine::connection::Connection;
use crate::engine::group::AdmittedRequest;
use crate::engine::http1::{self, SendError};
use crate::engine::http2::{self, ProbeError, Scheme};
use crate::engine::protocol::{PortSupport, RequestKind};
use crate::engine::replay::Replay;
use crate::engine::response::{self, ActiveExchange};
use crate::engine::splice;
use crate::headers;

impl<G: Hash + Eq> Engine<G> {
    pub(super) async fn exchange<D, F>(
        &self,
        admitted: AdmittedRequest,
        dial: D,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<NewConnection>>,
    {
        let destination = self.inner.config.destination;
        let client_upgrade = headers::requests_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let kind = RequestKind::of(&parts, client_upgrade.is_some());
        headers::prepare_request(&mut parts);
        let is_head = parts.method == Method::HEAD;
        let mut replay = Replay::new(parts, body);

        let first = kind.first_version(destination, admitted.port_support);
        let may_fall_back = destination == Destination::Guests && !kind.upgrade && first == Protocol::Http1;
        if may_fall_back && kind.http2 {
            replay.retain_body();
        }
        let mut idle = admitted.take_idle(first, replay.idle_max());
        let (mut connection, response) = loop {
            let reused = idle.is_some();
            let mut connection = match idle.take() {
                Some(connection) => connection,
                // Rare, and a large future.
                None => Box::pin(self.connect(&admitted, &dial, first, kind.best_version(first))).await?,
            };
            let sent = if reused || may_fall_back { replay.attempt() } else { replay.final_attempt() };
            match connection.send(sent).await {
                Ok(response) => break (connection, response),
                Err(failure) if reused && replay.may_retry(&connection, &failure) => {}
                Err(failure) if may_fall_back && connection.saw_http2() => {
                    // Dropping the connection returns the retained request.
                    drop(connection);
                    break Box::pin(self.fall_back(&admitted, &dial, &mut replay, failure)).await?;
                }
                Err(failure) => return Err(Error::NoResponse(failure.error)),
            }
        };
        replay.release_body();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client_upgrade = client_upgrade.ok_or(Error::UnexpectedUpgrade)?;
            connection.switch_protocols();
            // The task finishes when both sides have been handed over.
            connection.detach(&self.inner.tasks, admitted.abort_token());
            return Ok(self.splice(admitted, client_upgrade, response));
        }
        let mut exchange = ActiveExchange::new(admitted, connection, &self.inner.config, &self.inner.tasks);
        if destination == Destination::Guests
            && exchange.is_http1()
            && response::may_have_excess_body(is_head, &response)
        {
            exchange.close_after_response();
        }
        Ok(response::stream(exchange, response, replay.is_sent()))
    }

    /// Resends a request in HTTP/2 to a server that did not understand it in HTTP/1.1.
    async fn fall_back<D, F>(
        &self,
        admitted: &AdmittedRequest,
        dial: &D,
        replay: &mut Replay,
        failure: SendError,
    ) -> Result<(Connection, Response<Incoming>), Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<NewConnection>>,
    {
        let mut connection = self.connect(admitted, dial, Protocol::Http2, Protocol::Http2).await?;
        if connection.protocol() != Protocol::Http2 {
            return Err(Error::NoResponse(failure.error));
        }
        admitted.record_support(PortSupport::Http2Only);
        if !replay.is_complete() {
            return Err(Error::NoResponse(failure.error));
        }
        let response =
            connection.send(replay.final_attempt()).await.map_err(|failure| Error::NoResponse(failure.error))?;
        Ok((connection, response))
    }

    /// Opens a connection, in HTTP/2 if `preferred` is HTTP/2 and the server supports it.
    ///
    /// `best` is the newest version that may be negotiated.
    async fn connect<D, F>(
        &self,
        admitted: &AdmittedRequest,
        dial: &D,
        preferred: Protocol,
        best: Protocol,
    ) -> Result<Connection, Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<NewConnection>>,
    {
        let destination = self.inner.config.destination;
        let (tasks, abort) = (&self.inner.tasks, admitted.abort_token());
        let NewConnection { io, protocol } = dial(best).await.map_err(Error::Dial)?;
        let io = match (destination, protocol, preferred) {
            (Destination::Nodes, _, Protocol::Http2) => {
                let opened = http2::Connection::open(io, Scheme::Http, tasks, &abort).await;
                return opened.map(Connection::Http2).map_err(Error::NoResponse);
            }
            (Destination::Guests, Some(Protocol::Http2), _) => {
                let opened =
                    http2::Connection::open(io, Scheme::Https, tasks, &abort).await.map_err(Error::NoResponse)?;
                self.record_http2(admitted);
                return Ok(Connection::Http2(opened));
            }
            (Destination::Guests, None, Protocol::Http2) => {
                match http2::Connection::probe(io, Scheme::Http, tasks, &abort).await {
                    Ok(opened) => {
                        self.record_http2(admitted);
                        return Ok(Connection::Http2(opened));
                    }
                    Err(ProbeError::Failed(error)) => return Err(Error::NoResponse(error)),
                    Err(ProbeError::NotHttp2) => {}
                }
                admitted.record_support(PortSupport::no_http2());
                dial(Protocol::Http1).await.map_err(Error::Dial)?.io
            }
            (Destination::Guests, Some(Protocol::Http1), Protocol::Http2) => {
                admitted.record_support(PortSupport::no_http2());
                io
            }
            (_, _, Protocol::Http1) => io,
        };
        http1::Connection::open(io, destination).await.map(Connection::Http1).map_err(Error::NoResponse)
    }

    fn record_http2(&self, admitted: &AdmittedRequest) {
        if !matches!(admitted.port_support, Some(PortSupport::Http2 | PortSupport::Http2Only)) {
            admitted.record_support(PortSupport::Http2);
        }
    }

    fn splice(
        &self,
        admitted: AdmittedRequest,
        client: hyper::upgrade::OnUpgrade,
        mut response: Response<Incoming>,
    ) -> Response<Body> {
        let upstream = hyper::upgrade::on(&mut response);
        let abort = admitted.abort_token();
        self.inner.tasks.spawn("upgraded stream", async move {
            abort.run_until_cancelled(splice::both_ways(client, upstream)).await;
            drop(admitted);
        });
        response::head_only(response)
    }
}
