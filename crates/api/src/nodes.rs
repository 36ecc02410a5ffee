//! The nodes of the cluster, as this control plane knows them.
//!
//! Two tasks for each node keep what should be and what is together:
//!
//! * [`follow`] watches the node's news: whether it can be reached, and which sandboxes ended by themselves.
//! * [`compare`](mod@compare) compares all that runs there with all that should, when the node comes (back), on a nudge
//!   and on a timer, because what happened while nobody watched is not told. It also is what keeps routes alive: a
//!   sandbox that no node confirms loses its route when the lease ends.
//!
//! What operators want of a node outlives this server, in the store; [`operate`] is where they say it and see how nodes are.

pub(crate) mod compare;
pub(crate) mod follow;
pub(crate) mod operate;
mod placement;
mod sight;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_cluster_api::{NodeClient, NodeStatus};
use hearth_store::WantedNode;
use hearth_types::{NodeAddress, NodeId};
use tokio::sync::{Notify, watch};

use crate::config::Node;
use crate::live::expiry::now;
use placement::{Candidate, rank};
use sight::Sight;

/// All nodes. The set does not change while the server runs.
#[derive(Debug)]
pub(crate) struct Nodes {
    members: BTreeMap<NodeId, Arc<Member>>,
}

/// One node.
pub(crate) struct Member {
    pub(crate) id: NodeId,
    pub(crate) client: NodeClient,
    pub(crate) proxy: NodeAddress,
    /// Whether it can be reached.
    is_reachable: watch::Sender<bool>,
    /// How it is, and what is wanted of it.
    sight: Mutex<Sight>,
    /// Whether its sandboxes were compared at least once.
    is_compared: watch::Sender<bool>,
    /// Asks for a comparison now.
    nudge: Notify,
    /// Asks whether it can still be reached.
    suspicion: Notify,
    /// Sandboxes of ours that it has, starts or ends.
    seats: Arc<AtomicU32>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One sandbox that is counted on a node, until this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<AtomicU32>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Nodes {
    /// `wanted` may name nodes that are not among them.
    pub(crate) fn new(nodes: Vec<Node>, wanted: Vec<WantedNode>) -> Self {
        let mut wanted: BTreeMap<_, _> = wanted.into_iter().map(|wanted| (wanted.node_id.clone(), wanted)).collect();
        let members = nodes.into_iter().map(|node| {
            let Node { id, client, proxy } = node;
            let sight = Sight::new(wanted.remove(&id), now());
            let member = Member {
                id: id.clone(),
                client,
                proxy,
                is_reachable: watch::Sender::new(false),
                sight: Mutex::new(sight),
                is_compared: watch::Sender::new(false),
                nudge: Notify::new(),
                suspicion: Notify::new(),
                seats: Arc::new(AtomicU32::new(0)),
            };
            (id, Arc::new(member))
        });
        Self { members: members.collect() }
    }

    pub(crate) fn find(&self, id: &NodeId) -> Option<Arc<Member>> {
        self.members.get(id).cloned()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values()
    }

    /// The nodes worth asking to run a sandbox, best first.
    pub(crate) fn ranked(&self) -> Vec<Arc<Member>> {
        let candidates = self.members.values().map(|member| Candidate {
            id: member.id.clone(),
            sandboxes: member.seats.load(Ordering::Relaxed),
            sandboxes_max: member.sandboxes_max(),
        });
        rank(candidates.collect()).iter().filter_map(|id| self.find(id)).collect()
    }
}

impl Member {
    /// Counts one more sandbox there.
    pub(crate) fn take_seat(&self) -> Seat {
        self.seats.fetch_add(1, Ordering::Relaxed);
        Seat { seats: Arc::clone(&self.seats) }
    }

    /// Has what runs there compared soon.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Waits until the node, now out of reach, is back. Cancel safe.
    pub(crate) async fn comes_back(&self) {
        let mut is_reachable = self.is_reachable.subscribe();
        // The sender lives as long as `self`, so there is always a next change.
        while is_reachable.changed().await.is_ok() {
            if *is_reachable.borrow_and_update() {
                return;
            }
        }
    }

    /// Waits until what runs there was compared once. Cancel safe.
    pub(crate) async fn was_compared(&self) {
        // An error means that the sender is gone, which lives as long as `self`.
        let _ = self.is_compared.subscribe().wait_for(|is_compared| *is_compared).await;
    }

    fn is_reachable(&self) -> bool {
        *self.is_reachable.borrow()
    }

    /// Sandboxes that it may be given; `None`: none, because it cannot be reached or is to take no more.
    fn sandboxes_max(&self) -> Option<u32> {
        self.sight().sandboxes_max()
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        // Every section is one step on a valid value, so a panic elsewhere leaves it valid.
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node told how it is.
    fn seen(&self, status: NodeStatus) {
        self.sight().seen(status, now());
        self.is_reachable.send_if_modified(|is_reachable| !std::mem::replace(is_reachable, true));
    }

    /// The node cannot be reached any more. Returns whether it could be until now.
    fn lost(&self) -> bool {
        self.sight().lost(now());
        self.is_reachable.send_if_modified(|is_reachable| std::mem::replace(is_reachable, false))
    }
}
