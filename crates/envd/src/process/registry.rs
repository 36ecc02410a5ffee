//! The processes that live, and for a while those that ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use connectrpc::ConnectError;
use hearth_envd_api::process::__buffa::oneof::process_selector::Selector;
use hearth_envd_api::process::ProcessSelector;

use super::followers::{Feed, Followers};
use super::live::Live;

/// How long an end is remembered for late followers.
pub(crate) const RETENTION: Duration = Duration::from_secs(30);
/// Ends remembered at most: a loop that starts thousands of processes must not fill the guest's memory.
const ENDED_MAX: usize = 4096;
/// Ended processes whose last output is kept for a later follower, because an earlier one was dropped. Each may have a few
/// mebibytes.
const REPLAYS_MAX: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<u32, Arc<Live>>,
    ended: HashMap<u32, Ended>,
}

#[derive(Debug)]
struct Ended {
    tag: Option<String>,
    /// They tell the end to whoever comes.
    followers: Arc<Followers>,
    at: Instant,
}

impl Registry {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every section is one step on valid maps.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, live: Arc<Live>) {
        let mut inner = self.inner();
        // A new process with the number or the tag of an ended one takes its place.
        let (pid, tag) = (live.pid(), live.tag());
        inner.ended.retain(|ended_pid, ended| *ended_pid != pid && (tag.is_none() || ended.tag.as_deref() != tag));
        inner.live.insert(pid, live);
    }

    /// Moves a process to the ended ones in one step: whoever looks sees the one or the other. If its number belongs to a
    /// newer process by now, which can be when its output outlived it, that one stays and this one is forgotten.
    pub(super) fn retire(&self, live: &Arc<Live>) {
        let mut inner = self.inner();
        inner.ended.retain(|_, ended| ended.at.elapsed() < RETENTION);
        if !inner.live.get(&live.pid()).is_some_and(|listed| Arc::ptr_eq(listed, live)) {
            return;
        }
        if inner.ended.len() >= ENDED_MAX
            && let Some(oldest) = inner.ended.iter().min_by_key(|(_, ended)| ended.at).map(|(pid, _)| *pid)
        {
            inner.ended.remove(&oldest);
        }
        let followers = Arc::clone(live.followers());
        let ended = Ended { tag: live.tag().map(str::to_owned), followers, at: Instant::now() };
        inner.ended.insert(live.pid(), ended);
        inner.live.remove(&live.pid());
        inner.bound_replays();
    }

    /// Forgets ends that were remembered for long enough.
    pub(super) fn forget(&self) {
        let mut inner = self.inner();
        inner.ended.retain(|_, ended| ended.at.elapsed() < RETENTION);
        inner.ended.shrink_to_fit();
        inner.live.shrink_to_fit();
    }

    pub(super) fn all(&self) -> Vec<Arc<Live>> {
        self.inner().live.values().cloned().collect()
    }

    pub(super) fn find(&self, selector: &ProcessSelector) -> Result<Arc<Live>, ConnectError> {
        let inner = self.inner();
        match &selector.selector {
            Some(Selector::Pid(pid)) => {
                let found = inner.live.get(pid).cloned();
                found.ok_or_else(|| ConnectError::not_found(format!("process with pid {pid} not found")))
            }
            Some(Selector::Tag(tag)) => {
                let found = inner.live.values().find(|live| live.tag() == Some(tag)).cloned();
                found.ok_or_else(|| ConnectError::not_found(format!("process with tag {tag} not found")))
            }
            None => Err(ConnectError::unimplemented("the process selector is not set")),
        }
    }

    /// The number of a process that ended a short while ago, and a follower that hears the end.
    pub(super) fn ended(&self, selector: &ProcessSelector) -> Option<(u32, Feed)> {
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

impl Inner {
    fn bound_replays(&mut self) {
        let mut kept: Vec<&Ended> = self.ended.values().filter(|ended| ended.followers.has_replay()).collect();
        kept.sort_by_key(|ended| std::cmp::Reverse(ended.at));
        kept.into_iter().skip(REPLAYS_MAX).for_each(|ended| ended.followers.forget_replay());
    }
}
