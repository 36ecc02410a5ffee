//! Client of one node's cluster API.

use connectrpc::client::{CallOptions, ClientConfig, Http2Connection, SharedHttp2Connection};
use connectrpc::{ConnectError, ErrorCode, Protocol};
use futures::Stream;
use hearth_types::{ExecutionId, NodeAddress, SandboxId, SandboxSpec};
use std::time::Duration;

use crate::convert::{RunningSandbox, parse_id};
use crate::generated::hearth::cluster::v1 as proto;
use crate::status::NodeStatus;
use proto::__buffa::oneof::node_event::Event;

/// Maximum number of requests that wait for the one connection to a node.
///
/// A create occupies a place for at most its timeout, so this bounds the concurrent creates of one control plane on a
/// node.
const REQUESTS_QUEUED_MAX: usize = 1024;
/// Timeout of a create; the node's own budgets are shorter.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of a delete. It is idempotent, so the caller retries.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a list, which the node reads from memory.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// Properties of a sandbox that a create started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSandbox {
    /// Version of the guest daemon in the sandbox.
    pub envd_version: String,
}

/// Event of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// The node's status: the first event of every watch, and again every few seconds.
    Status(Box<NodeStatus>),
    /// A sandbox ended without a request.
    SandboxEnded {
        sandbox_id: SandboxId,
        execution_id: ExecutionId,
        /// Readable reason.
        reason: String,
    },
}

/// Reason why a request to a node failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The node runs its maximum number of sandboxes.
    #[error("the node is at capacity")]
    Capacity,
    /// The node has temporarily run out of a resource, such as open files. Nothing remains of the attempt.
    #[error("the node has temporarily run out of a resource: {0}")]
    Exhausted(String),
    /// The node has no artifacts of the build.
    #[error("the node does not have the build")]
    UnknownBuild,
    /// The node rejected the request: it has a stale execution id or is invalid.
    #[error("the node rejected the request: {0}")]
    Rejected(String),
    /// The node tried and failed. Nothing remains of the attempt.
    #[error("the node failed: {0}")]
    Failed(String),
    /// The node did not reply: it may or may not have acted.
    #[error("the node did not reply: {0}")]
    Unavailable(String),
}

impl NodeError {
    /// Returns `true` if the same request may succeed on another node or later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Capacity | Self::Exhausted(_) | Self::Unavailable(_) => true,
            Self::UnknownBuild | Self::Rejected(_) | Self::Failed(_) => false,
        }
    }

    /// Returns `true` if the request may have had its effect despite the error.
    #[must_use]
    pub fn is_effect_unknown(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl From<ConnectError> for NodeError {
    fn from(error: ConnectError) -> Self {
        let text = error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned());
        match error.code {
            ErrorCode::ResourceExhausted => Self::Capacity,
            ErrorCode::Aborted => Self::Exhausted(text),
            ErrorCode::NotFound => Self::UnknownBuild,
            ErrorCode::FailedPrecondition | ErrorCode::InvalidArgument => Self::Rejected(text),
            ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::Canceled => Self::Unavailable(text),
            _ => Self::Failed(text),
        }
    }
}

/// Client of one node; cheap to clone. Connects at the first request, and again after a lost connection.
#[derive(Clone)]
pub struct NodeClient {
    rpc: proto::NodeServiceClient<SharedHttp2Connection>,
    address: NodeAddress,
}

impl NodeClient {
    /// Creates a client for the node at `address`. Sends nothing yet.
    ///
    /// # Panics
    /// Never: the URI is made of a socket address or a constant.
    #[must_use]
    pub fn new(address: NodeAddress) -> Self {
        let (connection, uri) = match &address {
            NodeAddress::Unix(path) => {
                let uri = http::Uri::from_static("http://node.local");
                (Http2Connection::lazy_unix(path, uri.clone()), uri)
            }
            NodeAddress::Tcp(socket) => {
                let uri: http::Uri =
                    format!("http://{socket}").parse().expect("a socket address is an authority of a URI");
                (Http2Connection::lazy_plaintext(uri.clone()), uri)
            }
        };
        let config = ClientConfig::new(uri).with_protocol(Protocol::Grpc);
        let rpc = proto::NodeServiceClient::new(connection.shared(REQUESTS_QUEUED_MAX), config);
        Self { rpc, address }
    }

