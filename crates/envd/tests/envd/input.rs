//! Input: single messages, streams of messages, and its end.

use bytes::Bytes;
use hearth_envd_api::process::__buffa::oneof::process_input::Input;
use hearth_envd_api::process::__buffa::oneof::stream_input_request::Event;
use hearth_envd_api::process::stream_input_request::{DataEvent, KeepAlive, StartEvent};
use hearth_envd_api::process::{
    CloseStdinRequest, CloseStdinResponse, ProcessInput, ProcessSelector, SendInputRequest, SendInputResponse, Signal,
    StartRequest, StreamInputRequest, StreamInputResponse,
};
use http::Method;

use crate::connect::{CODECS, Codec, Messages, RpcError, by_pid, by_tag, envelope, unary, unary_with};
use crate::daemon::{Daemon, until, within};
use crate::http::{Body, chunked, open, whole};
use crate::process::{command, shell};

const STREAM_INPUT: &str = "/process.Process/StreamInput";

pub(crate) fn stdin(bytes: &[u8]) -> ProcessInput {
    ProcessInput { input: Some(Input::Stdin(bytes.to_vec())), ..Default::default() }
}

pub(crate) fn pty(bytes: &[u8]) -> ProcessInput {
    ProcessInput { input: Some(Input::Pty(bytes.to_vec())), ..Default::default() }
}

impl Daemon {
    pub(crate) async fn send(&self, process: ProcessSelector, input: ProcessInput) -> Result<(), RpcError> {
        let request = SendInputRequest { process: process.into(), input: input.into(), ..Default::default() };
        unary::<SendInputResponse>(self, "/process.Process/SendInput", &request).await.map(drop)
    }

    pub(crate) async fn close_stdin(&self, pid: u32) -> Result<(), RpcError> {
        let request = CloseStdinRequest { process: by_pid(pid).into(), ..Default::default() };
        unary::<CloseStdinResponse>(self, "/process.Process/CloseStdin", &request).await.map(drop)
    }

    async fn stream(&self, codec: Codec, body: Body) -> Messages {
        let headers = [("content-type", codec.streaming())];
        Messages::of(codec, within("a reply", open(self, Method::POST, STREAM_INPUT, &headers, body)).await)
    }
}

fn cat() -> StartRequest {
    let mut request = command("cat", &[]);
    // Without the field, input is open.
    request.stdin = None;
    request
}

fn start(process: ProcessSelector) -> StreamInputRequest {
    let start = StartEvent { process: process.into(), ..Default::default() };
    StreamInputRequest { event: Some(Event::Start(Box::new(start))), ..Default::default() }
}

fn data(input: ProcessInput) -> StreamInputRequest {
    let data = DataEvent { input: input.into(), ..Default::default() };
    StreamInputRequest { event: Some(Event::Data(Box::new(data))), ..Default::default() }
}

fn keepalive() -> StreamInputRequest {
    StreamInputRequest { event: Some(Event::Keepalive(Box::<KeepAlive>::default())), ..Default::default() }
}

fn envelopes(codec: Codec, messages: &[StreamInputRequest]) -> Bytes {
    messages.iter().map(|message| envelope(0, &codec.encode(message))).collect::<Vec<_>>().concat().into()
}

// envd: C11, C12
#[tokio::test]
async fn input_is_echoed_until_it_is_closed() {
    let daemon = Daemon::start().await;
    for codec in CODECS {
        let mut events = daemon.launch_with(codec, &[], &cat()).await;
        let pid = events.pid().await;
        let big = vec![b'x'; 300_000];
        for piece in [&b"hello\n"[..], b"", b"\x00\xff $'\"\\", &big] {
            let request =
                SendInputRequest { process: by_pid(pid).into(), input: stdin(piece).into(), ..Default::default() };
            let sent: Result<SendInputResponse, _> =
                unary_with(&daemon, codec, "/process.Process/SendInput", &[], &request).await;
            sent.expect("send input");
        }
        daemon.close_stdin(pid).await.expect("close input");
        let outcome = events.rest().await;
        assert_eq!(outcome.code(), 0);
        assert!(outcome.stdout == [&b"hello\n\x00\xff $'\"\\"[..], &big].concat());
    }
}

#[tokio::test]
async fn input_that_cannot_be_delivered_is_an_error() {
    let daemon = Daemon::start().await;
    let mut events = daemon.launch(&cat()).await;
    let pid = events.pid().await;
    let code = |result: Result<(), RpcError>| result.map_err(|error| error.code).err();
    let internal = Some("internal".to_owned());
    assert_eq!(code(daemon.send(by_pid(pid), pty(b"x")).await), internal, "the process has no terminal");
    assert_eq!(code(daemon.send(by_pid(pid), ProcessInput::default()).await), Some("unimplemented".to_owned()));
    assert_eq!(code(daemon.send(by_pid(999_999_999), stdin(b"x")).await), Some("not_found".to_owned()));
    assert_eq!(code(daemon.send(by_tag("x"), stdin(b"x")).await), Some("not_found".to_owned()));
    assert_eq!(code(daemon.close_stdin(pid).await), None);
    assert_eq!(events.rest().await.code(), 0);
    // Closed by a client, repeatedly.
    let mut request = command("sleep", &["1000"]);
    request.stdin = Some(true);
    let pid = daemon.launch(&request).await.pid().await;
    for _ in 0..2 {
        assert_eq!(code(daemon.close_stdin(pid).await), None);
    }
    assert_eq!(code(daemon.send(by_pid(pid), stdin(b"x")).await), internal);
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    // Never opened.
    let mut events = daemon.launch(&command("sleep", &["1000"])).await;
    let pid = events.pid().await;
    assert_eq!(code(daemon.send(by_pid(pid), stdin(b"x")).await), internal);
    assert_eq!(code(daemon.close_stdin(pid).await), None);
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    // Closed by the process itself.
    let mut request = shell("exec <&-; echo closed; sleep 1000");
    request.stdin = Some(true);
    let mut events = daemon.launch(&request).await;
    let pid = events.pid().await;
    events.wait_for("closed").await;
    assert_eq!(code(daemon.send(by_pid(pid), stdin(b"x")).await), internal);
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
}

