//! Registry of running processes, and for a while of ended ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use connectrpc::ConnectError;
use hearth_envd_api::process::__buffa::oneof::process_selector::Selector;
use hearth_envd_api::process::ProcessSelector;
use hearth_envd_api::process::process_event::EndEvent;

use super::followers::{Feed, Followers};
use super::running::RunningProcess;

/// Time for which an exit is retained for late followers.
pub(crate) const RETENTION: Duration = Duration::from_secs(30);
/// Limit of retained exits: a loop that starts thousands of processes must not fill the guest's memory.
const ENDED_MAX: usize = 4096;
/// Ended processes whose last output is retained for a later follower, because an earlier one was dropped.
///
/// Each may occupy a few mebibytes.
const REPLAYS_MAX: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<u32, Arc<RunningProcess>>,
    /// Exited processes whose output is still open in a descendant. A signal ends the wait for it.
    outlived: HashMap<u32, Arc<RunningProcess>>,
    ended: HashMap<u32, Ended>,
}

#[derive(Debug)]
struct Ended {
    tag: Option<String>,
    /// They publish the end to every late follower.
    followers: Arc<Followers>,
    at: Instant,
}

impl Inner {
    /// Moves a process to the ended ones; `followers` publish the end to late followers.
    fn retire(&mut self, live: &Arc<RunningProcess>, followers: Arc<Followers>) {
        self.ended.retain(|_, ended| ended.at.elapsed() < RETENTION);
        if !self.live.get(&live.pid()).is_some_and(|listed| Arc::ptr_eq(listed, live)) {
            return;
        }
        if self.ended.len() >= ENDED_MAX
            && let Some(oldest) = self.ended.iter().min_by_key(|(_, ended)| ended.at).map(|(pid, _)| *pid)
        {
            self.ended.remove(&oldest);
        }
        let ended = Ended { tag: live.tag().map(str::to_owned), followers, at: Instant::now() };
        self.ended.insert(live.pid(), ended);
        self.live.remove(&live.pid());
        self.bound_replays();
    }

    fn bound_replays(&mut self) {
        let mut kept: Vec<&Ended> = self.ended.values().filter(|ended| ended.followers.has_replay()).collect();
        kept.sort_by_key(|ended| std::cmp::Reverse(ended.at));
        kept.into_iter().skip(REPLAYS_MAX).for_each(|ended| ended.followers.drop_replay());
    }
}

impl Registry {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every section is one step on valid maps.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, live: Arc<RunningProcess>) {
        let mut inner = self.inner();
        // A new process replaces an ended one with the same pid or tag.
        let (pid, tag) = (live.pid(), live.tag());
        inner.ended.retain(|ended_pid, ended| *ended_pid != pid && (tag.is_none() || ended.tag.as_deref() != tag));
        inner.live.insert(pid, live);
    }

    /// Moves a process to the ended ones in one step, so that a caller finds it in exactly one of the lists.
    ///
    /// If its pid already belongs to a newer process, because its output outlived it, the newer one remains and this
    /// one is dropped.
    pub(super) fn retire(&self, live: &Arc<RunningProcess>) {
        let mut inner = self.inner();
        inner.retire(live, Arc::clone(live.followers()));
        if inner.outlived.get(&live.pid()).is_some_and(|outlived| Arc::ptr_eq(outlived, live)) {
            inner.outlived.remove(&live.pid());
        }
    }

    /// Moves an exited process whose output continues; late followers receive the end immediately.
    pub(super) fn retire_outlived(&self, live: &Arc<RunningProcess>, end: EndEvent) {
        let late = Arc::new(Followers::default());
        late.finish(end);
        let mut inner = self.inner();
        inner.retire(live, late);
        inner.outlived.insert(live.pid(), Arc::clone(live));
    }

    /// Drops retained exits that have expired.
    pub(super) fn drop_expired(&self) {
        let mut inner = self.inner();
        inner.ended.retain(|_, ended| ended.at.elapsed() < RETENTION);
        inner.ended.shrink_to_fit();
        inner.live.shrink_to_fit();
        inner.outlived.shrink_to_fit();
    }

    /// Returns the running processes, without exited ones whose output is still open.
    pub(super) fn running(&self) -> Vec<Arc<RunningProcess>> {
        self.inner().live.values().filter(|live| !live.is_reaped()).cloned().collect()
    }

    pub(super) fn find(&self, selector: &ProcessSelector) -> Result<Arc<RunningProcess>, ConnectError> {
        find_in(&self.inner().live, selector)
    }

    /// Finds a process to signal, including an exited one whose output is still open.
    pub(super) fn find_to_signal(&self, selector: &ProcessSelector) -> Result<Arc<RunningProcess>, ConnectError> {
        let inner = self.inner();
        find_in(&inner.live, selector).or_else(|unknown| find_in(&inner.outlived, selector).map_err(|_| unknown))
    }

    /// Returns the pid of a recently ended process, and a feed that has its end.
    pub(super) fn find_ended(&self, selector: &ProcessSelector) -> Option<(u32, Feed)> {
        let inner = self.inner();
        let recent = inner.ended.iter().filter(|(_, ended)| ended.at.elapsed() < RETENTION);
        let mut matching = recent.filter(|(pid, ended)| match &selector.selector {
            Some(Selector::Pid(wanted)) => *pid == wanted,
            Some(Selector::Tag(wanted)) => ended.tag.as_ref() == Some(wanted),
            None => false,
        });
        matching.next().map(|(pid, ended)| (*pid, ended.followers.add()))
    }
}

fn find_in(
    processes: &HashMap<u32, Arc<RunningProcess>>,
    selector: &ProcessSelector,
) -> Result<Arc<RunningProcess>, ConnectError> {
    match &selector.selector {
        Some(Selector::Pid(pid)) => {
            let found = processes.get(pid).cloned();
            found.ok_or_else(|| ConnectError::not_found(format!("process with pid {pid} not found")))
        }
        Some(Selector::Tag(tag)) => {
            let found = processes.values().find(|live| live.tag() == Some(tag)).cloned();
            found.ok_or_else(|| ConnectError::not_found(format!("process with tag {tag} not found")))
        }
        None => Err(ConnectError::unimplemented("the process selector is not set")),
    }
}
