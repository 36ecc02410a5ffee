//! The host's side of the guest daemon: identity, health, and running a command.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Serialize;
use tokio::net::TcpStream;

use crate::bounded::{self, GuestBody};
use crate::process::process_event::{DataEvent, EndEvent};
use crate::process::{ProcessConfig, StartRequest, StartResponse};

/// Longest body of a plain reply that is read, in bytes. The daemon sends a few; the guest may send anything.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Limit of a command's output, in bytes.
const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Pause between two attempts to initialize a guest.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(5);

/// Error of a request to the guest daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error("sending a request to the guest daemon")]
    Transport(#[source] io::Error),
    /// The daemon replied with another status than success.
    #[error("the guest daemon replied {status}: {text}")]
    Status {
        /// HTTP status of the reply.
        status: StatusCode,
        /// Beginning of the reply's body.
        text: String,
    },
    /// The daemon did not reply.
    #[error("the guest daemon did not reply within {} ms", budget.as_millis())]
    NoReply {
        /// Time within which requests were retried.
        budget: Duration,
    },
    /// A command could not be run to its end.
    #[error("running a command in the guest: {0}")]
    Command(String),
}

/// Connects to the guest daemon, directly or through proxies.
pub type Dial = dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync;

/// Identity of a guest (the body of `POST /init`). Its debug form shows no secrets.
#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Init {
    /// Token required from clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// Environment of all commands.
    pub env_vars: BTreeMap<String, String>,
    /// The sandbox's id, for its programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The template's id, for its programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// Fresh random bytes in hex: sandboxes of one snapshot must not draw the same random numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_seed: Option<String>,
    /// User of commands for which a request names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory of commands for which a request names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// Adds the output of processes to the guest's log.
    pub log_output: bool,
}

impl fmt::Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every field is named, so that a new one is either shown or redacted deliberately. Variables contain secrets.
        let Self {
            access_token,
            env_vars,
            sandbox_id,
            template_id,
            random_seed,
            default_user,
            default_workdir,
            log_output,
        } = self;
        f.debug_struct("Init")
            .field("access_token", &access_token.as_ref().map(|_| "<redacted>"))
            .field("env_vars", &env_vars.keys().collect::<Vec<_>>())
            .field("sandbox_id", sandbox_id)
            .field("template_id", template_id)
            .field("random_seed", &random_seed.as_ref().map(|_| "<redacted>"))
            .field("default_user", default_user)
            .field("default_workdir", default_workdir)
            .field("log_output", log_output)
            .finish()
    }
}

#[derive(Serialize)]
struct TimestampedInit<'a> {
    timestamp: String,
    #[serde(flatten)]
    init: &'a Init,
}

/// Output and exit code of a finished command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code; -1 after a signal.
    pub exit_code: i32,
}

/// A client of one guest's daemon. Opens one connection per request, because the host sends few.
pub struct Client {
    dial: Box<Dial>,
    headers: HeaderMap,
    authority: String,
}

impl Client {
    /// Creates a client that connects by `dial` and sends `authority` as the host and `headers` with every request.
    #[must_use]
    pub fn new(dial: Box<Dial>, authority: &str, headers: HeaderMap) -> Self {
        Self { dial, headers, authority: authority.to_owned() }
    }

    /// Sends the guest its identity, and retries until it replies; a newly restored guest may miss the first requests.
    ///
    /// Returns the daemon's version. Each attempt may take `attempt`; no new one starts once `budget` has passed. Cancel
    /// safe: a cancelled attempt may still take effect, and the daemon ignores older ones.
    pub async fn init(&self, init: &Init, attempt: Duration, budget: Duration) -> Result<String, Error> {
        let start = Instant::now();
        loop {
            match tokio::time::timeout(attempt, self.init_once(init)).await {
                Ok(Ok(version)) => return Ok(version),
                Ok(Err(error @ Error::Status { .. })) => return Err(error),
                // No connection, or a broken one: the guest is not ready yet.
                Ok(Err(_)) | Err(_) => {}
            }
            if start.elapsed() >= budget {
                return Err(Error::NoReply { budget });
            }
            tokio::time::sleep(ATTEMPT_PAUSE).await;
        }
    }