    /// Returns the address of the node's cluster API.
    #[must_use]
    pub fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// Starts a sandbox. Returns when its guest daemon has accepted its identity.
    ///
    /// A repeated request with the same execution id joins the first. Dropping the future does not stop the node: send
    /// a [`delete`](Self::delete).
    pub async fn create(&self, spec: &SandboxSpec) -> Result<CreatedSandbox, NodeError> {
        let options = CallOptions::default().with_timeout(CREATE_TIMEOUT);
        let response = self.rpc.create_sandbox_with_options(spec.into(), options).await?.into_owned();
        Ok(CreatedSandbox { envd_version: response.envd_version })
    }

    /// Kills a sandbox. Returns when nothing of it remains: `true` if it existed. Idempotent.
    pub async fn delete(&self, sandbox_id: &SandboxId, execution_id: ExecutionId) -> Result<bool, NodeError> {
        let request = proto::DeleteSandboxRequest {
            sandbox_id: sandbox_id.to_string(),
            execution_id: execution_id.to_string(),
            ..Default::default()
        };
        let options = CallOptions::default().with_timeout(DELETE_TIMEOUT);
        Ok(self.rpc.delete_sandbox_with_options(request, options).await?.into_owned().existed)
    }

    /// Returns the sandboxes that the node runs now. Cancel safe.
    pub async fn list(&self) -> Result<Vec<RunningSandbox>, NodeError> {
        let options = CallOptions::default().with_timeout(LIST_TIMEOUT);
        let response =
            self.rpc.list_sandboxes_with_options(proto::ListSandboxesRequest::default(), options).await?.into_owned();
        let running = response.sandboxes.into_iter().map(RunningSandbox::try_from);
        running.collect::<Result<_, _>>().map_err(|error| NodeError::Failed(error.to_string()))
    }

    /// Returns a stream of the node's events from now on. Cancel safe.
    ///
    /// The stream ends with an error when the node is lost. Watch again then, and compare with [`list`](Self::list),
    /// because the events in between are lost.
    pub async fn watch(&self) -> Result<impl Stream<Item = Result<NodeEvent, NodeError>> + Send + use<>, NodeError> {
        let stream = self.rpc.watch_node(proto::WatchNodeRequest::default()).await?;
        Ok(futures::stream::unfold(Some(stream), |stream| async move {
            let mut stream = stream?;
            match stream.message().await {
                Ok(Some(message)) => match event(message.to_owned_message()) {
                    Ok(event) => Some((Ok(event), Some(stream))),
                    Err(error) => Some((Err(error), None)),
                },
                Ok(None) => None,
                Err(error) => Some((Err(error.into()), None)),
            }
        }))
    }
}

fn event(message: proto::NodeEvent) -> Result<NodeEvent, NodeError> {
    let invalid = |error: crate::ConvertError| NodeError::Failed(error.to_string());
    match message.event {
        Some(Event::Status(status)) => Ok(NodeEvent::Status(Box::new((*status).try_into().map_err(invalid)?))),
        Some(Event::SandboxEnded(ended)) => Ok(NodeEvent::SandboxEnded {
            sandbox_id: parse_id("sandbox_id", &ended.sandbox_id).map_err(invalid)?,
            execution_id: parse_id("execution_id", &ended.execution_id).map_err(invalid)?,
            reason: ended.reason,
        }),
        None => Err(NodeError::Failed("the node sent an unknown kind of event".to_owned())),
    }
}
