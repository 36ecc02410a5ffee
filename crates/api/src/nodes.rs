//! The nodes of the cluster, as this control plane sees them.
//!
//! Two tasks for each node align the observed state with the desired state:
//!
//! * [`follow`] reads the node's event stream: its status, and the sandboxes that ended without a request.
//! * [`reconcile`] compares the sandboxes that run on the node with the desired ones: when the node connects, on a nudge
//!   and on a timer, because events are lost while the stream is down. It also renews the leases of routes: a sandbox
//!   that its node does not confirm loses its route when the lease ends.
//!
//! Operators set an intent for each node (take sandboxes or not). The store retains it over restarts; [`operate`] has the
//! routes to set it and to read the nodes' status.

pub(crate) mod follow;
pub(crate) mod operate;
mod placement;
pub(crate) mod reconcile;
mod view;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_cluster_api::{NodeClient, NodeStatus};
use hearth_store::DesiredNode;
use hearth_types::{NodeAddress, NodeId};
use tokio::sync::{Notify, watch};

use crate::config::Node;
use crate::live::expiry::now;
use placement::{Candidate, rank};
use view::NodeView;

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
    is_reachable: watch::Sender<bool>,
    view: Mutex<NodeView>,
    /// Set after the first complete reconciliation since the server started.
    is_reconciled: watch::Sender<bool>,
    /// Requests a reconciliation now.
    nudge: Notify,
    /// Reports that a request to the node failed, so that [`follow`] reconnects.
    suspicion: Notify,
    /// Sandboxes of this control plane that the node runs, starts or deletes.
    reserved: Arc<AtomicU32>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reservation for one sandbox on a node, until it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    reserved: Arc<AtomicU32>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Nodes {
    /// Creates the set from the configuration and the stored intents. `intents` may name nodes that are not configured.
    pub(crate) fn new(nodes: Vec<Node>, intents: Vec<DesiredNode>) -> Self {
        let mut intents: BTreeMap<_, _> = intents.into_iter().map(|intent| (intent.node_id.clone(), intent)).collect();
        let members = nodes.into_iter().map(|node| {
            let Node { id, client, proxy } = node;
            let view = NodeView::new(intents.remove(&id), now());
            let member = Member {
                id: id.clone(),
                client,
                proxy,
                is_reachable: watch::Sender::new(false),
                view: Mutex::new(view),
                is_reconciled: watch::Sender::new(false),
                nudge: Notify::new(),
                suspicion: Notify::new(),
                reserved: Arc::new(AtomicU32::new(0)),
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

    /// Returns the nodes that may accept a new sandbox, best first.
    pub(crate) fn ranked(&self) -> Vec<Arc<Member>> {
        let candidates = self.members.values().map(|member| Candidate {
            id: member.id.clone(),
            sandboxes: member.reserved.load(Ordering::Relaxed),
            sandboxes_max: member.sandboxes_max(),
        });
        rank(candidates.collect()).iter().filter_map(|id| self.find(id)).collect()
    }
}

impl Member {
    /// Counts one more sandbox on the node until the reservation is dropped.
    pub(crate) fn reserve(&self) -> Reservation {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        Reservation { reserved: Arc::clone(&self.reserved) }
    }

    /// Requests a reconciliation of the node.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Waits for the next time that the node becomes reachable. Cancel safe.
    pub(crate) async fn wait_for_reconnect(&self) {
        let mut is_reachable = self.is_reachable.subscribe();
        // `changed` does not fail: the sender lives as long as `self`.
        while is_reachable.changed().await.is_ok() {
            if *is_reachable.borrow_and_update() {
                return;
            }
        }
    }

    /// Waits until the node was reconciled once. Cancel safe.
    pub(crate) async fn wait_until_reconciled(&self) {
        // `wait_for` does not fail: the sender lives as long as `self`.
        let _ = self.is_reconciled.subscribe().wait_for(|is_reconciled| *is_reconciled).await;
    }

    fn is_reachable(&self) -> bool {
        *self.is_reachable.borrow()
    }

    /// Returns the maximum number of sandboxes. `None` if the node is unreachable or its intent is not `ready`.
    fn sandboxes_max(&self) -> Option<u32> {
        self.view().sandboxes_max()
    }

    fn view(&self) -> MutexGuard<'_, NodeView> {
        // Every critical section is a single step on a valid value, so the value is valid even after a panic.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a status that the node sent, and marks the node as reachable.
    fn update_status(&self, status: NodeStatus) {
        self.view().update_status(status, now());
        self.is_reachable.send_if_modified(|is_reachable| !std::mem::replace(is_reachable, true));
    }

    /// Marks the node as unreachable. Returns true if it was reachable until now.
    fn mark_unreachable(&self) -> bool {
        self.view().mark_unreachable(now());
        self.is_reachable.send_if_modified(|is_reachable| std::mem::replace(is_reachable, false))
    }
}
