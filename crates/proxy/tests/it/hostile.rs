//! Upstreams and clients that send without pause must not starve other tasks of the same workers.
//!
//! They send from their own threads, so that only the proxy can block its runtime.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hearth_proxy::body;
use hearth_types::NodeAddress;
use http::Response;
use http_body_util::BodyExt;
use tokio::runtime::{Builder, Runtime};

use crate::test_proxy::{Client, TestProxy, get, upstream};

/// Twice the number of the proxy's workers.
const ATTACKERS: usize = 4;
const WORKERS: usize = 2;
/// Maximum time between waking a task and polling it.
///
/// Using up a byte budget takes up to 0.1 s unoptimized; the rest is for a machine that runs other tests. Without byte
/// budgets the wait has no end.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Number of times that the measuring task is woken.
const TICKS: usize = 20;
const TICK: Duration = Duration::from_millis(2);
/// Time after which a client or the measuring task counts as starved.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn workers() -> Runtime {
    // Timers are checked after a few tasks instead of 61, so that the measured time is that of waiting for a worker.
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(WORKERS).event_interval(4).enable_all().build().expect("a runtime")
}

/// Writes `first` and then `endless` repeatedly, until the connection closes.
fn flood(mut stream: TcpStream, first: &str, endless: &str) {
    let _ = stream.write_all(first.as_bytes());
    let block = endless.repeat((64 << 10) / endless.len());
    while stream.write_all(block.as_bytes()).is_ok() {}
}

/// Starts an upstream that floods the connection after a request.
fn flooding_upstream(first: &'static str, endless: &'static str) -> NodeAddress {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 1024]);
                flood(stream, first, endless);
            });
        }
    });
    NodeAddress::Tcp(address)
}

/// Returns the longest time that a task on these workers waited to be polled.
fn longest_wait(runtime: &Runtime) -> Duration {
    let (sender, ticks) = mpsc::channel();
    runtime.spawn(async move {
        for _ in 0..TICKS {
            let due = Instant::now() + TICK;
            tokio::time::sleep_until(due.into()).await;
            if sender.send(due.elapsed()).is_err() {
                return;
            }
        }
    });
    let wait = (0..TICKS).map(|_| ticks.recv_timeout(TEST_TIMEOUT).expect("the task is polled"));
    wait.max().expect("there are ticks")
}

/// Sends a request. Returns the first bytes of the response, and the connection.
fn get_status(address: SocketAddr) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a TCP socket");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: 8080-i123.example.com\r\n\r\n").expect("the proxy reads");
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("a response");
    (String::from_utf8(status.to_vec()).expect("ASCII"), stream)
}

#[test]
fn endless_informational_responses_are_a_502() {
    for endless in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", "\r\n"] {
        let runtime = workers();
        let proxy = runtime.block_on(TestProxy::start(flooding_upstream("", endless)));
        let address = proxy.address;
        let clients: Vec<_> = (0..ATTACKERS).map(|_| thread::spawn(move || get_status(address).0)).collect();
        let wait = longest_wait(&runtime);
        assert!(wait < WAIT_MAX, "{endless:?}: waited {wait:?}");
        for client in clients {
            assert_eq!(client.join().expect("a response"), "HTTP/1.1 502", "{endless:?}");
        }
        runtime.shutdown_background();
    }
}

#[test]
fn endless_framing_of_an_upstream_does_not_starve_other_tasks() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for endless in ["0", "1\r\nx\r\n"] {
        let runtime = workers();
        let proxy = runtime.block_on(TestProxy::start(flooding_upstream(HEAD, endless)));
        let mut connections = Vec::new();
        for _ in 0..ATTACKERS {
            let (status, mut stream) = get_status(proxy.address);
            assert_eq!(status, "HTTP/1.1 200");
            let reading = stream.try_clone().expect("a descriptor");
            connections.push(reading);
            thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
        let wait = longest_wait(&runtime);
        assert!(wait < WAIT_MAX, "{endless:?}: waited {wait:?}");
        for connection in connections {
            connection.shutdown(std::net::Shutdown::Both).expect("the connection is open");
        }
        runtime.shutdown_background();
    }
}

#[test]
fn tiny_chunks_to_http2_do_not_starve_other_tasks() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let (runtime, clients) = (workers(), workers());
    let proxy = runtime.block_on(TestProxy::start(flooding_upstream(HEAD, "1\r\nx\r\n")));
    for _ in 0..ATTACKERS {
        let mut client = clients.block_on(Client::connect_http2(proxy.address));
        let response = clients.block_on(client.send(get("/")));
        clients.spawn(async move {
            let _client = client;
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.frame().await {}
        });
    }
    let wait = longest_wait(&runtime);
    assert!(wait < WAIT_MAX, "waited {wait:?}");
    clients.shutdown_background();
    runtime.shutdown_background();
}

#[test]
fn endless_framing_of_a_client_does_not_starve_other_tasks() {
    const HEAD: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    for (first, endless) in [(HEAD, "0"), (HEAD, "1\r\nx\r\n"), ("", "\r\n"), ("GET /", "a")] {
        let runtime = workers();
        let proxy = runtime.block_on(async {
            let upstream = upstream(|request: http::Request<hyper::body::Incoming>| async {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                Response::new(body::empty())
            });
            TestProxy::start(upstream.await).await
        });
        let mut connections = Vec::new();
        for _ in 0..ATTACKERS {
            let stream = TcpStream::connect(proxy.address).expect("the proxy listens");
            connections.push(stream.try_clone().expect("a descriptor"));
            thread::spawn(move || flood(stream, first, endless));
        }
        let wait = longest_wait(&runtime);
        assert!(wait < WAIT_MAX, "{first:?} {endless:?}: waited {wait:?}");
        for connection in connections {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        runtime.shutdown_background();
    }
}
