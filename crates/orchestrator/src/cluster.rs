//! The cluster API of this node: gRPC in, registry calls out.

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

use crate::registry::{Ended, Refusal, Registry};
use crate::status::Surveyor;

/// The service.
pub(crate) struct Cluster {
    registry: Registry,
    surveyor: Arc<Surveyor>,
    stop: CancellationToken,
}

impl Cluster {
    /// The service as something that answers HTTP requests; its streams end when `stop` is cancelled.
    pub(crate) fn routes(registry: Registry, surveyor: Arc<Surveyor>, stop: CancellationToken) -> axum::Router {
        let router = Arc::new(Self { registry, surveyor, stop }).register(connectrpc::Router::new());
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
            let handle = self.registry.ensure(spec).await.map_err(|refusal| refused(&refusal))?;
            handle.started().await.map_err(|error| failed(&error))
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
        match self.registry.end(&sandbox_id, execution_id).await {
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
        // Subscribed before the status is taken, so that nothing falls between the two.
        let events = BroadcastStream::new(self.registry.events()).map(told);
        let (registry, surveyor) = (self.registry.clone(), Arc::clone(&self.surveyor));
        let looks = WatchStream::new(self.surveyor.looks());
        let mut statuses = looks.map(move |load| {
            let status = surveyor.status(registry.sandboxes(), load);
            Ok(NodeEvent { event: Some(Event::from(proto::NodeStatus::from(status))), ..Default::default() })
        });
        let first = statuses.next().await;
        let stop = self.stop.clone();
        let all = futures::stream::iter(first).chain(futures::stream::select(statuses, events));
        Ok(Response::stream(all.take_until(stop.cancelled_owned())))
    }
}

/// An event in its wire form; a watcher that was too slow is sent away to compare lists.
fn told(
    event: Result<Ended, tokio_stream::wrappers::errors::BroadcastStreamRecvError>,
) -> Result<NodeEvent, ConnectError> {
    let Ended { sandbox_id, execution_id, reason } =
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

/// The one place where refusals become codes.
fn refused(refusal: &Refusal) -> ConnectError {
    let text = chain(refusal).to_string();
    match refusal {
        Refusal::Full(_) => ConnectError::resource_exhausted(text),
        Refusal::Runs { .. } | Refusal::Ended(_) => ConnectError::failed_precondition(text),
        Refusal::Stopping => ConnectError::unavailable(text),
        Refusal::Artifacts(hearth_artifact::Error::Unknown(_)) => ConnectError::not_found(text),
        Refusal::Disk(SandboxError::NoRoom(_)) => no_room(text),
        Refusal::Artifacts(_) | Refusal::Disk(_) => ConnectError::internal(text),
    }
}

/// The one place where failures to start become codes.
fn failed(error: &SandboxError) -> ConnectError {
    let text = chain(error).to_string();
    match error {
        SandboxError::Network(hearth_network::Error::SlotsExhausted(_)) => ConnectError::resource_exhausted(text),
        SandboxError::NoRoom(_) => no_room(text),
        error if error.is_exhaustion() => {
            tracing::warn!(error = %chain(error), "a sandbox could not be started now");
            ConnectError::aborted(text)
        }
        SandboxError::Platform { .. } | SandboxError::Killed => ConnectError::failed_precondition(text),
        error => {
            tracing::error!(error = %chain(error), "a sandbox could not be started");
            ConnectError::internal(text)
        }
    }
}

/// Operators have to hear of it: clients are told that there is no room, and not of what.
fn no_room(text: String) -> ConnectError {
    tracing::warn!(error = text, "a sandbox was refused");
    ConnectError::resource_exhausted(text)
}