    async fn init_once(&self, init: &Init) -> Result<String, Error> {
        let body = serde_json::to_vec(&TimestampedInit { timestamp: timestamp(), init })
            .map_err(|error| transport(error.into()))?;
        let response = self.send(Method::POST, "/init", "application/json", body.into()).await?;
        let version = response.headers().get("x-envd-version").and_then(|value| value.to_str().ok()).map(str::to_owned);
        expect(response, StatusCode::NO_CONTENT).await?;
        version.ok_or_else(|| Error::Command("the daemon did not send its version".to_owned()))
    }

    /// Checks that the daemon replies.
    pub async fn health(&self) -> Result<(), Error> {
        let response = self.send(Method::GET, "/health", "application/json", Bytes::new()).await?;
        expect(response, StatusCode::NO_CONTENT).await.map(drop)
    }

    /// Runs a shell command to its end and returns its output. Dropping the future does not stop the command.
    pub async fn run(&self, command: &str) -> Result<Output, Error> {
        let request = StartRequest {
            process: ProcessConfig {
                cmd: "/bin/bash".to_owned(),
                args: vec!["-l".to_owned(), "-c".to_owned(), command.to_owned()],
                ..Default::default()
            }
            .into(),
            stdin: Some(false),
            ..Default::default()
        };
        let json = serde_json::to_vec(&request).map_err(|error| transport(error.into()))?;
        let mut body = BytesMut::with_capacity(json.len() + 5);
        body.put_u8(0);
        body.put_u32(u32::try_from(json.len()).map_err(|_| Error::Command("the command is too long".to_owned()))?);
        body.extend_from_slice(&json);
        let path = "/process.Process/Start";
        let response = self.send(Method::POST, path, "application/connect+json", body.freeze()).await?;
        if response.status() != StatusCode::OK {
            return Err(status_error(response).await);
        }
        collect(response.into_body()).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<http::Response<GuestBody>, Error> {
        let stream = (self.dial)().await.map_err(transport)?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| Error::Command(format!("`{path}` is not a path")))?;
        *request.headers_mut() = self.headers.clone();
        let host = HeaderValue::from_str(&self.authority);
        let host = host.map_err(|_| Error::Command(format!("`{}` is not a host", self.authority)))?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        bounded::exchange(stream, request).await.map_err(hyper_error)
    }
}

/// Reads the envelopes of a reply to `Start`: flags, length, message.
async fn collect(mut body: GuestBody) -> Result<Output, Error> {
    let mut buffer = BytesMut::new();
    let mut output = Output { stdout: Vec::new(), stderr: Vec::new(), exit_code: 0 };
    let mut ended = false;
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(hyper_error)?.into_data() else { continue };
        buffer.extend_from_slice(&chunk);
        while let Some((flags, message)) = envelope(&mut buffer)? {
            if flags & 2 != 0 {
                return end_of_stream(&message, ended, output);
            }
            let response: StartResponse =
                serde_json::from_slice(&message).map_err(|error| Error::Command(error.to_string()))?;
            ended |= add_event(response, &mut output)?;
        }
    }
    Err(Error::Command("the reply broke off".to_owned()))
}

