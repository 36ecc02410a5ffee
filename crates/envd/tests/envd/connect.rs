//! A second implementation of the Connect protocol, so that tests do not share a defect with the library.

use std::time::Duration;

use buffa::Message;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use hearth_envd_api::process::process_event::EndEvent;
use hearth_envd_api::process::{ProcessEvent, ProcessSelector};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::daemon::{Daemon, within};
use crate::http::{open, post, whole};

/// Encoding of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Json,
    Proto,
}

pub(crate) const CODECS: [Codec; 2] = [Codec::Json, Codec::Proto];

/// A message of the contract.
pub(crate) trait Wire: Message + Serialize + DeserializeOwned {}
impl<T: Message + Serialize + DeserializeOwned> Wire for T {}

impl Codec {
    pub(crate) fn encode(self, message: &impl Wire) -> Bytes {
        match self {
            Self::Json => serde_json::to_vec(message).expect("plain values").into(),
            Self::Proto => message.encode_to_bytes(),
        }
    }

    fn decode<T: Wire>(self, bytes: &[u8]) -> T {
        match self {
            Self::Json => serde_json::from_slice(bytes)
                .unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(bytes))),
            Self::Proto => T::decode_from_slice(bytes).expect("a message"),
        }
    }

    pub(crate) fn unary(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Proto => "application/proto",
        }
    }

    pub(crate) fn streaming(self) -> &'static str {
        match self {
            Self::Json => "application/connect+json",
            Self::Proto => "application/connect+proto",
        }
    }
}

/// An error of the protocol: code and message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RpcError {
    pub(crate) code: String,
    pub(crate) message: String,
}

impl RpcError {
    fn of(error: &serde_json::Value) -> Self {
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        Self { code: text("code"), message: text("message") }
    }
}

pub(crate) async fn unary<A: Wire>(daemon: &Daemon, path: &str, request: &impl Wire) -> Result<A, RpcError> {
    unary_with(daemon, Codec::Json, path, &[], request).await
}

pub(crate) async fn unary_with<A: Wire>(
    daemon: &Daemon,
    codec: Codec,
    path: &str,
    headers: &[(&str, &str)],
    request: &impl Wire,
) -> Result<A, RpcError> {
    let headers = [headers, &[("content-type", codec.unary()), ("connect-protocol-version", "1")]].concat();
    let reply = post(daemon, path, &headers, codec.encode(request)).await;
    if reply.status == 200 {
        assert_eq!(reply.header("content-type"), Some(codec.unary()));
        return Ok(codec.decode(&reply.body));
    }
    assert_eq!(reply.header("content-type"), Some("application/json"), "{reply:?}");
    Err(RpcError::of(&reply.json()))
}

pub(crate) fn envelope(flags: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(flags);
    bytes.put_u32(message.len().try_into().expect("short"));
    bytes.put_slice(message);
    bytes.freeze()
}

/// The messages of a streaming reply.
pub(crate) struct Messages {
    codec: Codec,
    body: Incoming,
    buffer: BytesMut,
}

impl Messages {
    pub(crate) async fn open(
        daemon: &Daemon,
        codec: Codec,
        path: &str,
        headers: &[(&str, &str)],
        request: &impl Wire,
    ) -> Self {
        let headers = [headers, &[("content-type", codec.streaming()), ("connect-protocol-version", "1")]].concat();
        let body = whole(envelope(0, &codec.encode(request)));
        let response = within("a reply", open(daemon, Method::POST, path, &headers, body)).await;
        Self::of(codec, response)
    }

    pub(crate) fn of(codec: Codec, response: http::Response<Incoming>) -> Self {
        assert_eq!(response.status(), 200, "a stream always has status 200");
        assert_eq!(response.headers()["content-type"], codec.streaming());
        Self { codec, body: response.into_body(), buffer: BytesMut::new() }
    }

    /// Returns flags and content of the next envelope, or `None` at the end of the body.
    pub(crate) async fn envelope(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if self.buffer.len() >= 5 {
                let length = (&self.buffer[1..5]).get_u32() as usize;
                if self.buffer.len() >= 5 + length {
                    let flags = self.buffer.get_u8();
                    self.buffer.advance(4);
                    return Some((flags, self.buffer.split_to(length).freeze()));
                }
            }
            match within("more of a stream", self.body.frame()).await {
                Some(frame) => self.buffer.extend_from_slice(&frame.expect("a whole body").into_data().expect("data")),
                None => {
                    assert!(self.buffer.is_empty(), "the stream ended within an envelope");
                    return None;
                }
            }
        }
    }

    /// Returns the next message, or the end of the stream with its error.
    pub(crate) async fn next<T: Wire>(&mut self) -> Result<Option<T>, RpcError> {
        let (flags, content) = self.envelope().await.expect("a last envelope");
        if flags == 0 {
            return Ok(Some(self.codec.decode(&content)));
        }
        assert_eq!(flags, 2, "messages are compressed only on request");
        let end: serde_json::Value = serde_json::from_slice(&content).expect("the last message is JSON");
        assert_eq!(self.envelope().await, None, "no envelope follows the end");
        match end.get("error") {
            Some(error) => Err(RpcError::of(error)),
            None => Ok(None),
        }
    }
}

