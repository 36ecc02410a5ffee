//! Slots kept ready.
//!
//! One task prepares slots whenever fewer than the target are ready. A slot is used once: what its guest left in it (NAT
//! state, rules, addresses in use) goes with its namespace, and a fresh one takes its place.

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
use crate::rules::{self, Bounds, Timeouts};
use crate::slot::{Slot, remove};

/// How long the preparing task may take to stop: one slot.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a failure to prepare a slot.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pauses between attempts to remove what could not be removed: what stands in the way, such as too many open descriptors,
/// may pass at once or only with a sandbox that ends.
const REMOVAL_PAUSE_MIN: Duration = Duration::from_millis(100);
const REMOVAL_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a stop tries to remove what could not be removed before. The next start finds the rest.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);
/// Share of the host's connection tracking that guests get together: the rest is the host's own.
const TRACKED_SHARE: u32 = 2;
/// Tracked connections of one guest. Below the first, ordinary programs (a browser, a package manager) would notice; above
/// the second, the search through them costs the host time for each new one.
const CONNECTIONS_MIN: u32 = 1024;
const CONNECTIONS_MAX: u32 = 8192;
/// Of the host's connection tracking, all namespaces together.
const TRACKED_MAX: &str = "net/netfilter/nf_conntrack_max";

/// A pool of network slots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    instance: Instance,
    bounds: Bounds,
    forwarding: Forwarding,
    target: usize,
    state: Mutex<State>,
    wanted: Notify,
    unremoved: Notify,
    tasks: TaskSet,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Slot>,
    taken: BTreeSet<u32>,
    /// Slots that could not be removed, also among `taken`.
    unremoved: BTreeSet<u32>,
    /// Uplinks of the host that the rules know as forwarding only for Hearth.
    opened: BTreeSet<String>,
    /// Where the search for a free index begins: indices are used in turn, so that a connection that outlived its guest
    /// does not meet the next one at once.
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
    /// Opens the pool: takes an instance number, removes what an earlier daemon left under it, sets the host's rules, and
    /// begins to prepare slots.
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
        inner.tasks.spawn("network slots", Arc::clone(&inner).keep_ready());
        inner.tasks.spawn("network slot removal", Arc::clone(&inner).keep_removing());
        Ok(Self { inner: Some(inner) })
    }

    fn without_namespaces(config: &Config, reason: &str) -> Result<Self, Error> {
        if config.egress_denied.is_empty() {
            Ok(Self { inner: None })
        } else {
            Err(Error::DenialNotPossible { missing: reason.to_owned() })
        }
    }

    /// Whether guests get namespaces, or the VMM's user-mode network.
    #[must_use]
    pub fn has_namespaces(&self) -> bool {
        self.inner.is_some()
    }

    /// How many slots are ready to be taken.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.inner.as_ref().map_or(usize::MAX, |inner| inner.state().ready.len())
    }

    /// Takes a slot: a ready one, or one made now. Without `internet_access` its guest can only answer the host.
    ///
    /// Cancel safe as far as leaks go: a slot that was made for nobody is removed at the next start.
    pub async fn acquire(&self, internet_access: bool) -> Result<Slot, Error> {
        let Some(inner) = &self.inner else { return Ok(Slot::user()) };
        let ready = {
            let mut state = inner.state();
            if state.closed {
                return Err(Error::Closed);
            }
            state.ready.pop_front()
        };
        inner.wanted.notify_one();
        let slot = match ready {
            Some(slot) => slot,
            None => inner.prepare().await?,
        };
        if internet_access {
            return Ok(slot);
        }
        let inner = Arc::clone(inner);
        blocking(move || match slot.forbid_internet() {
            Ok(()) => Ok(slot),
            Err(error) => {
                inner.discard(&slot);
                Err(error)
            }
        })
        .await
    }

    /// Gives a slot back; returns when nothing of it is left. The VMM in it must have ended. A slot that cannot be removed is
    /// tried again in the background until it is gone.
    pub async fn release(&self, slot: Slot) {
        let Some(inner) = &self.inner else { return };
        let inner = Arc::clone(inner);
        let _ = blocking(move || {
            inner.discard(&slot);
            Ok(())
        })
        .await;
    }

    /// How many slots could not be removed yet.
    #[must_use]
    pub fn unremoved(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.state().unremoved.len())
    }

    /// Removes all slots that are not taken, and the host's rules. Slots given back later are still removed. What cannot be
    /// removed within some seconds is left to the next start.
    pub async fn shutdown(&self) {
        let Some(inner) = &self.inner else { return };
        inner.state().closed = true;
        inner.tasks.shutdown(STOP_PATIENCE).await;
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
        let mut bounds = Bounds { connections_max: CONNECTIONS_MIN, denied: config.egress_denied.clone() };
        // The kernel loads connection tracking with the first rule that needs it, and then says how much it tracks.
        apply(&instance, &bounds, &opened)?;
        let tracked_max = namespace::read_sysctl(TRACKED_MAX).ok().and_then(|text| text.parse().ok());
        bounds.connections_max = connections_max(tracked_max.unwrap_or(0), guests_max);
        apply(&instance, &bounds, &opened)?;
        let state = Mutex::new(State { opened, ..State::default() });
        let (wanted, unremoved) = (Notify::new(), Notify::new());
        let target = config.prepared_target;
        Ok(Self { instance, bounds, forwarding, target, state, wanted, unremoved, tasks: TaskSet::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every section is one step on valid state, so a panic elsewhere leaves it valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_ready(self: Arc<Self>) {
        let stop = self.tasks.token();
        while !stop.is_cancelled() {
            if self.state().ready.len() >= self.target {
                tokio::select! {
                    () = self.wanted.notified() => {}
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
            Slot::prepare(&inner.instance, &inner.bounds, index)
                .inspect_err(|_| inner.given_back(index, remove(&inner.instance, index)))
        })
        .await
    }

    /// Lets uplinks forward that the host got since the last look: a laptop changes its network.
    fn follow_uplinks(&self) {
        let result = self.forwarding.ensure().and_then(|uplinks| {
            let new: Vec<String> = uplinks.difference(&self.state().opened).cloned().collect();
            for link in new {
                namespace::nft(&rules::open(&self.instance, &link))
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
            self.given_back(index, remove(&self.instance, index));
        }
    }

    /// Frees the number of a slot that was removed, or has its removal tried again.
    fn given_back(&self, index: u32, removed: Result<(), Error>) {
        match removed {
            Ok(()) => {
                let mut state = self.state();
                state.unremoved.remove(&index);
                state.taken.remove(&index);
            }
            Err(error) => {
                // The first failure is worth a warning, repetitions are not.
                let is_new = self.state().unremoved.insert(index);
                let error = hearth_stdx::chain(&error);
                if is_new {
                    tracing::warn!(index, %error, "could not remove a network slot, trying again");
                } else {
                    tracing::debug!(index, %error, "could not remove a network slot again");
                }
                self.unremoved.notify_one();
            }
        }
    }

    /// One attempt at every slot that could not be removed; whether all are gone. Blocks.
    fn remove_again(&self) -> bool {
        let all: Vec<u32> = self.state().unremoved.iter().copied().collect();
        for index in all {
            self.given_back(index, remove(&self.instance, index));
        }
        self.state().unremoved.is_empty()
    }

    async fn keep_removing(self: Arc<Self>) {
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
            if blocking(move || Ok(inner.remove_again())).await.unwrap_or(false) {
                backoff.reset();
            }
        }
    }

    /// Removes what is ready, what could not be removed, and the host's rules. Blocks.
    fn close(&self) {
        let ready = mem::take(&mut self.state().ready);
        for slot in &ready {
            self.discard(slot);
        }
        let until = Instant::now() + REMOVAL_PATIENCE;
        while !self.remove_again() && Instant::now() < until {
            std::thread::sleep(REMOVAL_PAUSE_MIN);
        }
        let unremoved = self.state().unremoved.len();
        if unremoved > 0 {
            tracing::warn!(unremoved, "network slots could not be removed: the next start removes them");
        }
        match self.instance.has_neighbour(Path::new(LOCK_FOLDER)) {
            Ok(false) => self.forwarding.restore(),
            Ok(true) => {}
            Err(error) => tracing::warn!(%error, "could not look for other instances, uplinks keep forwarding"),
        }
        if let Err(error) = namespace::nft(&format!("delete table inet {}\n", self.instance.table())) {
            tracing::warn!(%error, "could not remove the host's packet rules");
        }
    }
}

/// Sets the host's rules, with as much as this kernel has.
fn apply(instance: &Instance, bounds: &Bounds, opened: &BTreeSet<String>) -> Result<(), Error> {
    let rules = |timeouts| namespace::nft(&rules::host(instance, bounds, opened, timeouts));
    let result = rules(Timeouts::OfSlots).or_else(|error| {
        rules(Timeouts::OfHost)?;
        tracing::warn!(%error, "this kernel has no timeouts for connections of guests, the host's own apply");
        Ok(())
    });
    result.map_err(|source| Error::Setup { action: "setting the host's packet rules", source })
}

/// A guest's share of the connections that the host tracks.
fn connections_max(tracked_max: u32, guests_max: u32) -> u32 {
    (tracked_max / TRACKED_SHARE / guests_max.max(1)).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// Removes everything of an instance that is not running: its number is ours.
fn sweep(instance: &Instance) {
    let prefix = instance.namespace_prefix();
    let leftovers = namespace::list(&prefix);
    if !leftovers.is_empty() {
        tracing::info!(count = leftovers.len(), "removing network slots that an earlier daemon left");
    }
    for index in leftovers.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()) {
        if let Err(error) = remove(instance, index) {
            tracing::warn!(index, error = %hearth_stdx::chain(&error), "could not remove a slot that an earlier daemon left");
        }
    }
    for link in namespace::links(&instance.link_prefix()) {
        if let Err(error) = namespace::remove_link(&link) {
            tracing::warn!(link, %error, "could not remove a link that an earlier daemon left");
        }
    }
}

/// Runs blocking work to its end, also when the caller goes away.
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
    fn guests_together_leave_the_host_its_half() {
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
