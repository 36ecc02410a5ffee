//! How a node is, in one word: what it says, whether it can be reached, and what operators want of it.

use hearth_cluster_api::NodeStatus;
use hearth_store::{NodeIntent, WantedNode};
use jiff::Timestamp;

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It can be reached, and does this.
    Does(NodeIntent),
    /// It was not reached yet.
    Connecting,
    /// It cannot be reached any more.
    Unhealthy,
}

/// What is known of a node.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    intent: NodeIntent,
    intent_since: Timestamp,
    is_reachable: bool,
    reach_since: Timestamp,
    /// What it said last. Kept when it is lost.
    last: Option<NodeStatus>,
}

impl Sight {
    pub(super) fn new(wanted: Option<WantedNode>, now: Timestamp) -> Self {
        let (intent, intent_since) = match wanted {
            Some(WantedNode { node_id: _, intent, changed_at }) => (intent, changed_at),
            None => (NodeIntent::Ready, now),
        };
        Self { intent, intent_since, is_reachable: false, reach_since: now, last: None }
    }

    pub(super) fn seen(&mut self, status: NodeStatus, now: Timestamp) {
        if !self.is_reachable {
            (self.is_reachable, self.reach_since) = (true, now);
        }
        self.last = Some(status);
    }

    pub(super) fn lost(&mut self, now: Timestamp) {
        if self.is_reachable {
            (self.is_reachable, self.reach_since) = (false, now);
        }
    }

    /// What is wanted now. The same again changes nothing.
    pub(super) fn want(&mut self, intent: NodeIntent, now: Timestamp) {
        if self.intent != intent {
            (self.intent, self.intent_since) = (intent, now);
        }
    }

    /// Sandboxes that it may be given; `None`: none.
    pub(super) fn sandboxes_max(&self) -> Option<u32> {
        match self.condition().0 {
            Condition::Does(NodeIntent::Ready) => self.last.as_ref().map(|status| status.sandboxes.max),
            Condition::Does(NodeIntent::Draining | NodeIntent::Standby)
            | Condition::Connecting
            | Condition::Unhealthy => None,
        }
    }

    /// How it is, and since when.
    pub(super) fn condition(&self) -> (Condition, Timestamp) {
        match (self.is_reachable, &self.last) {
            (true, _) => (Condition::Does(self.intent), self.intent_since.max(self.reach_since)),
            (false, None) => (Condition::Connecting, self.reach_since),
            (false, Some(_)) => (Condition::Unhealthy, self.reach_since),
        }
    }

    /// What it said last.
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
    fn a_node_is_what_is_seen_and_wanted() {
        let mut sight = Sight::new(None, at(1));
        assert_eq!((sight.condition(), sight.sandboxes_max()), ((Condition::Connecting, at(1)), None));
        sight.lost(at(2));
        assert_eq!(sight.condition(), (Condition::Connecting, at(1)), "it still is not reached");
        sight.seen(status(), at(3));
        sight.seen(status(), at(4));
        let ready = (Condition::Does(NodeIntent::Ready), at(3));
        assert_eq!((sight.condition(), sight.sandboxes_max()), (ready, Some(7)));
        sight.want(NodeIntent::Draining, at(5));
        sight.want(NodeIntent::Draining, at(6));
        let draining = (Condition::Does(NodeIntent::Draining), at(5));
        assert_eq!((sight.condition(), sight.sandboxes_max()), (draining, None));
        sight.lost(at(7));
        assert_eq!((sight.condition(), sight.last().is_some()), ((Condition::Unhealthy, at(7)), true));
        sight.seen(status(), at(8));
        assert_eq!(sight.condition(), (Condition::Does(NodeIntent::Draining), at(8)));
        sight.want(NodeIntent::Ready, at(9));
        assert_eq!(sight.sandboxes_max(), Some(7));
    }

    #[test]
    fn what_was_wanted_before_a_restart_still_is() {
        let wanted =
            WantedNode { node_id: "local".parse().expect("valid"), intent: NodeIntent::Standby, changed_at: at(1) };
        let mut sight = Sight::new(Some(wanted), at(2));
        sight.seen(status(), at(2));
        assert_eq!((sight.condition(), sight.sandboxes_max()), ((Condition::Does(NodeIntent::Standby), at(2)), None));
    }
}
