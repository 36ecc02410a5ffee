//! Handle to a sandbox: commands through the edge and its guest daemon.

use std::io;
use std::pin::Pin;

use hearth_envd_api::{Client as Guest, Output};
use hearth_types::Secret;
use hearth_types::guest::DAEMON_PORT;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::net::TcpStream;

use crate::{Client, Error};

/// A sandbox that was created. Dropping the handle leaves the sandbox running.
pub struct Sandbox {
    client: Client,
    sandbox_id: String,
    token: Option<Secret>,
}

impl Sandbox {
    pub(crate) fn new(client: Client, sandbox_id: String, token: Option<Secret>) -> Self {
        Self { client, sandbox_id, token }
    }

    /// Returns the sandbox id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.sandbox_id
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Headers that name the sandbox and port to the edge and authenticate to the guest daemon.
    pub(crate) fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers =
            vec![("e2b-sandbox-id", self.sandbox_id.clone()), ("e2b-sandbox-port", DAEMON_PORT.to_string())];
        if let Some(token) = &self.token {
            headers.push(("x-access-token", token.expose().to_owned()));
        }
        headers
    }

    /// Runs a shell command as the template's user until it exits. Dropping the future leaves the command running.
    pub async fn run(&self, command: &str) -> Result<Output, Error> {
        let edge = &self.client.edge;
        let address = edge.authority().clone();
        let dial = move || -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> {
            let address = address.clone();
            Box::pin(async move {
                let port = address.port_u16().unwrap_or(80);
                let stream = TcpStream::connect((address.host(), port)).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            })
        };
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers() {
            let value = HeaderValue::from_str(&value)
                .map_err(|_| self.invalid("the id or token is not a valid header value"))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        let guest = Guest::new(Box::new(dial), edge.authority().as_str(), headers);
        guest.run(command).await.map_err(Error::Guest)
    }

    /// Kills the sandbox and returns after it has stopped.
    pub async fn kill(self) -> Result<(), Error> {
        self.client.kill(&self.sandbox_id).await
    }

    fn invalid(&self, reason: &str) -> Error {
        Error::InvalidResponse { peer: self.client.api.name(), reason: reason.to_owned() }
    }
}
