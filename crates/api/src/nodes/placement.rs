//! Choice of the node for a new sandbox.

use hearth_types::NodeId;

/// The facts about a node that placement uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub id: NodeId,
    /// Sandboxes of this control plane on the node, in any state.
    pub sandboxes: u32,
    /// Maximum number of sandboxes. `None` if the node is unreachable or its intent is not `ready`.
    pub sandboxes_max: Option<u32>,
}

/// Ranks the nodes that may accept a sandbox: the least full first, relative to its maximum; ties by id.
///
/// A node that appears full is still included, last: only the node knows, because some of the counted sandboxes may
/// have ended there already.
pub(crate) fn rank(mut candidates: Vec<Candidate>) -> Vec<NodeId> {
    candidates.retain(|candidate| candidate.sandboxes_max.is_some_and(|max| max > 0));
    candidates.sort_by(|a, b| {
        let max = |candidate: &Candidate| u64::from(candidate.sandboxes_max.unwrap_or(1));
        // Compares a.sandboxes / a.max with b.sandboxes / b.max in integers.
        let (a_share, b_share) = (u64::from(a.sandboxes) * max(b), u64::from(b.sandboxes) * max(a));
        a_share.cmp(&b_share).then_with(|| a.id.cmp(&b.id))
    });
    candidates.into_iter().map(|candidate| candidate.id).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(id: &str, sandboxes: u32, sandboxes_max: Option<u32>) -> Candidate {
        Candidate { id: id.parse().expect("valid"), sandboxes, sandboxes_max }
    }

    #[test]
    fn the_least_full_node_comes_first() {
        for (candidates, expected) in [
            (vec![], vec![]),
            (vec![candidate("a", 0, None)], vec![]),
            (vec![candidate("a", 0, Some(0))], vec![]),
            (vec![candidate("a", 9, Some(5))], vec!["a"]),
            (vec![candidate("b", 0, Some(5)), candidate("a", 0, Some(9))], vec!["a", "b"]),
            (vec![candidate("a", 5, Some(10)), candidate("b", 5, Some(20))], vec!["b", "a"]),
            (vec![candidate("a", 1, Some(10)), candidate("b", 0, None), candidate("c", 0, Some(1))], vec!["c", "a"]),
        ] {
            let ranked = rank(candidates.clone());
            let ranked: Vec<&str> = ranked.iter().map(NodeId::as_str).collect();
            assert_eq!(ranked, expected, "{candidates:?}");
        }
    }

    proptest! {
        #[test]
        fn every_reachable_node_is_ranked_once_and_fuller_ones_later(
            loads in prop::collection::vec((any::<u32>(), prop::option::of(1..u32::MAX)), 0..8)
        ) {
            let candidates: Vec<Candidate> = loads
                .iter()
                .enumerate()
                .map(|(index, (sandboxes, max))| candidate(&format!("n{index}"), *sandboxes, *max))
                .collect();
            let ranked = rank(candidates.clone());
            let find = |id: &NodeId| candidates.iter().find(|candidate| candidate.id == *id).expect("ranked nodes are candidates");
            prop_assert_eq!(ranked.len(), loads.iter().filter(|(_, max)| max.is_some()).count());
            let share = |id: &NodeId| {
                let node = find(id);
                f64::from(node.sandboxes) / f64::from(node.sandboxes_max.expect("reachable"))
            };
            prop_assert!(ranked.windows(2).all(|pair| share(&pair[0]) <= share(&pair[1])));
        }
    }
}
