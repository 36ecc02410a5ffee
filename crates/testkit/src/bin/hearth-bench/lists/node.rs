//! Fake node that accepts every create and reports the sandboxes as running.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use connectrpc::{
    ConnectError, ConnectRpcService, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt;
use hearth_cluster_api::NodeClient;
use hearth_cluster_api::proto::__buffa::oneof::node_event::Event;
use hearth_cluster_api::proto::{
    CreateSandboxRequest, CreateSandboxResponse, DeleteSandboxRequest, DeleteSandboxResponse, ListSandboxesRequest,
    ListSandboxesResponse, NodeEvent, NodeService, NodeServiceExt as _, NodeStatus, RunningSandbox, WatchNodeRequest,
};
use hearth_proxy::serve;
use hearth_types::NodeAddress;
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const ID: &str = "bench";

/// Fake node. Clones share their state.
#[derive(Clone, Default)]
pub(super) struct FakeNode {
    sandboxes: Arc<Mutex<BTreeMap<String, RunningSandbox>>>,
    ended: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl FakeNode {
    /// Serves until this process exits.
    pub(super) fn serve(&self, socket: &Path) -> Result<hearth_api::Node> {
        let listener = UnixListener::bind(socket)?;
        let router = Arc::new(self.clone()).register(connectrpc::Router::new());
        let routes = axum::Router::new().fallback_service(ConnectRpcService::new(router));
        let bounds =
            serve::Config { connections_max: 64, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout: Duration::ZERO };
        tokio::spawn(serve::serve(listener, routes, bounds, CancellationToken::new()));
        let address = NodeAddress::Unix(socket.to_owned());
        Ok(hearth_api::Node { id: ID.parse()?, client: NodeClient::new(address.clone()), proxy: address })
    }

    /// Returns the time of the delete request for a sandbox.
    pub(super) fn deleted_at(&self, sandbox_id: &str) -> Option<Instant> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get(sandbox_id).copied()
    }
}

impl NodeService for FakeNode {
    async fn create_sandbox<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, CreateSandboxRequest>,
    ) -> ServiceResult<impl Encodable<CreateSandboxResponse> + Send + use<'a>> {
        let CreateSandboxRequest { sandbox_id, execution_id, team_id, .. } = request.to_owned_message();
        let running = RunningSandbox { sandbox_id: sandbox_id.clone(), execution_id, team_id, ..Default::default() };
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).insert(sandbox_id, running);
        Response::ok(CreateSandboxResponse { envd_version: "0.6.4".to_owned(), ..Default::default() })
    }

    async fn delete_sandbox<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, DeleteSandboxRequest>,
    ) -> ServiceResult<impl Encodable<DeleteSandboxResponse> + Send + use<'a>> {
        let now = Instant::now();
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(request.sandbox_id.to_owned(), now);
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let existed = sandboxes.remove(request.sandbox_id).is_some();
        Response::ok(DeleteSandboxResponse { existed, ..Default::default() })
    }

    async fn list_sandboxes<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, ListSandboxesRequest>,
    ) -> ServiceResult<impl Encodable<ListSandboxesResponse> + Send + use<'a>> {
        let sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        Response::ok(ListSandboxesResponse { sandboxes, ..Default::default() })
    }

    async fn watch_node(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, WatchNodeRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<NodeEvent> + Send + use<>>> {
        let status = NodeStatus { node_id: ID.to_owned(), sandboxes_max: u32::MAX, ..Default::default() };
        let status = NodeEvent { event: Some(Event::from(status)), ..Default::default() };
        let first = futures::stream::iter([Ok::<_, ConnectError>(status)]);
        Ok(Response::stream(first.chain(futures::stream::pending())))
    }
}
