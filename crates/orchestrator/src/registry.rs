//! The node's map of live sandboxes.
//!
//! A sandbox is in the map from the request to start it until its resources are released. One small task per sandbox
//! removes it from the map, and sends an event to the watchers if it ended without a request. The lock covers map
//! operations only.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_artifact::{ArtifactSet, ArtifactStore};
use hearth_cluster_api::{RunningSandbox, Sandboxes};
use hearth_proxy::Engine;
use hearth_sandbox::{EndReason, Error as SandboxError, Handle, NodeResources, State};
use hearth_stdx::TaskSet;
use hearth_types::{ExecutionId, Resources, SandboxId, SandboxSpec};
use tokio::sync::broadcast;

/// Number of ended executions that are remembered, so that a delete takes effect even if it overtakes its create.
///
/// Creates and deletes of one execution are milliseconds apart.
const ENDED_REMEMBERED_MAX: usize = 1024;
/// Maximum number of events queued for a slow watcher. A watcher that misses some gets an error and lists sandboxes
/// again.
const EVENTS_QUEUED_MAX: usize = 1024;

const MIB: u64 = 1 << 20;

/// Failure to create a sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// The node has its maximum number of sandboxes.
    #[error("the node runs {0} sandboxes already, which is its limit")]
    Full(usize),
    /// The memory of the node is reserved for other sandboxes.
    #[error("a sandbox needs {needed_mib} MiB of memory, and {free_mib} MiB of the node are not reserved for others")]
    Memory { needed_mib: u64, free_mib: u64 },
    /// Another execution of the same sandbox runs.
    #[error("sandbox {sandbox_id} runs already, as execution {running}")]
    AlreadyRunning { sandbox_id: SandboxId, running: ExecutionId },
    /// The execution was deleted before its create arrived.
    #[error("execution {0} has ended already")]
    AlreadyEnded(ExecutionId),
    #[error("the node is stopping")]
    Stopping,
    /// The build's artifacts cannot be used.
    #[error("looking up the build's artifacts")]
    Artifacts(#[source] hearth_artifact::Error),
    /// The disk has no space for the sandbox's share.
    #[error("checking for disk space")]
    Disk(#[source] SandboxError),
}

/// Capacity of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Maximum number of sandboxes at a time.
    pub(crate) sandboxes_max: usize,
    /// Memory that is shared out to sandboxes.
    pub(crate) memory_mib: u64,
    /// Virtual hardware of most sandboxes, with which the reported capacity is computed.
    pub(crate) typical: Resources,
}

/// Ratio of a guest's memory to the host memory reserved for it.
///
/// An idle guest takes a tenth of its memory, because sandboxes of a template share the pages that they do not change.
const MEMORY_OVERCOMMIT: u64 = 2;

impl Capacity {
    /// Checks that a sandbox fits besides `running` others, for which `reserved_mib` of memory are reserved.
    fn admit(self, running: usize, reserved: u64, resources: Resources) -> Result<(), CreateError> {
        if running >= self.sandboxes_max {
            return Err(CreateError::Full(self.sandboxes_max));
        }
        let (needed_mib, free_mib) = (reserved_mib(resources), self.memory_mib.saturating_sub(reserved));
        if needed_mib > free_mib {
            return Err(CreateError::Memory { needed_mib, free_mib });
        }
        Ok(())
    }

    /// Returns the number of sandboxes that can run if all new ones are typical, and `on_disk` more fit on the disk.
    fn sandboxes_max(self, running: usize, reserved: u64, on_disk: usize) -> usize {
        let in_memory = self.memory_mib.saturating_sub(reserved) / reserved_mib(self.typical).max(1);
        let fitting = on_disk.min(usize::try_from(in_memory).unwrap_or(usize::MAX));
        self.sandboxes_max.min(running.saturating_add(fitting))
    }
}

/// Returns the host memory that is reserved for a sandbox.
fn reserved_mib(resources: Resources) -> u64 {
    u64::from(resources.memory_mib).div_ceil(MEMORY_OVERCOMMIT)
}

/// Event of a sandbox that ended without a request.
#[derive(Debug, Clone)]
pub(crate) struct EndEvent {
    pub(crate) sandbox_id: SandboxId,
    pub(crate) execution_id: ExecutionId,
    pub(crate) reason: String,
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Registry of live sandboxes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<hearth_sandbox::Config>,
    node: NodeResources,
    artifacts: ArtifactStore,
    capacity: Capacity,
    state: Mutex<RegistryState>,
    engine: Engine<ExecutionId>,
    events: broadcast::Sender<EndEvent>,
    tasks: TaskSet,
}

