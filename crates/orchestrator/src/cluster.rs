//! The cluster API of this node: gRPC requests become registry calls.

use std::sync::Arc;

use connectrpc::{
    ConnectError, ConnectRpcService, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt;
use hearth_cluster_api::{ConvertError, parse_id, proto};
use hearth_sandbox::Error as SandboxError;
use hearth_stdx::chain;
use hearth_types::SandboxSpec;
use proto::__buffa::oneof::node_event::Event;
use proto::{
    CreateSandboxRequest, CreateSandboxResponse, DeleteSandboxRequest, DeleteSandboxResponse, ListSandboxesRequest,
    ListSandboxesResponse, NodeEvent, NodeService, NodeServiceExt as _, SandboxEnded, WatchNodeRequest,
};
use tokio_stream::wrappers::{BroadcastStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::registry::{CreateError, EndEvent, Registry};
use crate::status::LoadMonitor;

/// Service of the cluster API.
pub(crate) struct Cluster {
    registry: Registry,
    monitor: Arc<LoadMonitor>,
    stop: CancellationToken,
}

impl Cluster {
    /// Returns the service as an HTTP router; its streams end when `stop` is cancelled.
    pub(crate) fn routes(registry: Registry, monitor: Arc<LoadMonitor>, stop: CancellationToken) -> axum::Router {
        let router = Arc::new(Self { registry, monitor, stop }).register(connectrpc::Router::new());
        axum::Router::new().fallback_service(ConnectRpcService::new(router))
    }
}

impl NodeService for Cluster {
    async fn create_sandbox<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, CreateSandboxRequest>,
    ) -> ServiceResult<impl Encodable<CreateSandboxResponse> + Send + use<'a>> {
        let spec = SandboxSpec::try_from(request.to_owned_message()).map_err(|error| invalid(&error))?;
        let span = tracing::info_span!("create", sandbox = %spec.sandbox_id, execution = %spec.execution_id);
        let started = async {
            let handle = self.registry.ensure(spec).await.map_err(|error| create_error(&error))?;
            handle.started().await.map_err(|error| start_error(&error))
        };
        let envd_version = started.instrument(span).await?;
        Response::ok(CreateSandboxResponse { envd_version, ..Default::default() })
    }

    async fn delete_sandbox<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, DeleteSandboxRequest>,
    ) -> ServiceResult<impl Encodable<DeleteSandboxResponse> + Send + use<'a>> {
        let sandbox_id = parse_id("sandbox_id", request.sandbox_id).map_err(|error| invalid(&error))?;
        let execution_id = parse_id("execution_id", request.execution_id).map_err(|error| invalid(&error))?;
        match self.registry.kill(&sandbox_id, execution_id).await {
            Ok(existed) => Response::ok(DeleteSandboxResponse { existed, ..Default::default() }),
            Err(running) => Err(ConnectError::failed_precondition(format!(
                "sandbox {sandbox_id} runs as execution {running}, not {execution_id}"
            ))),
        }
    }

    async fn list_sandboxes<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, ListSandboxesRequest>,
    ) -> ServiceResult<impl Encodable<ListSandboxesResponse> + Send + use<'a>> {
        let sandboxes = self.registry.list().into_iter().map(Into::into).collect();
        Response::ok(ListSandboxesResponse { sandboxes, ..Default::default() })
    }

    async fn watch_node(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, WatchNodeRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<NodeEvent> + Send + use<>>> {
        // Subscribed before the status is read, so that no event between the two is missed.
        let events = BroadcastStream::new(self.registry.events()).map(to_wire);
        let (registry, monitor) = (self.registry.clone(), Arc::clone(&self.monitor));
        let loads = WatchStream::new(self.monitor.loads());
        let mut statuses = loads.map(move |load| {
            let status = monitor.status(registry.sandboxes(), load);
            Ok(NodeEvent { event: Some(Event::from(proto::NodeStatus::from(status))), ..Default::default() })
        });
        let first = statuses.next().await;
        let stop = self.stop.clone();
        let all = futures::stream::iter(first).chain(futures::stream::select(statuses, events));
        Ok(Response::stream(all.take_until(stop.cancelled_owned())))
    }
}

/// Converts an event to its wire form. A watcher that was too slow gets an error and has to list sandboxes again.
fn to_wire(
    event: Result<EndEvent, tokio_stream::wrappers::errors::BroadcastStreamRecvError>,
) -> Result<NodeEvent, ConnectError> {
    let EndEvent { sandbox_id, execution_id, reason } =
        event.map_err(|_| ConnectError::aborted("the watcher was too slow and missed events"))?;
    let ended = SandboxEnded {
        sandbox_id: sandbox_id.to_string(),
        execution_id: execution_id.to_string(),
        reason,
        ..Default::default()
    };
    Ok(NodeEvent { event: Some(Event::from(ended)), ..Default::default() })
}

fn invalid(error: &ConvertError) -> ConnectError {
    ConnectError::invalid_argument(error.to_string())
}

/// Maps each [`CreateError`] to its gRPC code.
fn create_error(error: &CreateError) -> ConnectError {
    let text = chain(error).to_string();
    match error {
        CreateError::Full(_) | CreateError::Memory { .. } => ConnectError::resource_exhausted(text),
        CreateError::AlreadyRunning { .. } | CreateError::AlreadyEnded(_) => ConnectError::failed_precondition(text),
        CreateError::Stopping => ConnectError::unavailable(text),
        CreateError::Artifacts(hearth_artifact::Error::Unknown(_)) => ConnectError::not_found(text),
        CreateError::Disk(SandboxError::InsufficientDisk(_)) => insufficient_disk(text),
        CreateError::Artifacts(_) | CreateError::Disk(_) => ConnectError::internal(text),
    }
}

/// Maps each failure of a start to its gRPC code.
fn start_error(error: &SandboxError) -> ConnectError {
    let text = chain(error).to_string();
    match error {
        SandboxError::Network(hearth_network::Error::SlotsExhausted(_)) => ConnectError::resource_exhausted(text),
        SandboxError::InsufficientDisk(_) => insufficient_disk(text),
        error if error.is_exhaustion() => {
            tracing::warn!(error = %chain(error), "could not start a sandbox, resources exhausted");
            ConnectError::aborted(text)
        }
        SandboxError::Platform { .. } | SandboxError::Killed => ConnectError::failed_precondition(text),
        error => {
            tracing::error!(error = %chain(error), "could not start a sandbox");
            ConnectError::internal(text)
        }
    }
}

/// Logs a lack of disk space for operators; clients learn only that there is no capacity.
fn insufficient_disk(text: String) -> ConnectError {
    tracing::warn!(error = text, "sandbox rejected, not enough disk space");
    ConnectError::resource_exhausted(text)
}
