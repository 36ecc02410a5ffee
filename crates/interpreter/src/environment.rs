//! The sandbox's environment variables, from the guest daemon.
//!
//! They change only when the guest is restored, so they are requested again only then or for another token. Without
//! the file that changes with each restore, every execution requests them.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use crate::language::Variables;

/// Largest reply in bytes; the daemon's own limit is lower.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// Time for a reply. The daemon is local; an execution goes on without it.
const REPLY_MAX: Duration = Duration::from_secs(3);
/// Time after which an unused connection is closed. A restore closes it too.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Largest generation in bytes.
const GENERATION_BYTES_MAX: u64 = 256;

/// Content of the file that changes with each restore.
pub(crate) type Generation = Option<String>;

/// Source of the sandbox's variables.
pub(crate) struct Environment {
    client: Client<HttpConnector, Empty<Bytes>>,
    uri: Option<Uri>,
    generation: PathBuf,
    known: Mutex<Option<Known>>,
}

/// Variables and the circumstances in which they are current.
struct Known {
    generation: Generation,
    token: Option<HeaderValue>,
    variables: Arc<Variables>,
}

impl Environment {
    /// Makes a source from the daemon's base URL and the path of the generation file.
    pub(crate) fn new(envd: &str, generation: PathBuf) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_CONNECTION_MAX).build_http();
        Self { client, uri: format!("{envd}/envs").parse().ok(), generation, known: Mutex::default() }
    }

    /// Returns the current generation; none outside of Hearth's guests.
    pub(crate) fn generation(&self) -> Generation {
        let mut text = String::new();
        // A file in memory, so reading it does not block.
        let file = File::open(&self.generation).ok()?;
        file.take(GENERATION_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Returns the variables, requested with the client's token; none if the daemon does not reply with them.
    pub(crate) async fn variables(&self, token: Option<&HeaderValue>) -> Option<Arc<Variables>> {
        let generation = self.generation();
        if let Some(known) = self.known().as_ref()
            && generation.is_some()
            && known.generation == generation
            && known.token.as_ref() == token
        {
            return Some(Arc::clone(&known.variables));
        }
        // Without the lock: contexts must not wait for each other's requests if the daemon does not reply.
        let variables = timeout(REPLY_MAX, self.request(token)).await.ok()??;
        let mut known = self.known();
        let unchanged = known.as_ref().filter(|known| *known.variables == variables);
        let variables = unchanged.map_or_else(|| Arc::new(variables), |known| Arc::clone(&known.variables));
        *known = Some(Known { generation, token: token.cloned(), variables: Arc::clone(&variables) });
        Some(variables)
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        // Every section is a single step, so the value is valid even after a panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(&self, token: Option<&HeaderValue>) -> Option<Variables> {
        let mut request = Request::builder().method(Method::GET).uri(self.uri.clone()?);
        if let Some(token) = token {
            request = request.header("x-access-token", token);
        }
        let response = self.client.request(request.body(Empty::new()).ok()?).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = Limited::new(response.into_body(), REPLY_BYTES_MAX).collect().await.ok()?;
        let variables: Variables = serde_json::from_slice(&body.to_bytes()).ok()?;
        Some(variables.into_iter().filter(|(name, value)| is_variable(name, value)).collect())
    }
}

/// Returns true if a process's environment can hold the variable.
pub(crate) fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['\0', '=']) && !value.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_name_and_no_nul() {
        assert!(is_variable("a b", "x=y\n"));
        for (name, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")] {
            assert!(!is_variable(name, value), "{name:?}");
        }
    }
}