fn envelope(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, Error> {
    if buffer.len() < 5 {
        return Ok(None);
    }
    let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
    if length > OUTPUT_BYTES_MAX {
        return Err(Error::Command("the guest daemon sent a message that is too long".to_owned()));
    }
    if buffer.len() < 5 + length {
        return Ok(None);
    }
    let flags = buffer[0];
    buffer.advance(5);
    Ok(Some((flags, buffer.split_to(length).freeze())))
}

fn end_of_stream(message: &[u8], ended: bool, output: Output) -> Result<Output, Error> {
    let end: serde_json::Value = serde_json::from_slice(message).map_err(|error| Error::Command(error.to_string()))?;
    match end.get("error") {
        Some(error) => Err(Error::Command(error.to_string())),
        None if ended => Ok(output),
        None => Err(Error::Command("the reply ended before the command".to_owned())),
    }
}

/// Adds an event to the output. Returns true for the end event.
fn add_event(response: StartResponse, output: &mut Output) -> Result<bool, Error> {
    use crate::process::__buffa::oneof::process_event::Event;
    use crate::process::__buffa::oneof::process_event::data_event::Output as Stream;

    let event = response.event.into_option().and_then(|event| event.event);
    match event {
        Some(Event::Data(data)) => {
            let DataEvent { output: stream, .. } = *data;
            match stream {
                Some(Stream::Stdout(bytes)) => output.stdout.extend(bytes),
                Some(Stream::Stderr(bytes)) => output.stderr.extend(bytes),
                Some(Stream::Pty(_)) | None => {}
            }
            if output.stdout.len() + output.stderr.len() > OUTPUT_BYTES_MAX {
                return Err(Error::Command("the command's output is too long".to_owned()));
            }
            Ok(false)
        }
        Some(Event::End(end)) => {
            let EndEvent { exit_code, .. } = *end;
            output.exit_code = exit_code;
            Ok(true)
        }
        Some(Event::Start(_) | Event::Keepalive(_)) | None => Ok(false),
    }
}

/// Returns the response if it has the expected status.
pub(crate) async fn expect(
    response: http::Response<GuestBody>,
    status: StatusCode,
) -> Result<http::Response<GuestBody>, Error> {
    if response.status() == status { Ok(response) } else { Err(status_error(response).await) }
}

async fn status_error(response: http::Response<GuestBody>) -> Error {
    let status = response.status();
    let body = Limited::new(response.into_body(), REPLY_BYTES_MAX).collect().await;
    let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Error::Status { status, text: String::from_utf8_lossy(&bytes).trim().chars().take(300).collect() }
}

fn transport(error: io::Error) -> Error {
    Error::Transport(error)
}

pub(crate) fn hyper_error(error: hyper::Error) -> Error {
    Error::Transport(io::Error::other(error))
}

/// Returns the current time as RFC 3339 with nanoseconds; the daemon orders requests by it.
fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(flags: u8, message: &str) -> Vec<u8> {
        let mut bytes = vec![flags];
        bytes.put_u32(message.len().try_into().expect("short"));
        bytes.extend(message.bytes());
        bytes
    }

    #[test]
    fn envelopes_are_returned_when_complete() {
        let whole = [packed(0, "one"), packed(2, "{}")].concat();
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in whole {
            buffer.put_u8(byte);
            found.extend(envelope(&mut buffer).expect("short"));
        }
        assert_eq!(found, [(0, "one".into()), (2, "{}".into())]);
        assert!(buffer.is_empty());
        assert!(envelope(&mut BytesMut::from(&[0, 0xFF, 0, 0, 0][..])).is_err(), "a message beyond the limit");
    }

    #[test]
    fn a_stream_must_not_end_before_the_command() {
        let output = || Output { stdout: Vec::new(), stderr: Vec::new(), exit_code: 0 };
        assert!(end_of_stream(b"{}", true, output()).is_ok());
        for (message, ended) in
            [(&b"{}"[..], false), (b"{\"error\":{\"code\":\"not_found\"}}", true), (b"nonsense", true)]
        {
            assert!(end_of_stream(message, ended, output()).is_err(), "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn timestamps_have_nanoseconds() {
        let text = timestamp();
        assert_eq!(text.len(), "2026-01-01T00:00:00.000000000Z".len(), "{text}");
    }
}
