//! The node's own map of live sandboxes.
//!
//! A sandbox is in the map from the moment it is asked for until nothing of it is left. One small task per sandbox takes it
//! out again and tells the watchers when it ended without having been asked to. The lock covers map operations only.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_artifact::{ArtifactSet, Cache};
use hearth_cluster_api::{RunningSandbox, Sandboxes};
use hearth_proxy::Engine;
use hearth_sandbox::{EndReason, Error as SandboxError, Handle, Parts, State};
use hearth_stdx::TaskSet;
use hearth_types::{ExecutionId, Resources, SandboxId, SandboxSpec};
use tokio::sync::broadcast;

/// Ended executions that are remembered: a delete that overtakes its create must still win. Creates and deletes of one
/// execution are milliseconds apart.
const ENDED_REMEMBERED: usize = 1024;
/// Events that wait for a slow watcher; one that misses some is told so and compares lists.
const EVENTS_QUEUED_MAX: usize = 1024;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// Why a sandbox was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// As many as are allowed run.
    #[error("the node runs {0} sandboxes already, which is its limit")]
    Full(usize),
    /// Another execution of the same sandbox runs.
    #[error("sandbox {sandbox_id} runs already, as execution {running}")]
    Runs { sandbox_id: SandboxId, running: ExecutionId },
    /// The execution was ended before it began.
    #[error("execution {0} has ended already")]
    Ended(ExecutionId),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// The build cannot be used.
    #[error("looking up the build's artifacts")]
    Artifacts(#[source] hearth_artifact::Error),
    /// The disk has no room.
    #[error("looking for disk space")]
    Disk(#[source] SandboxError),
}

/// How much a node takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Sandboxes at once.
    pub(crate) sandboxes_max: usize,
    /// What the disk's capacity is told for.
    pub(crate) typical_disk_mib: u32,
}

/// A sandbox that ended by itself.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) sandbox_id: SandboxId,
    pub(crate) execution_id: ExecutionId,
    pub(crate) reason: String,
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The map. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<hearth_sandbox::Config>,
    parts: Parts,
    cache: Cache,
    sandboxes_max: usize,
    typical_disk_mib: u32,
    live: Mutex<Live>,
    engine: Engine<ExecutionId>,
    events: broadcast::Sender<Ended>,
    tasks: TaskSet,
}

#[derive(Debug, Default)]
struct Live {
    handles: HashMap<SandboxId, Handle>,
    ended: VecDeque<ExecutionId>,
    creates_succeeded: u64,
    creates_failed: u64,
    stopping: bool,
}

impl Live {
    fn remember_ended(&mut self, execution_id: ExecutionId) {
        if self.ended.len() == ENDED_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(execution_id);
    }
}

