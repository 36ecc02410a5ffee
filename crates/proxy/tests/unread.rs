//! Memory of bodies that an upstream never reads. The only test of its process, whose memory it measures.

#[path = "it/test_proxy.rs"]
#[allow(dead_code)]
mod test_proxy;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use hearth_proxy::body::{Body, boxed};
use http_body::Frame;
use http_body_util::StreamBody;

use crate::test_proxy::{Client, TestProxy, post, raw_upstream, read_head};

const CONNECTIONS: usize = 16;
const STREAMS: usize = 8;
const CHUNK_BYTES: usize = 16 << 10;
/// Maximum memory of a connection: its window, and the write buffer of each stream.
const CONNECTION_BYTES_MAX: usize = 4 << 20;
/// Time without a new chunk after which all buffers are full.
const QUIET: Duration = Duration::from_millis(500);

/// Returns an endless body that counts the chunks taken from it.
fn endless(taken: Arc<AtomicUsize>) -> Body {
    static CHUNK: [u8; CHUNK_BYTES] = [b'x'; CHUNK_BYTES];
    let chunks = stream::repeat_with(move || {
        taken.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(&CHUNK)))
    });
    boxed(StreamBody::new(chunks))
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc(5) is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel reports it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[tokio::test]
async fn unread_bodies_are_limited_per_connection() {
    let upstream = raw_upstream(|_, mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = TestProxy::start(upstream).await;
    let (taken, before) = (Arc::new(AtomicUsize::new(0)), resident_bytes());
    for _ in 0..CONNECTIONS {
        let Client::Http2(sender) = Client::connect_http2(proxy.address).await else {
            unreachable!("HTTP/2 was requested")
        };
        for _ in 0..STREAMS {
            let mut sender = sender.clone();
            let mut request = post("/", endless(Arc::clone(&taken)));
            *request.uri_mut() = "http://8080-i123.example.com/".parse().expect("a URI");
            request.headers_mut().remove("host");
            tokio::spawn(async move { drop(sender.send_request(request).await) });
        }
    }
    let mut seen = usize::MAX;
    while taken.load(Ordering::SeqCst) != seen {
        seen = taken.load(Ordering::SeqCst);
        tokio::time::sleep(QUIET).await;
    }
    let growth = resident_bytes().saturating_sub(before) / CONNECTIONS;
    assert!(growth < CONNECTION_BYTES_MAX, "{growth} bytes for a connection, after {} bytes sent", seen * CHUNK_BYTES);
    println!("{growth} bytes for a connection");
}