/// A reply of `Start` or `Connect`: both have one event, in field 1.
pub(crate) struct Events {
    messages: Messages,
}

/// A decoded event of a process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StreamEvent {
    Start(u32),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Pty(Vec<u8>),
    End(EndEvent),
    Keepalive,
}

impl Events {
    pub(crate) fn of(messages: Messages) -> Self {
        Self { messages }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<StreamEvent>, RpcError> {
        use hearth_envd_api::process::__buffa::oneof::process_event::Event;
        use hearth_envd_api::process::__buffa::oneof::process_event::data_event::Output;

        // `StartResponse` and `ConnectResponse` have the same encoding.
        let Some(response) = self.messages.next::<hearth_envd_api::process::StartResponse>().await? else {
            return Ok(None);
        };
        let event: ProcessEvent = response.event.into_option().expect("every message has an event");
        Ok(Some(match event.event.expect("the event is set") {
            Event::Start(start) => StreamEvent::Start(start.pid),
            Event::Data(data) => match data.output.expect("the output is set") {
                Output::Stdout(bytes) => StreamEvent::Stdout(bytes),
                Output::Stderr(bytes) => StreamEvent::Stderr(bytes),
                Output::Pty(bytes) => StreamEvent::Pty(bytes),
            },
            Event::End(end) => StreamEvent::End(*end),
            Event::Keepalive(_) => StreamEvent::Keepalive,
        }))
    }

    /// Returns the pid of the process, which is in the first event.
    pub(crate) async fn pid(&mut self) -> u32 {
        match self.next().await {
            Ok(Some(StreamEvent::Start(pid))) => pid,
            other => panic!("expected a start event, not {other:?}"),
        }
    }

    /// Reads all events up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(event) = self.next().await.expect("no error") {
            assert_eq!(outcome.end, None, "no event follows the end event");
            match event {
                StreamEvent::Start(pid) => panic!("a second start event: {pid}"),
                StreamEvent::Stdout(bytes) => outcome.stdout.extend(bytes),
                StreamEvent::Stderr(bytes) => outcome.stderr.extend(bytes),
                StreamEvent::Pty(bytes) => outcome.pty.extend(bytes),
                StreamEvent::End(end) => outcome.end = Some(end),
                StreamEvent::Keepalive => {}
            }
        }
        assert!(outcome.end.is_some(), "every stream has an end event");
        outcome
    }

    /// Discards events until none arrives for `time`.
    pub(crate) async fn until_silent_for(&mut self, time: Duration) {
        within("silence", async { while tokio::time::timeout(time, self.next()).await.is_ok() {} }).await;
    }

    /// Returns true if the connection breaks in the middle of the stream.
    pub(crate) async fn is_broken(&mut self) -> bool {
        loop {
            match within("the end of a stream", self.messages.body.frame()).await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return true,
                None => return false,
            }
        }
    }

    /// Reads output up to and including `text`.
    pub(crate) async fn wait_for(&mut self, text: &str) -> String {
        let mut output = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(StreamEvent::Stdout(bytes) | StreamEvent::Stderr(bytes) | StreamEvent::Pty(bytes))) => {
                    output.extend(bytes);
                }
                Ok(Some(StreamEvent::Keepalive)) => {}
                other => panic!("waited for {text:?}, got {other:?} after {:?}", String::from_utf8_lossy(&output)),
            }
            let so_far = String::from_utf8_lossy(&output).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
        }
    }
}

/// Output and end of a process.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) pty: Vec<u8>,
    pub(crate) end: Option<EndEvent>,
}

impl Outcome {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub(crate) fn code(&self) -> i32 {
        self.end.as_ref().expect("an end event").exit_code
    }
}

pub(crate) fn by_pid(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(pid_selector(pid)), ..Default::default() }
}

fn pid_selector(pid: u32) -> hearth_envd_api::process::__buffa::oneof::process_selector::Selector {
    hearth_envd_api::process::__buffa::oneof::process_selector::Selector::Pid(pid)
}

pub(crate) fn by_tag(tag: &str) -> ProcessSelector {
    use hearth_envd_api::process::__buffa::oneof::process_selector::Selector;

    ProcessSelector { selector: Some(Selector::Tag(tag.to_owned())), ..Default::default() }
}
