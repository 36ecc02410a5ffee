//! A pool of prepared slots.
//!
//! One task prepares slots while fewer than the target are ready. A slot is used once: its guest's traces (NAT state,
//! rules, addresses in use) are removed with its namespace, and the pool prepares a new slot.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_host::{namespace, requirement};
use hearth_stdx::{Backoff, TaskSet};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::config::{Config, Error, Mode};
use crate::forwarding::Forwarding;
use crate::instance::{Instance, LOCK_FOLDER, SLOTS};
use crate::rules::{self, GuestLimits, Timeouts};
use crate::slot::{Slot, remove};

/// Limit for the preparing task to stop: it finishes at most one slot.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failure to prepare a slot.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pauses between attempts to remove slots whose removal failed.
///
/// The obstacle, such as too many open descriptors, may pass immediately or only when a sandbox ends.
const REMOVAL_PAUSE_MIN: Duration = Duration::from_millis(100);
const REMOVAL_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Limit for removing such slots at shutdown. The next start finds the remaining ones.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Divisor of the host's connection tracking table: all guests together get half, the host itself the rest.
const TRACKED_DIVISOR: u32 = 2;
/// Bounds of the tracked connections of one guest.
///
/// With fewer than the minimum, ordinary programs (a browser, a package manager) would fail; above the maximum, the
/// kernel's search through them costs the host time for each new one.
const CONNECTIONS_MIN: u32 = 1024;
const CONNECTIONS_MAX: u32 = 8192;
/// Size of the host's connection tracking table, for all namespaces together.
const CONNTRACK_MAX: &str = "net/netfilter/nf_conntrack_max";

/// A pool of network slots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    instance: Instance,
    limits: GuestLimits,
    forwarding: Forwarding,
    target: usize,
    state: Mutex<State>,
    slot_taken: Notify,
    unremoved: Notify,
    tasks: TaskSet,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Slot>,
    taken: BTreeSet<u32>,
    /// Slots whose removal failed; they are also in `taken`.
    unremoved: BTreeSet<u32>,
    /// Uplinks in the rules' set of interfaces that forward only for Hearth.
    opened: BTreeSet<String>,
    /// Index at which the search for a free one begins.
    ///
    /// Indices are used in turn, so that a connection that outlived its guest does not reach the next guest
    /// immediately.
    next: u32,
    closed: bool,
}

impl State {
    fn take_index(&mut self) -> Result<u32, Error> {
        let free = (0..SLOTS).map(|step| (self.next + step) % SLOTS).find(|index| !self.taken.contains(index));
        let index = free.ok_or(Error::SlotsExhausted(SLOTS))?;
        self.taken.insert(index);
        self.next = (index + 1) % SLOTS;
        Ok(index)
    }
}

impl Pool {
    /// Opens the pool and starts to prepare slots.
    ///
    /// Claims an instance number, removes leftovers of an earlier daemon with that number, and sets the host's rules.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let octets = config.block.octets();
        if !config.block.is_private() || octets[2..] != [0, 0] {
            return Err(Error::Block(config.block));
        }
        let finding = requirement::network_namespaces();
        match config.mode {
            Mode::User => return Self::without_namespaces(&config, "network.mode is `user`"),
            Mode::Auto if !finding.found => return Self::without_namespaces(&config, &finding.detail),
            Mode::Namespaces if !finding.found => return Err(Error::NotPermitted { missing: finding.detail }),
            Mode::Auto | Mode::Namespaces => {}
        }
        let inner = Arc::new(blocking(move || Inner::open(&config)).await?);
        inner.tasks.spawn("network slots", Arc::clone(&inner).prepare_slots());
        inner.tasks.spawn("network slot removal", Arc::clone(&inner).retry_removals());
        Ok(Self { inner: Some(inner) })
    }

    fn without_namespaces(config: &Config, reason: &str) -> Result<Self, Error> {
        if config.egress_denied.is_empty() {
            Ok(Self { inner: None })
        } else {
            Err(Error::DenialNotPossible { missing: reason.to_owned() })
        }
    }

    /// Returns true if guests get namespaces, false if they get the VMM's user-mode network.
    #[must_use]
    pub fn has_namespaces(&self) -> bool {
        self.inner.is_some()
    }

    /// Returns the number of slots that are ready to be acquired.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.inner.as_ref().map_or(usize::MAX, |inner| inner.state().ready.len())
    }

    /// Acquires a ready slot, or a new one if none is ready.
    ///
    /// Without `internet_access` its guest can only answer the host. Dropping the future may leave a prepared slot that
    /// nobody owns; the next start removes it.
    pub async fn acquire(&self, internet_access: bool) -> Result<Slot, Error> {
        let Some(inner) = &self.inner else { return Ok(Slot::user()) };
        let ready = {
            let mut state = inner.state();
            if state.closed {
                return Err(Error::Closed);
            }
            state.ready.pop_front()
        };
        inner.slot_taken.notify_one();
        let slot = match ready {
            Some(slot) => slot,
            None => inner.prepare().await?,
        };
        if internet_access {
            return Ok(slot);
        }
        let inner = Arc::clone(inner);
        blocking(move || match slot.deny_internet() {
            Ok(()) => Ok(slot),
            Err(error) => {
                inner.discard(&slot);
                Err(error)
            }
        })
        .await
    }

    /// Releases a slot; returns when it is removed. The VMM in it must have exited.
    ///
    /// If the removal fails, it is retried in the background until it succeeds.
    pub async fn release(&self, slot: Slot) {
        let Some(inner) = &self.inner else { return };
        let inner = Arc::clone(inner);
        let _ = blocking(move || {
            inner.discard(&slot);
            Ok(())
        })
        .await;
    }

    /// Schedules the removal of a slot, without waiting for it, for a caller that is dropped.
    ///
    /// The removal is retried until the VMM in it has exited, at the latest by [`shutdown`](Self::shutdown).
    pub fn abandon(&self, slot: &Slot) {
        if let (Some(inner), Some(index)) = (&self.inner, slot.index()) {
            inner.state().unremoved.insert(index);
            inner.unremoved.notify_one();
        }
    }

    /// Returns the number of slots whose removal failed and is being retried.
    #[must_use]
    pub fn unremoved(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.state().unremoved.len())
    }

    /// Removes all slots that are not in use, and the host's rules.
    ///
    /// Slots released later are still removed. Slots that cannot be removed within some seconds remain for the next
    /// start.
    pub async fn shutdown(&self) {
        let Some(inner) = &self.inner else { return };
        inner.state().closed = true;
        inner.tasks.shutdown(STOP_TIMEOUT).await;
        let inner = Arc::clone(inner);
        let _ = blocking(move || {
            inner.close();
            Ok(())
        })
        .await;
    }
}

