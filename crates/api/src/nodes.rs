//! The nodes of the cluster, as this control plane knows them.
//!
//! Two tasks for each node keep what should be and what is together:
//!
//! * [`follow`] watches the node's news: whether it can be reached, and which sandboxes ended by themselves.
//! * [`compare`](mod@compare) compares all that runs there with all that should, when the node comes (back), on a nudge
//!   and on a timer, because what happened while nobody watched is not told. It also is what keeps routes alive: a
//!   sandbox that no node confirms loses its route when the lease ends.

pub(crate) mod compare;
pub(crate) mod follow;
mod placement;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hearth_cluster_api::{NodeClient, NodeStatus};
use hearth_types::{NodeAddress, NodeId};
use tokio::sync::{Notify, watch};

use crate::config::Node;
use placement::{Candidate, rank};

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
    /// How it is; `None`: it cannot be reached.
    status: watch::Sender<Option<NodeStatus>>,
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
    pub(crate) fn new(nodes: Vec<Node>) -> Self {
        let members = nodes.into_iter().map(|node| {
            let Node { id, client, proxy } = node;
            let member = Member {
                id: id.clone(),
                client,
                proxy,
                status: watch::Sender::new(None),
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
            sandboxes_max: member.status.borrow().as_ref().map(|status| status.sandboxes_max),
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
        let mut status = self.status.subscribe();
        // The sender lives as long as `self`, so there is always a next change.
        while status.changed().await.is_ok() {
            if status.borrow_and_update().is_some() {
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
        self.status.borrow().is_some()
    }
}
