//! Slots kept ready.
//!
//! One task prepares slots whenever fewer than the target are ready. A slot is used once: what its guest left in it (NAT
//! state, rules, addresses in use) goes with its namespace, and a fresh one takes its place.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_host::{namespace, requirement};
use hearth_stdx::TaskSet;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::config::{Config, Error, Mode};
use crate::instance::{Instance, LOCK_FOLDER, SLOTS};
use crate::rules;
use crate::slot::{Slot, remove};

/// How long the preparing task may take to stop: one slot.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a failure to prepare a slot.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A pool of network slots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    instance: Instance,
    target: usize,
    state: Mutex<State>,
    wanted: Notify,
    tasks: TaskSet,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Slot>,
    taken: BTreeSet<u32>,
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
            Mode::User => return Ok(Self { inner: None }),
            Mode::Auto if !finding.found => return Ok(Self { inner: None }),
            Mode::Namespaces if !finding.found => return Err(Error::NotPermitted { missing: finding.detail }),
            Mode::Auto | Mode::Namespaces => {}
        }
        let target = config.prepared_target;
        let instance = blocking(move || {
            let instance = Instance::claim(Path::new(LOCK_FOLDER), &config)?;
            sweep(&instance);
            let setup = |action| move |source| Error::Setup { action, source };
            namespace::sysctl("net/ipv4/ip_forward", "1").map_err(setup("switching IPv4 forwarding on"))?;
            namespace::nft(&rules::host(&instance)).map_err(setup("setting the host's packet rules"))?;
            Ok(instance)
        })
        .await?;
        let inner =
            Arc::new(Inner { instance, target, state: Mutex::default(), wanted: Notify::new(), tasks: TaskSet::new() });
        inner.tasks.spawn("network slots", Arc::clone(&inner).keep_ready());
        Ok(Self { inner: Some(inner) })
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

    /// Gives a slot back; returns when nothing of it is left. The VMM in it must have ended.
    pub async fn release(&self, slot: Slot) {
        let Some(inner) = &self.inner else { return };
        let inner = Arc::clone(inner);
        let _ = blocking(move || {
            inner.discard(&slot);
            Ok(())
        })
        .await;
    }

    /// Removes all slots that are not taken, and the host's rules. Slots given back later are still removed.
    pub async fn shutdown(&self) {
        let Some(inner) = &self.inner else { return };
        inner.state().closed = true;
        inner.tasks.shutdown(STOP_PATIENCE).await;
        let inner = Arc::clone(inner);
        let _ = blocking(move || {
            let ready = std::mem::take(&mut inner.state().ready);
            for slot in &ready {
                inner.discard(slot);
            }
            let table = inner.instance.table();
            namespace::nft(&format!("delete table inet {table}\n"))
                .map_err(|source| Error::Setup { action: "removing the host's packet rules", source })
        })
        .await
        .inspect_err(|error| tracing::warn!(%error, "could not remove the host's packet rules"));
    }
}

impl Inner {
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
            let index = inner.state().take_index()?;
            Slot::prepare(&inner.instance, index).inspect_err(|_| {
                inner.state().taken.remove(&index);
            })
        })
        .await
    }

    fn discard(&self, slot: &Slot) {
        if let Some(index) = slot.index() {
            remove(&self.instance, index);
            self.state().taken.remove(&index);
        }
    }
}

/// Removes everything of an instance that is not running: its number is ours.
fn sweep(instance: &Instance) {
    let prefix = instance.namespace_prefix();
    let leftovers = namespace::list(&prefix);
    if !leftovers.is_empty() {
        tracing::info!(count = leftovers.len(), "removing network slots that an earlier daemon left");
    }
    for index in leftovers.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()) {
        remove(instance, index);
    }
    for link in namespace::links(&instance.link_prefix()) {
        if let Err(error) = namespace::ip(&format!("link del {link}\n")) {
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
