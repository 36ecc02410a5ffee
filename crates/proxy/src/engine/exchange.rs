//! One request and its answer: which connection it takes, and when it takes a second one.

use std::future::Future;
use std::hash::Hash;
use std::io;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{Destination, Engine, Error};
use crate::body::Body;
use crate::dial::{Dialled, Protocol};
use crate::engine::answer::{self, Lease};
use crate::engine::connection::{Connection, Unsent};
use crate::engine::group::Admission;
use crate::engine::http2::{self, Scheme, Unopened};
use crate::engine::link::Link;
use crate::engine::protocol::{Asked, Spoken};
use crate::engine::replay::Replay;
use crate::engine::splice;
use crate::hop;

impl<G: Hash + Eq> Engine<G> {
    pub(super) async fn exchange<D, F>(
        &self,
        admission: Admission,
        dial: D,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<Dialled>>,
    {
        let destination = self.inner.config.destination;
        let client_upgrade = hop::asks_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let asked = Asked::of(&parts, client_upgrade.is_some());
        hop::prepare_request(&mut parts);
        let asks_head = parts.method == Method::HEAD;
        let mut replay = Replay::new(parts, body);

        let first = asked.first(destination, admission.spoken);
        let may_fall_back = destination == Destination::Guests && !asked.upgrade && first == Protocol::Http1;
        if may_fall_back && asked.http2 {
            replay.keep();
        }
        let mut idle = admission.take_idle(first, replay.idle_max());
        let (mut link, response) = loop {
            let reused = idle.is_some();
            let mut link = match idle.take() {
                Some(link) => link,
                // Seldom, and large.
                None => Box::pin(self.connect(&admission, &dial, first, asked.best(first))).await?,
            };
            let sent = if reused || may_fall_back { replay.first() } else { replay.last() };
            match link.send(sent).await {
                Ok(response) => break (link, response),
                Err(unsent) if reused && replay.may_repeat(&link, &unsent) => {}
                Err(unsent) if may_fall_back && link.met_http2() => {
                    // What was kept of the request comes back with it.
                    drop(link);
                    break Box::pin(self.fall_back(&admission, &dial, &mut replay, unsent)).await?;
                }
                Err(unsent) => return Err(Error::NoAnswer(unsent.error)),
            }
        };
        replay.forget();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client_upgrade = client_upgrade.ok_or(Error::UnaskedUpgrade)?;
            link.switch();
            // It ends when both sides are handed over.
            link.detach(&self.inner.tasks, admission.cut());
            return Ok(self.splice(admission, client_upgrade, response));
        }
        let mut lease = Lease::new(admission, link, &self.inner.config, &self.inner.tasks);
        if destination == Destination::Guests && lease.is_http1() && answer::may_be_overlong(asks_head, &response) {
            lease.close_at_end();
        }
        Ok(answer::stream(lease, response, replay.is_sent()))
    }

    /// Sends a request again, in HTTP/2, to a server that has not understood it in HTTP/1.1.
    async fn fall_back<D, F>(
        &self,
        admission: &Admission,
        dial: &D,
        replay: &mut Replay,
        unsent: Unsent,
    ) -> Result<(Link, Response<Incoming>), Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<Dialled>>,
    {
        let mut link = self.connect(admission, dial, Protocol::Http2, Protocol::Http2).await?;
        if link.protocol() != Protocol::Http2 {
            return Err(Error::NoAnswer(unsent.error));
        }
        admission.note(Spoken::OnlyHttp2);
        if !replay.is_whole() {
            return Err(Error::NoAnswer(unsent.error));
        }
        let response = link.send(replay.last()).await.map_err(|unsent| Error::NoAnswer(unsent.error))?;
        Ok((link, response))
    }

    /// A new connection, in HTTP/2 if that is wanted and the other side speaks it. `best` is what may be agreed on.
    async fn connect<D, F>(
        &self,
        admission: &Admission,
        dial: &D,
        wanted: Protocol,
        best: Protocol,
    ) -> Result<Link, Error>
    where
        D: Fn(Protocol) -> F,
        F: Future<Output = io::Result<Dialled>>,
    {
        let destination = self.inner.config.destination;
        let (tasks, cut) = (&self.inner.tasks, admission.cut());
        let Dialled { io, protocol } = dial(best).await.map_err(Error::Dial)?;
        let io = match (destination, protocol, wanted) {
            (Destination::Nodes, _, Protocol::Http2) => {
                let opened = http2::Connection::open(io, Scheme::Http, tasks, &cut).await;
                return opened.map(Link::Http2).map_err(Error::NoAnswer);
            }
            (Destination::Guests, Some(Protocol::Http2), _) => {
                let opened = http2::Connection::open(io, Scheme::Https, tasks, &cut).await.map_err(Error::NoAnswer)?;
                self.note_http2(admission);
                return Ok(Link::Http2(opened));
            }
            (Destination::Guests, None, Protocol::Http2) => {
                match http2::Connection::probe(io, Scheme::Http, tasks, &cut).await {
                    Ok(opened) => {
                        self.note_http2(admission);
                        return Ok(Link::Http2(opened));
                    }
                    Err(Unopened::Failed(error)) => return Err(Error::NoAnswer(error)),
                    Err(Unopened::Foreign) => {}
                }
                admission.note(Spoken::http1());
                dial(Protocol::Http1).await.map_err(Error::Dial)?.io
            }
            (Destination::Guests, Some(Protocol::Http1), Protocol::Http2) => {
                admission.note(Spoken::http1());
                io
            }
            (_, _, Protocol::Http1) => io,
        };
        Connection::open(io, destination).await.map(Link::Http1).map_err(Error::NoAnswer)
    }

    fn note_http2(&self, admission: &Admission) {
        if !matches!(admission.spoken, Some(Spoken::Http2 | Spoken::OnlyHttp2)) {
            admission.note(Spoken::Http2);
        }
    }

    fn splice(
        &self,
        admission: Admission,
        client: hyper::upgrade::OnUpgrade,
        mut response: Response<Incoming>,
    ) -> Response<Body> {
        let upstream = hyper::upgrade::on(&mut response);
        let cut = admission.cut();
        self.inner.tasks.spawn("upgraded stream", async move {
            cut.run_until_cancelled(splice::both_ways(client, upstream)).await;
            drop(admission);
        });
        answer::head_only(response)
    }
}
