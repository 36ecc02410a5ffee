//! Cost of the proxy per request: the same requests with and without it, sequentially, on one connection each.
//!
//! Run it with `--release`; the difference is the result.

#[path = "../tests/it/test_proxy.rs"]
#[allow(dead_code)]
mod test_proxy;

use std::time::{Duration, Instant};

use hearth_proxy::body;
use hearth_types::NodeAddress;
use http::Response;

use crate::test_proxy::{Client, TestProxy, text, upstream};

const WARM_UP_REQUESTS: u32 = 1000;
const REQUESTS: u32 = 5000;
const ROUNDS: usize = 3;

async fn time_per_request(address: std::net::SocketAddr) -> Duration {
    let mut client = Client::connect(address).await;
    for _ in 0..WARM_UP_REQUESTS {
        text(client.get("/").await).await;
    }
    let began = Instant::now();
    for _ in 0..REQUESTS {
        text(client.get("/").await).await;
    }
    began.elapsed() / REQUESTS
}

#[tokio::main]
async fn main() {
    let upstream = upstream(|_| async { Response::new(body::full("fine")) }).await;
    let NodeAddress::Tcp(direct) = upstream.clone() else { unreachable!("it listens on TCP") };
    let proxy = TestProxy::start(upstream).await;
    for _ in 0..ROUNDS {
        let (without, with) = (time_per_request(direct).await, time_per_request(proxy.address).await);
        println!("direct {without:?}, proxied {with:?}, cost {:?}", with.saturating_sub(without));
    }
    assert_eq!(proxy.dials(), 1, "one upstream connection is enough");
}
