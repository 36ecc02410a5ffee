//! Memory of streaming large bodies. The only test of its process, whose memory it measures.

#[path = "it/test_proxy.rs"]
#[allow(dead_code)]
mod test_proxy;

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use hearth_proxy::body::{self, Body, boxed};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;

use crate::test_proxy::{Client, TestProxy, post, upstream, with_timeout};

const BODY_BYTES: usize = 100 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// Maximum growth for both directions, on three sockets and with two HTTP versions.
const GROWTH_BYTES_MAX: usize = 40 << 20;

fn large_body() -> Body {
    static CHUNK: [u8; CHUNK_BYTES] = [b'x'; CHUNK_BYTES];
    let chunks = (0..BODY_BYTES / CHUNK_BYTES).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&CHUNK))));
    boxed(StreamBody::new(stream::iter(chunks)))
}

async fn count(mut body: Incoming) -> usize {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.expect("the body is not aborted").data_ref().map_or(0, Bytes::len);
    }
    bytes
}

/// Returns the process's peak memory.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc(5) is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel reports it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[tokio::test]
async fn large_bodies_take_bounded_memory() {
    let handler = |request: Request<Incoming>| async move {
        if request.method() == http::Method::GET {
            return Response::new(large_body());
        }
        Response::new(body::full(count(request.into_body()).await.to_string()))
    };
    let proxy = TestProxy::start(upstream(handler).await).await;
    let before = peak_bytes();
    for mut client in [proxy.client().await, Client::connect_http2(proxy.address).await] {
        let download = client.get("/").await;
        assert_eq!(with_timeout("the download", count(download.into_body())).await, BODY_BYTES);
        let upload = client.send(post("/", large_body())).await;
        assert_eq!(test_proxy::text(upload).await, BODY_BYTES.to_string());
    }
    let growth = peak_bytes() - before;
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes for bodies of {BODY_BYTES}");
}
