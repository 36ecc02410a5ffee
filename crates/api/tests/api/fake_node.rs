//! Fake node that implements the cluster API and stores its sandboxes in a map.
//!
//! It can be full, fail, hang and crash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use connectrpc::{
    ConnectError, ConnectRpcService, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt as _;
use hearth_cluster_api::proto::__buffa::oneof::node_event::Event;
use hearth_cluster_api::proto::{
    CreateSandboxRequest, CreateSandboxResponse, DeleteSandboxRequest, DeleteSandboxResponse, Disk,
    ListSandboxesRequest, ListSandboxesResponse, Load, Machine, NodeEvent, NodeService, NodeServiceExt as _,
    NodeStatus, SandboxEnded, WatchNodeRequest,
};
use hearth_cluster_api::{NodeClient, RunningSandbox};
use hearth_types::{ExecutionId, NodeAddress, NodeId, SandboxId, SandboxSpec};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) const ENVD_VERSION: &str = "0.6.4";

/// Behaviour of the node on creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnCreate {
    Start,
    /// Waits until the behaviour changes.
    Hang,
    Full,
    Exhausted,
    WithoutBuild,
    Reject,
    Fail,
}

/// Behaviour of the node on deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDelete {
    Succeed,
    Fail,
    /// Waits until the behaviour changes.
    Hang,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Sandboxes on the node, including those being started.
    pub(crate) sandboxes: BTreeMap<SandboxId, SandboxSpec>,
    /// All received creates.
    pub(crate) creates: Vec<SandboxSpec>,
    /// All received deletes.
    pub(crate) deletes: Vec<(SandboxId, ExecutionId)>,
    pub(crate) lists: usize,
    pub(crate) on_create: OnCreate,
    pub(crate) on_delete: OnDelete,
}

struct Inner {
    id: NodeId,
    socket: PathBuf,
    state: watch::Sender<State>,
    events: broadcast::Sender<(SandboxId, ExecutionId, String)>,
    server: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone)]
pub(crate) struct FakeNode {
    inner: Arc<Inner>,
}

impl FakeNode {
    pub(crate) fn start(id: &str, folder: &Path) -> Self {
        let state = State {
            sandboxes: BTreeMap::new(),
            creates: Vec::new(),
            deletes: Vec::new(),
            lists: 0,
            on_create: OnCreate::Start,
            on_delete: OnDelete::Succeed,
        };
        let inner = Inner {
            id: id.parse().expect("valid"),
            socket: folder.join(format!("{id}.sock")),
            state: watch::Sender::new(state),
            events: broadcast::Sender::new(64),
            server: Mutex::new(None),
        };
        let node = Self { inner: Arc::new(inner) };
        node.listen();
        node
    }

    /// Returns the configuration of the node for the control role.
    pub(crate) fn as_node(&self) -> hearth_api::Node {
        let address = NodeAddress::Unix(self.inner.socket.clone());
        hearth_api::Node { id: self.inner.id.clone(), client: NodeClient::new(address.clone()), proxy: address }
    }

