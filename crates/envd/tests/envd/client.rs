//! The host's client against the real daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_envd_api::{Client, Error, Init};
use http::HeaderMap;
use tokio::net::TcpStream;

use crate::daemon::{Daemon, test_user};

fn client(port: u16, headers: HeaderMap) -> Client {
    Client::new(Box::new(move || Box::pin(TcpStream::connect(("127.0.0.1", port)))), "guest", headers)
}

fn token(text: &str) -> HeaderMap {
    HeaderMap::from_iter([("x-access-token".parse().expect("a header name"), text.parse().expect("a header value"))])
}

const ATTEMPT: Duration = Duration::from_secs(5);
const BUDGET: Duration = Duration::from_secs(60);

#[tokio::test]
async fn identity_health_and_commands() {
    let daemon = Daemon::start().await;
    let host = client(daemon.port, token("secret"));
    let init = Init {
        access_token: Some("secret".to_owned()),
        env_vars: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        sandbox_id: Some("s".to_owned()),
        random_seed: Some("00ff".to_owned()),
        default_user: Some(test_user()),
        default_workdir: Some("/".to_owned()),
        ..Init::default()
    };
    assert!(!format!("{init:?}").contains("secret") && !format!("{init:?}").contains("00ff"));
    for _ in 0..2 {
        assert_eq!(host.init(&init, ATTEMPT, BUDGET).await.expect("a reply"), "0.6.13");
    }
    host.health().await.expect("healthy");
    let output = host.run("pwd; echo $A $E2B_SANDBOX_ID; echo oops >&2; exit 3").await.expect("run");
    assert_eq!((output.stdout, output.exit_code), (b"/\nb s\n".to_vec(), 3));
    // A login shell of this machine may print messages of its own.
    assert!(output.stderr.ends_with(b"oops\n"), "{:?}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(host.run("kill -9 $$").await.expect("run").exit_code, -1);
    let stranger = client(daemon.port, token("wrong"));
    stranger.health().await.expect("health needs no token");
    assert!(matches!(stranger.run("true").await, Err(Error::Status { status, .. }) if status == 401));
    let other = Init { access_token: Some("other".to_owned()), ..Init::default() };
    let error = host.init(&other, ATTEMPT, BUDGET).await;
    assert!(
        matches!(&error, Err(Error::Status { status, text }) if *status == 401 && text == "access token validation failed"),
        "{error:?}"
    );
    let lost = Init { default_user: Some("no-such-user".to_owned()), ..init };
    host.init(&lost, ATTEMPT, BUDGET).await.expect("a reply");
    assert!(matches!(host.run("true").await, Err(Error::Command(text)) if text.contains("invalid default user")));
}

#[tokio::test]
async fn a_guest_that_never_replies() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (attempt, budget) = (Duration::from_millis(20), Duration::from_millis(100));
    // The listener never replies; afterwards there is no listener.
    let silent = client(port, HeaderMap::new()).init(&Init::default(), attempt, budget).await;
    assert!(matches!(silent, Err(Error::NoReply { budget: reported }) if reported == budget));
    drop(listener);
    let gone = client(port, HeaderMap::new());
    assert!(matches!(gone.init(&Init::default(), attempt, budget).await, Err(Error::NoReply { .. })));
    assert!(matches!(gone.health().await, Err(Error::Transport(_))));
}