impl Registry {
    /// An empty map. The streams of a sandbox that ends are cut in `engine`.
    pub(crate) fn new(
        config: hearth_sandbox::Config,
        parts: Parts,
        cache: Cache,
        capacity: Capacity,
        engine: Engine<ExecutionId>,
    ) -> Self {
        let Capacity { sandboxes_max, typical_disk_mib } = capacity;
        let (events, _) = broadcast::channel(EVENTS_QUEUED_MAX);
        let inner = Inner {
            config: Arc::new(config),
            parts,
            cache,
            sandboxes_max,
            typical_disk_mib,
            live: Mutex::default(),
            engine,
            events,
            tasks: TaskSet::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Every section is one step on a valid map, so a panic elsewhere leaves it valid.
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a sandbox, or finds the one that the same execution id started. Follow [`Handle::started`].
    pub(crate) async fn ensure(&self, spec: SandboxSpec) -> Result<Handle, Refusal> {
        let (cache, disk, build_id) = (self.inner.cache.clone(), self.inner.parts.disk.clone(), spec.build_id);
        let looked = tokio::task::spawn_blocking(move || {
            let set = cache.get(build_id).map_err(Refusal::Artifacts)?;
            // The room is taken when the sandbox is assembled; most of what has none is known before anything is made.
            let room = disk.check(u64::from(set.manifest().resources.disk_mib) * MIB).map_err(Refusal::Disk);
            Ok((set, room))
        });
        // The closure does not panic; it is not run when the runtime stops.
        let (set, room) = looked.await.map_err(|_| Refusal::Stopping)??;
        let mut live = self.live();
        if live.stopping {
            return Err(Refusal::Stopping);
        }
        if live.ended.contains(&spec.execution_id) {
            return Err(Refusal::Ended(spec.execution_id));
        }
        if let Some(handle) = live.handles.get(&spec.sandbox_id) {
            let running = handle.execution_id();
            if running == spec.execution_id {
                return Ok(handle.clone());
            }
            return Err(Refusal::Runs { sandbox_id: spec.sandbox_id, running });
        }
        if live.handles.len() >= self.inner.sandboxes_max {
            return Err(Refusal::Full(self.inner.sandboxes_max));
        }
        room?;
        let handle = self.start(spec, set);
        live.handles.insert(handle.sandbox_id().clone(), handle.clone());
        Ok(handle)
    }

    fn start(&self, spec: SandboxSpec, set: ArtifactSet) -> Handle {
        let inner = &self.inner;
        let handle = hearth_sandbox::start(Arc::clone(&inner.config), inner.parts.clone(), spec, set, &inner.tasks);
        inner.tasks.spawn("sandbox end", self.clone().follow(handle.clone()));
        handle
    }

    /// Counts how the start went, cuts the sandbox's streams when it begins to end, waits until nothing is left of it, and
    /// forgets it.
    async fn follow(self, handle: Handle) {
        let closed = handle.closed();
        // Both may be dropped at any time. One that ends before anybody saw it run must not keep its streams until it has ended.
        tokio::select! {
            Ok(_) = handle.started() => {
                self.live().creates_succeeded += 1;
                closed.cancelled().await;
            }
            () = closed.cancelled() => {}
        }
        self.inner.engine.close(&handle.execution_id());
        let mut state = handle.state();
        // An error means that the owner is gone, so nothing of the sandbox is left either.
        let last = state.wait_for(State::is_final).await.map(|state| state.clone());
        let mut live = self.live();
        live.remember_ended(handle.execution_id());
        // Whoever ends one that starts has not seen it fail.
        live.creates_failed +=
            u64::from(matches!(&last, Ok(State::Failed(error)) if !matches!(**error, SandboxError::Killed)));
        if live.handles.get(handle.sandbox_id()).is_some_and(|known| known.execution_id() == handle.execution_id()) {
            live.handles.remove(handle.sandbox_id());
        }
        drop(live);
        if let Ok(State::Stopped(reason @ (EndReason::VmEnded | EndReason::DiskFull | EndReason::NodeStopped))) = last {
            let ended = Ended {
                sandbox_id: handle.sandbox_id().clone(),
                execution_id: handle.execution_id(),
                reason: reason.to_string(),
            };
            // Nobody may be watching.
            let _ = self.inner.events.send(ended);
        }
    }

    /// Ends an execution; returns when nothing of it is left, and whether it was there. `Err` has the execution that runs
    /// instead.
    pub(crate) async fn end(&self, sandbox_id: &SandboxId, execution_id: ExecutionId) -> Result<bool, ExecutionId> {
        let handle = {
            let mut live = self.live();
            match live.handles.get(sandbox_id).cloned() {
                Some(handle) if handle.execution_id() == execution_id => handle,
                Some(handle) => return Err(handle.execution_id()),
                None => {
                    live.remember_ended(execution_id);
                    return Ok(false);
                }
            }
        };
        handle.kill().await;
        Ok(true)
    }

    /// A sandbox that is known, whatever it is doing.
    pub(crate) fn find(&self, sandbox_id: &SandboxId) -> Option<Handle> {
        self.live().handles.get(sandbox_id).cloned()
    }

    /// Everything that is not yet gone.
    pub(crate) fn list(&self) -> Vec<RunningSandbox> {
        let live = self.live();
        let handles = live.handles.values();
        let running = handles.map(|handle| RunningSandbox {
            sandbox_id: handle.sandbox_id().clone(),
            execution_id: handle.execution_id(),
            team_id: handle.team_id(),
        });
        running.collect()
    }

    /// How many there are and may be, and what they were given.
    pub(crate) fn sandboxes(&self) -> Sandboxes {
        let more = self.inner.parts.disk.more(u64::from(self.inner.typical_disk_mib) * MIB);
        let live = self.live();
        let mut sandboxes = Sandboxes {
            running: count(live.handles.len()),
            max: count(self.inner.sandboxes_max.min(live.handles.len().saturating_add(more))),
            creates_succeeded: live.creates_succeeded,
            creates_failed: live.creates_failed,
            ..Sandboxes::default()
        };
        for handle in live.handles.values() {
            let Resources { vcpus, memory_mib, disk_mib: _ } = handle.resources();
            sandboxes.vcpus_allocated = sandboxes.vcpus_allocated.saturating_add(vcpus);
            sandboxes.memory_allocated_bytes += u64::from(memory_mib) * 1024 * 1024;
            sandboxes.starting += u32::from(matches!(*handle.state().borrow(), State::Assembling));
        }
        sandboxes
    }

    /// News of sandboxes that end by themselves, from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Ended> {
        self.inner.events.subscribe()
    }

    /// Refuses new sandboxes, ends all there are, and waits until nothing of them is left or the patience is over.
    pub(crate) async fn shutdown(&self, patience: std::time::Duration) {
        self.live().stopping = true;
        self.inner.tasks.shutdown(patience).await;
    }
}