#[derive(Debug, Default)]
struct RegistryState {
    handles: HashMap<SandboxId, Handle>,
    ended: VecDeque<ExecutionId>,
    creates_succeeded: u64,
    creates_failed: u64,
    stopping: bool,
}

impl RegistryState {
    /// Returns the memory that is reserved for the sandboxes in the map.
    fn reserved_mib(&self) -> u64 {
        self.handles.values().map(|handle| reserved_mib(handle.resources())).sum()
    }

    fn record_ended(&mut self, execution_id: ExecutionId) {
        if self.ended.len() == ENDED_REMEMBERED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(execution_id);
    }
}

impl Registry {
    /// Creates an empty registry. When a sandbox ends, its streams are closed in `engine`.
    pub(crate) fn new(
        config: hearth_sandbox::Config,
        node: NodeResources,
        artifacts: ArtifactStore,
        capacity: Capacity,
        engine: Engine<ExecutionId>,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENTS_QUEUED_MAX);
        let inner = Inner {
            config: Arc::new(config),
            node,
            artifacts,
            capacity,
            state: Mutex::default(),
            engine,
            events,
            tasks: TaskSet::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn state(&self) -> MutexGuard<'_, RegistryState> {
        // Every critical section is one step on a valid map, so a panic elsewhere leaves it valid.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a sandbox, or returns the one that the same execution id started. Wait with [`Handle::started`].
    pub(crate) async fn ensure(&self, spec: SandboxSpec) -> Result<Handle, CreateError> {
        let (artifacts, disk, build_id) = (self.inner.artifacts.clone(), self.inner.node.disk.clone(), spec.build_id);
        let checked = tokio::task::spawn_blocking(move || {
            let set = artifacts.get(build_id).map_err(CreateError::Artifacts)?;
            // The space is allocated during assembly. This check rejects most sandboxes without space before anything
            // is created.
            let space = disk.check(u64::from(set.manifest().resources.disk_mib) * MIB).map_err(CreateError::Disk);
            Ok((set, space))
        });
        // The closure does not panic; it does not run if the runtime is shutting down.
        let (set, space) = checked.await.map_err(|_| CreateError::Stopping)??;
        let mut state = self.state();
        if state.stopping {
            return Err(CreateError::Stopping);
        }
        if state.ended.contains(&spec.execution_id) {
            return Err(CreateError::AlreadyEnded(spec.execution_id));
        }
        if let Some(handle) = state.handles.get(&spec.sandbox_id) {
            let running = handle.execution_id();
            if running == spec.execution_id {
                return Ok(handle.clone());
            }
            return Err(CreateError::AlreadyRunning { sandbox_id: spec.sandbox_id, running });
        }
        self.inner.capacity.admit(state.handles.len(), state.reserved_mib(), set.manifest().resources)?;
        space?;
        let handle = self.start(spec, set);
        state.handles.insert(handle.sandbox_id().clone(), handle.clone());
        Ok(handle)
    }

    fn start(&self, spec: SandboxSpec, set: ArtifactSet) -> Handle {
        let inner = &self.inner;
        let handle = hearth_sandbox::start(Arc::clone(&inner.config), inner.node.clone(), spec, set, &inner.tasks);
        inner.tasks.spawn("sandbox end", self.clone().follow(handle.clone()));
        handle
    }

    /// Follows a sandbox until its end and removes it from the map.
    ///
    /// Counts the result of the start, closes the sandbox's streams when it begins to stop, and waits until its
    /// resources are released.
    async fn follow(self, handle: Handle) {
        let closed = handle.closed();
        // Both futures may be dropped at any time. A sandbox that ends before it was seen running must not keep its
        // streams until its end.
        tokio::select! {
            Ok(_) = handle.started() => {
                self.state().creates_succeeded += 1;
                closed.cancelled().await;
            }
            () = closed.cancelled() => {}
        }
        self.inner.engine.close(&handle.execution_id());
        let mut watched = handle.state();
        // An error means that the owner has ended, so its resources are released.
        let last = watched.wait_for(State::is_final).await.map(|state| state.clone());
        let mut state = self.state();
        state.record_ended(handle.execution_id());
        // A sandbox that was killed while it started does not count as failed.
        state.creates_failed +=
            u64::from(matches!(&last, Ok(State::Failed(error)) if !matches!(**error, SandboxError::Killed)));
        if state.handles.get(handle.sandbox_id()).is_some_and(|known| known.execution_id() == handle.execution_id()) {
            state.handles.remove(handle.sandbox_id());
        }
        drop(state);
        if let Ok(State::Stopped(reason @ (EndReason::VmExited | EndReason::DiskFull | EndReason::NodeStopped))) = last
        {
            let ended = EndEvent {
                sandbox_id: handle.sandbox_id().clone(),
                execution_id: handle.execution_id(),
                reason: reason.to_string(),
            };
            // Sending fails if there is no watcher.
            let _ = self.inner.events.send(ended);
        }
    }

    /// Kills an execution; returns true if it existed, after its resources are released.
    ///
    /// # Errors
    /// The execution that runs instead.
    pub(crate) async fn kill(&self, sandbox_id: &SandboxId, execution_id: ExecutionId) -> Result<bool, ExecutionId> {
        let handle = {
            let mut state = self.state();
            match state.handles.get(sandbox_id).cloned() {
                Some(handle) if handle.execution_id() == execution_id => handle,
                Some(handle) => return Err(handle.execution_id()),
                None => {
                    state.record_ended(execution_id);
                    return Ok(false);
                }
            }
        };
        handle.kill().await;
        Ok(true)
    }

    /// Returns a sandbox in the map, in any state.
    pub(crate) fn get(&self, sandbox_id: &SandboxId) -> Option<Handle> {
        self.state().handles.get(sandbox_id).cloned()
    }

    /// Returns all sandboxes in the map.
    pub(crate) fn list(&self) -> Vec<RunningSandbox> {
        let state = self.state();
        let handles = state.handles.values();
        let running = handles.map(|handle| RunningSandbox {
            sandbox_id: handle.sandbox_id().clone(),
            execution_id: handle.execution_id(),
            team_id: handle.team_id(),
        });
        running.collect()
    }

    /// Returns the number of sandboxes, their maximum, and the resources allocated to them.
    pub(crate) fn sandboxes(&self) -> Sandboxes {
        let capacity = self.inner.capacity;
        let on_disk = self.inner.node.disk.fitting_sandboxes(u64::from(capacity.typical.disk_mib) * MIB);
        let state = self.state();
        let mut sandboxes = Sandboxes {
            running: count(state.handles.len()),
            max: count(capacity.sandboxes_max(state.handles.len(), state.reserved_mib(), on_disk)),
            creates_succeeded: state.creates_succeeded,
            creates_failed: state.creates_failed,
            ..Sandboxes::default()
        };
        for handle in state.handles.values() {
            let Resources { vcpus, memory_mib, disk_mib: _ } = handle.resources();
            sandboxes.vcpus_allocated = sandboxes.vcpus_allocated.saturating_add(vcpus);
            sandboxes.memory_allocated_bytes += u64::from(memory_mib) * 1024 * 1024;
            sandboxes.starting += u32::from(matches!(*handle.state().borrow(), State::Assembling));
        }
        sandboxes
    }

    /// Returns a receiver of events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<EndEvent> {
        self.inner.events.subscribe()
    }

