//! The control plane's view of a node: its reachability, its last status and the operators' intent.

use hearth_cluster_api::NodeStatus;
use hearth_store::{DesiredNode, NodeIntent};
use jiff::Timestamp;

/// Condition of a node, derived from its reachability and its intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// The node is reachable and follows this intent.
    Reachable(NodeIntent),
    /// The node was not reached since the server started.
    Connecting,
    /// The node was reached before, but is not reachable now.
    Unhealthy,
}

/// View of a node.
#[derive(Debug, Clone)]
pub(super) struct NodeView {
    intent: NodeIntent,
    intent_since: Timestamp,
    is_reachable: bool,
    /// Time of the last change of `is_reachable`.
    reach_since: Timestamp,
    /// Latest status that the node sent. Retained while the node is unreachable.
    last: Option<NodeStatus>,
}

impl NodeView {
    /// Creates the view of a node that was not reached yet. Without a stored intent, the intent is `ready`.
    pub(super) fn new(stored: Option<DesiredNode>, now: Timestamp) -> Self {
        let (intent, intent_since) = match stored {
            Some(DesiredNode { node_id: _, intent, changed_at }) => (intent, changed_at),
            None => (NodeIntent::Ready, now),
        };
        Self { intent, intent_since, is_reachable: false, reach_since: now, last: None }
    }

    /// Stores a status that the node sent, and marks the node as reachable.
    pub(super) fn update_status(&mut self, status: NodeStatus, now: Timestamp) {
        if !self.is_reachable {
            (self.is_reachable, self.reach_since) = (true, now);
        }
        self.last = Some(status);
    }

    /// Marks the node as unreachable. The last status is retained.
    pub(super) fn mark_unreachable(&mut self, now: Timestamp) {
        if self.is_reachable {
            (self.is_reachable, self.reach_since) = (false, now);
        }
    }

    /// Sets the intent. Does nothing if it is equal to the current one.
    pub(super) fn set_intent(&mut self, intent: NodeIntent, now: Timestamp) {
        if self.intent != intent {
            (self.intent, self.intent_since) = (intent, now);
        }
    }

    /// Returns the maximum number of sandboxes. `None` if the node is unreachable or its intent is not `ready`.
    pub(super) fn sandboxes_max(&self) -> Option<u32> {
        match self.condition().0 {
            Condition::Reachable(NodeIntent::Ready) => self.last.as_ref().map(|status| status.sandboxes.max),
            Condition::Reachable(NodeIntent::Draining | NodeIntent::Standby)
            | Condition::Connecting
            | Condition::Unhealthy => None,
        }
    }

    /// Returns the condition of the node, and the time since which it holds.
    pub(super) fn condition(&self) -> (Condition, Timestamp) {
        match (self.is_reachable, &self.last) {
            (true, _) => (Condition::Reachable(self.intent), self.intent_since.max(self.reach_since)),
            (false, None) => (Condition::Connecting, self.reach_since),
            (false, Some(_)) => (Condition::Unhealthy, self.reach_since),
        }
    }

    /// Returns the latest status that the node sent.
    pub(super) fn last(&self) -> Option<&NodeStatus> {
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use hearth_cluster_api::{Daemon, Sandboxes};
    use hearth_types::Machine;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn status() -> NodeStatus {
        let text = String::new;
        NodeStatus {
            node_id: "local".parse().expect("valid"),
            daemon: Daemon { instance_id: text(), version: text(), commit: text() },
            sandboxes: Sandboxes { max: 7, ..Sandboxes::default() },
            machine: Machine {
                cpu_family: text(),
                cpu_model: text(),
                cpu_model_name: text(),
                cpu_architecture: text(),
            },
            load: None,
        }
    }

    #[test]
    fn the_condition_follows_reachability_and_intent() {
        let mut view = NodeView::new(None, at(1));
        assert_eq!((view.condition(), view.sandboxes_max()), ((Condition::Connecting, at(1)), None));
        view.mark_unreachable(at(2));
        assert_eq!(view.condition(), (Condition::Connecting, at(1)), "the node was never reached");
        view.update_status(status(), at(3));
        view.update_status(status(), at(4));
        let ready = (Condition::Reachable(NodeIntent::Ready), at(3));
        assert_eq!((view.condition(), view.sandboxes_max()), (ready, Some(7)));
        view.set_intent(NodeIntent::Draining, at(5));
        view.set_intent(NodeIntent::Draining, at(6));
        let draining = (Condition::Reachable(NodeIntent::Draining), at(5));
        assert_eq!((view.condition(), view.sandboxes_max()), (draining, None));
        view.mark_unreachable(at(7));
        assert_eq!((view.condition(), view.last().is_some()), ((Condition::Unhealthy, at(7)), true));
        view.update_status(status(), at(8));
        assert_eq!(view.condition(), (Condition::Reachable(NodeIntent::Draining), at(8)));
        view.set_intent(NodeIntent::Ready, at(9));
        assert_eq!(view.sandboxes_max(), Some(7));
    }

    #[test]
    fn a_stored_intent_holds_after_a_restart() {
        let stored =
            DesiredNode { node_id: "local".parse().expect("valid"), intent: NodeIntent::Standby, changed_at: at(1) };
        let mut view = NodeView::new(Some(stored), at(2));
        view.update_status(status(), at(2));
        assert_eq!(
            (view.condition(), view.sandboxes_max()),
            ((Condition::Reachable(NodeIntent::Standby), at(2)), None)
        );
    }
}