#[tokio::test]
async fn a_full_pipe_blocks_until_a_kill() {
    let daemon = Daemon::start().await;
    let mut request = command("sleep", &["1000"]);
    request.stdin = Some(true);
    let mut events = daemon.launch(&request).await;
    let pid = events.pid().await;
    let much = stdin(&vec![0; 1 << 20]);
    let sending = daemon.send(by_pid(pid), much);
    tokio::pin!(sending);
    let pipe = std::fs::File::open(format!("/proc/{pid}/fd/0")).expect("open the process's input");
    let full = until("the pipe to be full", || {
        let waiting = rustix::io::ioctl_fionread(&pipe).expect("query the pipe");
        async move { (waiting >= 64 * 1024).then_some(waiting) }
    });
    tokio::select! {
        sent = &mut sending => panic!("sent without a reader: {sent:?}"),
        waiting = full => assert!(waiting < 1 << 20),
    }
    drop(pipe);
    daemon.signal(pid, Signal::SIGNAL_SIGKILL).await.expect("send");
    assert_eq!(within("the error", sending).await.expect_err("the reader was killed").code, "internal");
    assert_eq!(events.rest().await.code(), -1);
}

// envd: C18
#[tokio::test]
async fn input_streams_are_written_in_order_and_leave_input_open() {
    let daemon = Daemon::start().await;
    for codec in CODECS {
        let (mut first, mut second) = (daemon.launch(&cat()).await, daemon.launch(&cat()).await);
        let (one, two) = (first.pid().await, second.pid().await);
        let mut messages = vec![start(by_pid(one))];
        for number in 0..100 {
            messages.push(data(stdin(format!("{number},").as_bytes())));
            messages.push(keepalive());
        }
        messages.extend([start(by_pid(two)), data(stdin(b"second"))]);
        // The chunks do not match the message boundaries.
        let bytes = envelopes(codec, &messages);
        let pieces: Vec<Bytes> = bytes.chunks(17).map(Bytes::copy_from_slice).collect();
        let mut reply = daemon.stream(codec, chunked(futures::stream::iter(pieces))).await;
        assert!(reply.next::<StreamInputResponse>().await.expect("send input").is_some());
        assert_eq!(reply.next::<StreamInputResponse>().await, Ok(None));
        daemon.send(by_pid(one), stdin(b"open")).await.expect("still open");
        for pid in [one, two] {
            daemon.close_stdin(pid).await.expect("close input");
        }
        let expected: String = (0..100).map(|number| format!("{number},")).collect();
        assert_eq!(first.rest().await.stdout(), format!("{expected}open"));
        assert_eq!(second.rest().await.stdout(), "second");
    }
}

/// Checks that an error arrives and the connection is closed although the request never ends.
// envd: C18
#[tokio::test]
async fn input_streams_receive_errors_while_they_send() {
    let daemon = Daemon::start().await;
    let mut events = daemon.launch(&cat()).await;
    let pid = events.pid().await;
    for (messages, code) in [
        (vec![start(by_pid(999_999_999))], "not_found"),
        (vec![data(stdin(b"x"))], "invalid_argument"),
        (vec![StreamInputRequest::default()], "unimplemented"),
        (vec![start(ProcessSelector::default())], "unimplemented"),
        (vec![start(by_pid(pid)), data(pty(b"x"))], "internal"),
    ] {
        let begin = envelopes(Codec::Json, &messages);
        let endless = futures::stream::unfold(Some(begin), |begin| async move {
            if let Some(begin) = begin {
                return Some((begin, None));
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            Some((envelopes(Codec::Json, &[keepalive()]), None))
        });
        let headers = [("content-type", "application/connect+json")];
        let response = within("a reply", open(&daemon, Method::POST, STREAM_INPUT, &headers, chunked(endless))).await;
        assert_eq!(
            response.headers().get("connection").map(http::HeaderValue::as_bytes),
            Some(&b"close"[..]),
            "{code}"
        );
        let error = Messages::of(Codec::Json, response).next::<StreamInputResponse>().await.expect_err("error");
        assert_eq!(error.code, code);
    }
    // An aborted request does not close the input.
    let begin = envelopes(Codec::Json, &[start(by_pid(pid)), data(stdin(b"half "))]);
    let pending = futures::StreamExt::chain(futures::stream::iter([begin]), futures::stream::pending());
    let headers = [("content-type", "application/connect+json")];
    let request = open(&daemon, Method::POST, STREAM_INPUT, &headers, chunked(pending));
    tokio::select! {
        _ = request => panic!("the request ended"),
        text = events.wait_for("half ") => assert_eq!(text, "half "),
    }
    daemon.send(by_pid(pid), stdin(b"whole")).await.expect("still open");
    daemon.close_stdin(pid).await.expect("close input");
    assert_eq!(events.rest().await.stdout(), "whole");
}

#[tokio::test]
async fn an_empty_input_stream_succeeds() {
    let daemon = Daemon::start().await;
    let mut reply = daemon.stream(Codec::Json, whole("")).await;
    assert!(reply.next::<StreamInputResponse>().await.expect("send input").is_some());
    assert_eq!(reply.next::<StreamInputResponse>().await, Ok(None));
}