    /// Rejects new sandboxes, stops all others, and waits until their resources are released or the limit is reached.
    pub(crate) async fn shutdown(&self, limit: std::time::Duration) {
        self.state().stopping = true;
        self.inner.tasks.shutdown(limit).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_of_different_sizes_share_the_memory() {
        let typical = Resources { vcpus: 2, memory_mib: 512, disk_mib: 8192 };
        let large = Resources { memory_mib: 2048, ..typical };
        let capacity = Capacity { sandboxes_max: 8, memory_mib: 2048, typical };
        for (running, reserved, resources, expected) in [
            (0, 0, typical, None),
            (7, 1792, typical, None),
            (8, 0, typical, Some("8 sandboxes already")),
            (7, 2048, typical, Some("256 MiB of memory, and 0 MiB")),
            (4, 1024, large, None),
            (5, 1280, large, Some("1024 MiB of memory, and 768 MiB")),
        ] {
            let error = capacity.admit(running, reserved, resources).err().map(|error| error.to_string());
            match (error, expected) {
                (None, None) => {}
                (Some(error), Some(part)) => assert!(error.contains(part), "{error}"),
                other => panic!("{running} {reserved} {resources:?}: {other:?}"),
            }
        }
        // One large sandbox takes the memory of four typical ones, and the disk has room for two more.
        assert_eq!(capacity.sandboxes_max(0, 0, 100), 8);
        assert_eq!(capacity.sandboxes_max(1, 1024, 100), 5);
        assert_eq!(capacity.sandboxes_max(1, 1024, 2), 3);
        assert_eq!(capacity.sandboxes_max(2, 4096, 100), 2);
    }
}
