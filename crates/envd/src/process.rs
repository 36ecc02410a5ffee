//! The process service: RPCs on [`running`] processes.
//!
//! A process belongs to the daemon, not to the request that started it: clients may disconnect and reconnect, several
//! may follow one process, and its exit is retained for a while for late ones.

use std::sync::Arc;

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt;
use hearth_envd_api::process::{
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse, Process,
    ProcessInfo, ProcessInput, SendInputRequest, SendInputResponse, SendSignalRequest, SendSignalResponse, Signal,
    StartRequest, StartResponse, StreamInputRequest, StreamInputResponse, UpdateRequest, UpdateResponse,
};

use crate::state::State;
use crate::{idle, rpc};

mod child;
mod events;
mod followers;
mod output;
mod registry;
mod running;

use child::Child;
use registry::Registry;
use running::{RunningProcess, Stdin};

pub(crate) use registry::RETENTION;

/// The process service.
pub(crate) struct ProcessService {
    state: Arc<State>,
    registry: Arc<Registry>,
}

impl ProcessService {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state, registry: Arc::default() }
    }

    /// Releases memory when the guest becomes idle; never returns.
    pub(crate) async fn release_idle_memory(self: Arc<Self>) {
        idle::run(Arc::clone(&self.state), || self.registry.drop_expired()).await;
    }
}

impl Process for ProcessService {
    async fn list<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<impl Encodable<ListResponse> + Send + use<'a>> {
        let listed = |live: Arc<RunningProcess>| ProcessInfo {
            config: live.config().clone().into(),
            pid: live.pid(),
            tag: live.tag().map(str::to_owned),
            ..Default::default()
        };
        let processes = self.registry.running().into_iter().map(listed).collect();
        Response::ok(ListResponse { processes, ..Default::default() })
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StartResponse> + Send + use<>>> {
        let user = self.state.rpc_user(&context)?;
        let request = request.to_owned_message();
        let deadline = rpc::deadline(&context);
        let (state, registry) = (Arc::clone(&self.state), Arc::clone(&self.registry));
        // Loading a program may wait for the disk. A start that has begun is finished, even if the client disconnects:
        // a process is either in the registry or was never started.
        let lane = child::lane(&request, &user, &state)?;
        let started = lane.run(move || {
            let child = Child::spawn(request, &user, &state)?;
            let (live, feed) = RunningProcess::start(child, &registry, state);
            if let Some(deadline) = deadline {
                live.kill_at(deadline);
            }
            Ok::<_, ConnectError>((live.pid(), feed))
        });
        let (pid, feed) = started.await??;
        let events = feed.follow(pid, rpc::keepalive(&context), deadline);
        let events = events.map(|event| event.map(|event| StartResponse { event: event.into(), ..Default::default() }));
        Ok(Response::stream(events).compress(false))
    }

    async fn connect(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let selector = request.process.into_option().unwrap_or_default();
        let (pid, feed) = match self.registry.find(&selector) {
            Ok(live) => (live.pid(), live.subscribe()),
            Err(error) => match self.registry.find_ended(&selector) {
                Some((pid, feed)) => (pid, feed),
                None => return Err(error),
            },
        };
        let events = feed.follow(pid, rpc::keepalive(&context), rpc::deadline(&context));
        let events =
            events.map(|event| event.map(|event| ConnectResponse { event: event.into(), ..Default::default() }));
        Ok(Response::stream(events).compress(false))
    }

    async fn update<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<impl Encodable<UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let live = self.registry.find(&request.process.into_option().unwrap_or_default())?;
        if let Some(pty) = request.pty.into_option() {
            let size = pty.size.into_option().unwrap_or_default();
            live.resize(size.cols, size.rows)?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input<'a>(
        &'a self,
        _context: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<StreamInputResponse> + Send + use<'a>> {
        use hearth_envd_api::process::__buffa::oneof::stream_input_request::Event;

        let mut target: Option<Arc<RunningProcess>> = None;
        while let Some(message) = requests.next().await {
            match message?.to_owned_message().event {
                Some(Event::Start(start)) => {
                    target = Some(self.registry.find(&start.process.into_option().unwrap_or_default())?);
                }
                Some(Event::Data(data)) => {
                    let live = target.as_ref();
                    let live =
                        live.ok_or_else(|| ConnectError::invalid_argument("data was sent before the start event"))?;
                    write_input(live, data.input.into_option().unwrap_or_default()).await?;
                }
                Some(Event::Keepalive(_)) => {}
                None => return Err(ConnectError::unimplemented("the event is not set")),
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<impl Encodable<SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let live = self.registry.find(&request.process.into_option().unwrap_or_default())?;
        write_input(&live, request.input.into_option().unwrap_or_default()).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let live = self.registry.find_to_signal(&request.process.into_option().unwrap_or_default())?;
        match request.signal.as_known() {
            Some(Signal::SIGNAL_SIGKILL) => live.signal(rustix::process::Signal::KILL).await?,
            Some(Signal::SIGNAL_SIGTERM) => live.signal(rustix::process::Signal::TERM).await?,
            _ => return Err(ConnectError::unimplemented(format!("invalid signal: {}", request.signal))),
        }
        Response::ok(SendSignalResponse::default())
    }

    async fn close_stdin<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<CloseStdinResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let live = self.registry.find(&request.process.into_option().unwrap_or_default())?;
        live.close_stdin().await?;
        Response::ok(CloseStdinResponse::default())
    }
}

async fn write_input(live: &RunningProcess, input: ProcessInput) -> Result<(), ConnectError> {
    use hearth_envd_api::process::__buffa::oneof::process_input::Input;

    match input.input {
        Some(Input::Stdin(bytes)) => live.write(Stdin::Pipe, &bytes).await,
        Some(Input::Pty(bytes)) => live.write(Stdin::Terminal, &bytes).await,
        None => Err(ConnectError::unimplemented("the input is not set")),
    }
}
