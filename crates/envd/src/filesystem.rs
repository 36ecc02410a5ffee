//! The file system service: names and metadata; contents are in `files`.
//!
//! Calls run with the daemon's rights; the user decides how a relative path resolves and who owns created files.
//! [`tree`] implements the calls with [`moving`] and [`removing`], [`watch`] reports changes, [`entry`] describes
//! files, [`legacy`] reduces replies for clients of the first schema.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use connectrpc::{ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use hearth_envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, Filesystem, GetWatcherEventsRequest, GetWatcherEventsResponse,
    ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest, MoveResponse, RemoveRequest,
    RemoveResponse, RemoveWatcherRequest, RemoveWatcherResponse, StatRequest, StatResponse, WatchDirRequest,
    WatchDirResponse,
};

use crate::path_calls::Lane;
use crate::paths;
use crate::rpc;
use crate::state::State;
use crate::users::User;

mod entry;
mod legacy;
mod moving;
mod removing;
mod tree;
mod watch;

pub(crate) use entry::{METADATA_PREFIX, metadata_of};
pub(crate) use tree::same_file;

use legacy::Schema;
use watch::{PolledWatchers, Watch};

/// The file system service.
pub(crate) struct FilesystemService {
    state: Arc<State>,
    watchers: PolledWatchers,
}

impl FilesystemService {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state, watchers: PolledWatchers::default() }
    }

    fn resolve(&self, context: &RequestContext, path: &str) -> Result<(User, PathBuf), ConnectError> {
        let user = self.state.rpc_user(context)?;
        let resolved = paths::resolve(path, &user, self.state.default_workdir().as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
        Ok((user, resolved))
    }

    fn lane(&self, path: &Path) -> Lane {
        self.state.file_calls.lane([path])
    }
}

/// Runs file system calls on a thread that may block. Work that has started is finished, even if the client
/// disconnects.
async fn blocking<T: Send + 'static>(
    lane: &Lane,
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    lane.run(work).await?
}

impl Filesystem for FilesystemService {
    async fn stat<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<impl Encodable<StatResponse> + Send + use<'a>> {
        let schema = Schema::of(&context);
        let (_, path) = self.resolve(&context, request.path)?;
        let entry = schema.entry(blocking(&self.lane(&path), move || tree::stat(&path)).await?);
        Ok(schema.reply(StatResponse { entry: entry.into(), ..Default::default() }))
    }

    async fn make_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let schema = Schema::of(&context);
        let (user, path) = self.resolve(&context, request.path)?;
        let entry = schema.entry(blocking(&self.lane(&path), move || tree::make_dir(&path, &user)).await?);
        Ok(schema.reply(MakeDirResponse { entry: entry.into(), ..Default::default() }))
    }

    async fn r#move<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<impl Encodable<MoveResponse> + Send + use<'a>> {
        let schema = Schema::of(&context);
        let (user, source) = self.resolve(&context, request.source)?;
        let (_, destination) = self.resolve(&context, request.destination)?;
        let lane = self.state.file_calls.lane([source.as_path(), destination.as_path()]);
        let moved =
            lane.run_cancellable(move |cancellation| tree::rename(&source, &destination, &user, cancellation)).await?;
        let entry = schema.entry(moved?);
        Ok(schema.reply(MoveResponse { entry: entry.into(), ..Default::default() }))
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let schema = Schema::of(&context);
        let (_, path) = self.resolve(&context, request.path)?;
        let depth = request.depth.max(1);
        let listed =
            self.lane(&path).run_cancellable(move |cancellation| tree::list(&path, depth, cancellation)).await?;
        let entries = listed?.into_iter().map(|entry| schema.entry(entry)).collect();
        Ok(schema.reply(ListDirResponse { entries, ..Default::default() }))
    }

    async fn remove<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<impl Encodable<RemoveResponse> + Send + use<'a>> {
        let schema = Schema::of(&context);
        let (_, path) = self.resolve(&context, request.path)?;
        blocking(&self.lane(&path), move || tree::remove(&path)).await?;
        Ok(schema.reply(RemoveResponse::default()))
    }

    async fn watch_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let schema = Schema::of(&context);
        let request = request.to_owned_message();
        let (_, path) = self.resolve(&context, &request.path)?;
        let options = watch::Options {
            recursive: request.recursive,
            include_entry: request.include_entry && schema.has_entries_in_events(),
            allow_network_mounts: request.allow_network_mounts,
        };
        let lane = self.lane(&path);
        let watch = blocking(&lane.clone(), move || Watch::open(path, options, lane)).await?;
        let messages = watch::stream(watch, rpc::keepalive(&context), rpc::deadline(&context));
        let stream = Response::stream(messages).compress(false);
        Ok(match schema.header() {
            Some((name, value)) => stream.with_header(name, value),
            None => stream,
        })
    }

    async fn create_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<CreateWatcherResponse> + Send + use<'a>> {
        let schema = Schema::of(&context);
        let request = request.to_owned_message();
        let (_, path) = self.resolve(&context, &request.path)?;
        let options = watch::Options {
            recursive: request.recursive,
            include_entry: request.include_entry && schema.has_entries_in_events(),
            allow_network_mounts: request.allow_network_mounts,
        };
        let lane = self.lane(&path);
        let watch = blocking(&lane.clone(), move || Watch::open(path, options, lane)).await?;
        let watcher_id = self.watchers.add(watch)?;
        Ok(schema.reply(CreateWatcherResponse { watcher_id, ..Default::default() }))
    }

    async fn get_watcher_events<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<GetWatcherEventsResponse> + Send + use<'a>> {
        let watcher = self.watchers.find(request.watcher_id)?;
        // Scanning new directories may wait for the disk.
        let events = watcher.take().await?;
        Ok(Schema::of(&context).reply(GetWatcherEventsResponse { events, ..Default::default() }))
    }

    async fn remove_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<RemoveWatcherResponse> + Send + use<'a>> {
        self.watchers.remove(request.watcher_id)?;
        Ok(Schema::of(&context).reply(RemoveWatcherResponse::default()))
    }
}