    pub(crate) fn listen(&self) {
        let _ = std::fs::remove_file(&self.inner.socket);
        let listener = UnixListener::bind(&self.inner.socket).expect("a fresh socket");
        let router = Arc::new(self.clone()).register(connectrpc::Router::new());
        let service = ConnectRpcService::new(router);
        let server = tokio::spawn(async move {
            // Dropping the task drops this set, which closes all connections.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepting");
                let service = TowerToHyperService::new(service.clone());
                connections.spawn(async move {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        *self.inner.server.lock().expect("unpoisoned") = Some(server);
    }

    /// Stops the daemon of the node and removes all its sandboxes.
    pub(crate) async fn crash(&self) {
        let server = self.inner.server.lock().expect("unpoisoned").take();
        if let Some(server) = server {
            server.abort();
            let _ = server.await;
        }
        self.change(|state| state.sandboxes.clear());
    }

    pub(crate) fn state(&self) -> State {
        self.inner.state.borrow().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        self.inner.state.send_modify(change);
    }

    /// Waits until the state of the node meets a condition.
    pub(crate) async fn wait_for(&self, what: &str, condition: impl FnMut(&State) -> bool) -> State {
        let mut state = self.inner.state.subscribe();
        let waiting = state.wait_for(condition);
        match tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await {
            Ok(state) => state.expect("the sender lives").clone(),
            Err(_) => panic!("timed out waiting for the node: {what}"),
        }
    }

    fn status(&self) -> NodeStatus {
        let disk = Disk { mount_point: "/".to_owned(), used_bytes: 1, total_bytes: 2, ..Default::default() };
        let load = Load { cpu_count: 8, cpu_percent: 50, disks: vec![disk], ..Default::default() };
        let machine = Machine { cpu_architecture: "x86_64".to_owned(), ..Default::default() };
        NodeStatus {
            node_id: self.inner.id.to_string(),
            sandboxes_running: 3,
            sandboxes_starting: 1,
            sandboxes_max: 100,
            instance_id: "instance-1".to_owned(),
            version: "1.2.3".to_owned(),
            vcpus_allocated: 6,
            creates_succeeded: 9,
            machine: machine.into(),
            load: load.into(),
            ..Default::default()
        }
    }

    /// Removes a sandbox and reports its exit.
    pub(crate) fn exit(&self, sandbox_id: &SandboxId, reason: &str) {
        let spec = self.state().sandboxes.get(sandbox_id).cloned().expect("the sandbox runs here");
        self.change(|state| {
            state.sandboxes.remove(sandbox_id);
        });
        let _ = self.inner.events.send((sandbox_id.clone(), spec.execution_id, reason.to_owned()));
    }

    /// Removes a sandbox without an event.
    pub(crate) fn lose(&self, sandbox_id: &SandboxId) {
        self.change(|state| {
            state.sandboxes.remove(sandbox_id).expect("the sandbox runs here");
        });
    }
}

impl NodeService for FakeNode {
    async fn create_sandbox<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, CreateSandboxRequest>,
    ) -> ServiceResult<impl Encodable<CreateSandboxResponse> + Send + use<'a>> {
        let spec = SandboxSpec::try_from(request.to_owned_message()).expect("a valid request");
        let (sandbox_id, execution_id) = (spec.sandbox_id.clone(), spec.execution_id);
        self.change(|state| {
            state.creates.push(spec.clone());
            if matches!(state.on_create, OnCreate::Start | OnCreate::Hang) {
                state.sandboxes.insert(spec.sandbox_id.clone(), spec);
            }
        });
        match self.state().on_create {
            OnCreate::Full => return Err(ConnectError::resource_exhausted("full")),
            OnCreate::Exhausted => return Err(ConnectError::aborted("too many open files")),
            OnCreate::WithoutBuild => return Err(ConnectError::not_found("no such build")),
            OnCreate::Reject => return Err(ConnectError::failed_precondition("rejected")),
            OnCreate::Fail => return Err(ConnectError::internal("disk on fire")),
            OnCreate::Start | OnCreate::Hang => {}
        }
        let mut state = self.inner.state.subscribe();
        let has_it =
            |state: &State| state.sandboxes.get(&sandbox_id).is_some_and(|spec| spec.execution_id == execution_id);
        let settled = state.wait_for(|state| !has_it(state) || state.on_create == OnCreate::Start).await;
        if !settled.is_ok_and(|state| has_it(&state)) {
            return Err(ConnectError::failed_precondition("killed"));
        }
        Response::ok(CreateSandboxResponse { envd_version: ENVD_VERSION.to_owned(), ..Default::default() })
    }

    async fn delete_sandbox<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, DeleteSandboxRequest>,
    ) -> ServiceResult<impl Encodable<DeleteSandboxResponse> + Send + use<'a>> {
        let sandbox_id: SandboxId = request.sandbox_id.parse().expect("valid");
        let execution_id: ExecutionId = request.execution_id.parse().expect("valid");
        self.change(|state| state.deletes.push((sandbox_id.clone(), execution_id)));
        let mut state = self.inner.state.subscribe();
        let on_delete = state.wait_for(|state| state.on_delete != OnDelete::Hang).await.map(|state| state.on_delete);
        if matches!(on_delete, Ok(OnDelete::Fail)) {
            return Err(ConnectError::internal("the VMM does not exit"));
        }
        let here = self.state().sandboxes.get(&sandbox_id).map(|spec| spec.execution_id);
        if here.is_some_and(|here| here != execution_id) {
            return Err(ConnectError::failed_precondition("another execution runs"));
        }
        self.change(|state| {
            state.sandboxes.remove(&sandbox_id);
        });
        Response::ok(DeleteSandboxResponse { existed: here.is_some(), ..Default::default() })
    }

    async fn list_sandboxes<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, ListSandboxesRequest>,
    ) -> ServiceResult<impl Encodable<ListSandboxesResponse> + Send + use<'a>> {
        let state = self.state();
        let sandboxes = state.sandboxes.values().map(|spec| {
            let SandboxSpec { sandbox_id, execution_id, team_id, .. } = spec.clone();
            RunningSandbox { sandbox_id, execution_id, team_id }.into()
        });
        let response = ListSandboxesResponse { sandboxes: sandboxes.collect(), ..Default::default() };
        self.change(|state| state.lists += 1);
        Response::ok(response)
    }

    async fn watch_node(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, WatchNodeRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<NodeEvent> + Send + use<>>> {
        let events = self.inner.events.subscribe();
        let first = NodeEvent { event: Some(Event::from(self.status())), ..Default::default() };
        let rest = futures::stream::unfold(events, |mut events| async move {
            let (sandbox_id, execution_id, reason) = events.recv().await.ok()?;
            let ended = SandboxEnded {
                sandbox_id: sandbox_id.to_string(),
                execution_id: execution_id.to_string(),
                reason,
                ..Default::default()
            };
            Some((Ok(NodeEvent { event: Some(Event::from(ended)), ..Default::default() }), events))
        });
        Ok(Response::stream(futures::stream::iter([Ok(first)]).chain(rest)))
    }
}