impl Inner {
    fn open(config: &Config) -> Result<Self, Error> {
        let folder = Path::new(LOCK_FOLDER);
        let instance = Instance::claim(folder, config)?;
        sweep(&instance);
        let forwarding = Forwarding::new(folder)?;
        let opened = forwarding.ensure()?;
        let guests_max = u32::try_from(config.guests_max).unwrap_or(u32::MAX);
        let mut limits = GuestLimits { connections_max: CONNECTIONS_MIN, denied: config.egress_denied.clone() };
        // The kernel loads connection tracking with the first rule that needs it. Only then can its size be read.
        apply(&instance, &limits, &opened)?;
        let tracked_max = namespace::read_sysctl(CONNTRACK_MAX).ok().and_then(|text| text.parse().ok());
        limits.connections_max = connections_max(tracked_max.unwrap_or(0), guests_max);
        apply(&instance, &limits, &opened)?;
        let state = Mutex::new(State { opened, ..State::default() });
        let (slot_taken, unremoved) = (Notify::new(), Notify::new());
        let target = config.prepared_target;
        Ok(Self { instance, limits, forwarding, target, state, slot_taken, unremoved, tasks: TaskSet::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section is one step on valid state, so a panic elsewhere leaves it valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn prepare_slots(self: Arc<Self>) {
        let stop = self.tasks.token();
        while !stop.is_cancelled() {
            if self.state().ready.len() >= self.target {
                tokio::select! {
                    () = self.slot_taken.notified() => {}
                    () = stop.cancelled() => {}
                }
                continue;
            }
            match self.prepare().await {
                Ok(slot) => self.state().ready.push_back(slot),
                Err(error) => {
                    tracing::warn!(error = %hearth_stdx::chain(&error), "could not prepare a network slot");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_PAUSE) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    async fn prepare(self: &Arc<Self>) -> Result<Slot, Error> {
        let inner = Arc::clone(self);
        blocking(move || {
            inner.follow_uplinks();
            let index = inner.state().take_index()?;
            Slot::prepare(&inner.instance, &inner.limits, index)
                .inspect_err(|_| inner.finish_removal(index, remove(&inner.instance, index)))
        })
        .await
    }

    /// Enables forwarding on uplinks that are new since the last call, for example after a laptop changes its network.
    fn follow_uplinks(&self) {
        let result = self.forwarding.ensure().and_then(|uplinks| {
            let new: Vec<String> = uplinks.difference(&self.state().opened).cloned().collect();
            for link in new {
                namespace::nft(&rules::open_uplink(&self.instance, &link))
                    .map_err(|source| Error::Setup { action: "adding an uplink to the host's packet rules", source })?;
                self.state().opened.insert(link);
            }
            Ok(())
        });
        if let Err(error) = result {
            tracing::warn!(error = %hearth_stdx::chain(&error), "could not look for new uplinks of the host");
        }
    }

    fn discard(&self, slot: &Slot) {
        if let Some(index) = slot.index() {
            self.finish_removal(index, remove(&self.instance, index));
        }
    }

    /// Frees the index of a removed slot, or schedules another attempt to remove it.
    fn finish_removal(&self, index: u32, removed: Result<(), Error>) {
        match removed {
            Ok(()) => {
                let mut state = self.state();
                state.unremoved.remove(&index);
                state.taken.remove(&index);
            }
            Err(error) => {
                // Only the first failure is logged as a warning.
                let is_new = self.state().unremoved.insert(index);
                let error = hearth_stdx::chain(&error);
                if is_new {
                    tracing::warn!(index, %error, "could not remove a network slot, retrying");
                } else {
                    tracing::debug!(index, %error, "could not remove a network slot again");
                }
                self.unremoved.notify_one();
            }
        }
    }

    /// Tries once to remove every slot whose removal failed; returns true if none remains. Blocks.
    fn retry_removals_once(&self) -> bool {
        let all: Vec<u32> = self.state().unremoved.iter().copied().collect();
        for index in all {
            self.finish_removal(index, remove(&self.instance, index));
        }
        self.state().unremoved.is_empty()
    }

    async fn retry_removals(self: Arc<Self>) {
        let stop = self.tasks.token();
        let mut backoff = Backoff::new(REMOVAL_PAUSE_MIN, REMOVAL_PAUSE_MAX);
        loop {
            let pause = backoff.advance();
            let wait = async {
                if self.state().unremoved.is_empty() {
                    self.unremoved.notified().await;
                }
                tokio::time::sleep(pause).await;
            };
            tokio::select! {
                () = wait => {}
                () = stop.cancelled() => return,
            }
            let inner = Arc::clone(&self);
            if blocking(move || Ok(inner.retry_removals_once())).await.unwrap_or(false) {
                backoff.reset();
            }
        }
    }

    /// Removes ready slots, slots whose removal failed, and the host's rules. Blocks.
    fn close(&self) {
        let ready = mem::take(&mut self.state().ready);
        for slot in &ready {
            self.discard(slot);
        }
        let until = Instant::now() + REMOVAL_TIMEOUT;
        while !self.retry_removals_once() && Instant::now() < until {
            std::thread::sleep(REMOVAL_PAUSE_MIN);
        }
        let unremoved = self.state().unremoved.len();
        if unremoved > 0 {
            tracing::warn!(unremoved, "network slots remain, the next start removes them");
        }
        match self.instance.has_other_instance(Path::new(LOCK_FOLDER)) {
            Ok(false) => self.forwarding.restore(),
            Ok(true) => {}
            Err(error) => {
                tracing::warn!(%error, "could not look for other instances, forwarding of uplinks stays enabled");
            }
        }
        if let Err(error) = namespace::nft(&format!("delete table inet {}\n", self.instance.table())) {
            tracing::warn!(%error, "could not remove the host's packet rules");
        }
    }
}

/// Sets the host's rules, without connection timeouts if this kernel does not support them.
fn apply(instance: &Instance, limits: &GuestLimits, opened: &BTreeSet<String>) -> Result<(), Error> {
    let rules = |timeouts| namespace::nft(&rules::host(instance, limits, opened, timeouts));
    let result = rules(Timeouts::Slots).or_else(|error| {
        rules(Timeouts::Host)?;
        tracing::warn!(%error, "no connection timeouts for guests in this kernel, the host's apply");
        Ok(())
    });
    result.map_err(|source| Error::Setup { action: "setting the host's packet rules", source })
}

/// Returns a guest's share of the host's connection tracking table.
fn connections_max(tracked_max: u32, guests_max: u32) -> u32 {
    (tracked_max / TRACKED_DIVISOR / guests_max.max(1)).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// Removes all leftovers of this instance. Its number is locked, so no other daemon uses them.
fn sweep(instance: &Instance) {
    let prefix = instance.namespace_prefix();
    let leftovers = namespace::list(&prefix);
    if !leftovers.is_empty() {
        tracing::info!(count = leftovers.len(), "removing network slots of an earlier daemon");
    }
    for index in leftovers.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()) {
        if let Err(error) = remove(instance, index) {
            tracing::warn!(index, error = %hearth_stdx::chain(&error), "could not remove an earlier daemon's slot");
        }
    }
    for link in namespace::links(&instance.link_prefix()) {
        if let Err(error) = namespace::remove_link(&link) {
            tracing::warn!(link, %error, "could not remove an earlier daemon's link");
        }
    }
}

/// Runs blocking work to completion, even if the caller's future is dropped.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_together_get_half_of_the_tracked_connections() {
        for (tracked_max, guests_max, expected) in [
            (262_144, 94, 1394),
            (262_144, 1, CONNECTIONS_MAX),
            (65_536, 94, CONNECTIONS_MIN),
            (0, 0, CONNECTIONS_MIN),
            (1 << 20, 94, 5577),
        ] {
            assert_eq!(connections_max(tracked_max, guests_max), expected, "{tracked_max} {guests_max}");
        }
    }
}
