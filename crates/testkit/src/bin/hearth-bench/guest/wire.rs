//! A client of the guest daemon that discards transferred content, so that its own cost is small.
//!
//! It sends sequential requests on one connection, as the connection pools of the SDKs do.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use buffa::Message;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use hearth_envd_api::process::__buffa::oneof::process_event::Event;
use hearth_envd_api::process::__buffa::oneof::process_event::data_event::Output;
use hearth_envd_api::process::{ProcessConfig, StartRequest, StartResponse};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Size of the chunks in which content is sent.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// Limit for the output of a command that is collected as text.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// Connection to a guest daemon.
pub(super) struct Connection {
    sender: SendRequest<Body>,
}

/// Messages of a streaming reply.
pub(super) struct Messages<T> {
    body: Incoming,
    buffer: BytesMut,
    kind: PhantomData<T>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The task exits when the connection is closed.
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>> {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("guest"));
        self.sender.ready().await?;
        let path = request.uri().clone();
        let response = self.sender.send_request(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        bail!("{path}: the reply is {status}: {}", String::from_utf8_lossy(&text))
    }

    /// Calls a method with a streaming reply.
    pub(super) async fn stream<T: Message>(
        &mut self,
        path: &str,
        user: Option<&str>,
        message: &impl Message,
    ) -> Result<Messages<T>> {
        let content = message.encode_to_bytes();
        let mut body = BytesMut::with_capacity(content.len() + 5);
        body.put_u8(0);
        body.put_u32(content.len().try_into()?);
        body.put_slice(&content);
        let request = Self::post(path, "application/connect+proto", user, body.freeze())?;
        let body = self.send(request).await?.into_body();
        Ok(Messages { body, buffer: BytesMut::new(), kind: PhantomData })
    }

    /// Calls a method with a single reply.
    pub(super) async fn unary<T: Message>(&mut self, path: &str, message: &impl Message) -> Result<T> {
        let request = Self::post(path, "application/proto", None, message.encode_to_bytes())?;
        let body = self.send(request).await?.into_body().collect().await?.to_bytes();
        T::decode_from_slice(&body).with_context(|| format!("decoding the reply of {path}"))
    }

    fn post(path: &str, kind: &'static str, user: Option<&str>, body: Bytes) -> Result<Request<Body>> {
        let mut request = Request::post(path).header(header::CONTENT_TYPE, kind);
        if let Some(user) = user {
            let name = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
            request = request.header(header::AUTHORIZATION, format!("Basic {name}"));
        }
        Ok(request.body(Full::new(body).boxed_unsync())?)
    }

    /// Starts a program as a user, or as the default user. The first message is the start event.
    pub(super) async fn start(&mut self, user: Option<&str>, command: &[&str]) -> Result<Messages<StartResponse>> {
        let (program, args) = command.split_first().context("the command is empty")?;
        let process = ProcessConfig {
            cmd: (*program).to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Default::default()
        };
        let request = StartRequest { process: process.into(), stdin: Some(false), ..Default::default() };
        self.stream("/process.Process/Start", user, &request).await
    }

    /// Runs a program that must succeed, and returns its output.
    pub(super) async fn text(&mut self, user: Option<&str>, command: &[&str]) -> Result<String> {
        let mut text = Vec::new();
        let mut messages = self.start(user, command).await?;
        while let Some(output) = messages.output().await? {
            text.extend(output);
            ensure!(text.len() <= TEXT_BYTES_MAX, "{command:?} prints more than {TEXT_BYTES_MAX} bytes");
        }
        Ok(String::from_utf8(text)?)
    }

    /// Writes a file of `bytes` zeros.
    pub(super) async fn upload(&mut self, path: &str, bytes: usize) -> Result<()> {
        let chunk = Bytes::from(vec![0; CHUNK_BYTES]);
        let sizes = (0..bytes.div_ceil(CHUNK_BYTES)).map(move |number| CHUNK_BYTES.min(bytes - number * CHUNK_BYTES));
        let chunks = sizes.map(move |size| Ok(Frame::data(chunk.slice(..size))));
        let body = StreamBody::new(futures::stream::iter(chunks)).boxed_unsync();
        let request = Request::post(format!("/files?path={path}"))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, bytes);
        self.send(request.body(body)?).await?.into_body().collect().await?;
        Ok(())
    }

    /// Downloads a file, discards its content and returns its length.
    pub(super) async fn download(&mut self, path: &str) -> Result<usize> {
        let request = Request::builder().method(Method::GET).uri(format!("/files?path={path}"));
        let mut body = self.send(request.body(Full::default().boxed_unsync())?).await?.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }
}

impl<T: Message> Messages<T> {
    /// Returns the next message, or `None` after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(length) = self.buffer.get(1..5).map(|mut length| length.get_u32() as usize)
                && self.buffer.len() >= 5 + length
            {
                let is_last = self.buffer[0] & 2 != 0;
                self.buffer.advance(5);
                let content = self.buffer.split_to(length);
                if !is_last {
                    return Ok(Some(T::decode_from_slice(&content)?));
                }
                let end: serde_json::Value = serde_json::from_slice(&content)?;
                ensure!(end.get("error").is_none(), "the stream ended with {end}");
                // The connection accepts the next request only after the body is read to its end.
                ensure!(self.body.frame().await.transpose()?.is_none(), "the stream has data after its last message");
                return Ok(None);
            }
            let frame = self.body.frame().await.context("the stream closed before its last message")??;
            self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }
}

impl Messages<StartResponse> {
    /// Returns the next chunk of output, or `None` after the program exited with code 0. Any other exit is an error.
    pub(super) async fn output(&mut self) -> Result<Option<Vec<u8>>> {
        let mut code = None;
        while let Some(message) = self.next().await? {
            match message.event.into_option().and_then(|event| event.event) {
                Some(Event::Data(data)) => match data.output {
                    Some(Output::Stdout(bytes) | Output::Pty(bytes)) => return Ok(Some(bytes)),
                    Some(Output::Stderr(bytes)) => {
                        bail!("the program wrote to stderr: {}", String::from_utf8_lossy(&bytes))
                    }
                    None => {}
                },
                Some(Event::End(end)) => code = Some(end.exit_code),
                Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
            }
        }
        ensure!(code == Some(0), "the program exited with {code:?}");
        Ok(None)
    }

    /// Reads the output until the program exits, and returns its length in bytes.
    pub(super) async fn drain(&mut self) -> Result<usize> {
        let mut bytes = 0;
        while let Some(output) = self.output().await? {
            bytes += output.len();
        }
        Ok(bytes)
    }
}
