//! The table of crates in ARCHITECTURE.md, section 2. A new crate gets a row in both.

/// Where a crate stands. A crate imports only lower layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    /// Part of what is shipped.
    Shipped(u8),
    /// Only for developers: above all layers, and imported by tests alone.
    Development,
}

use Layer::{Development, Shipped};

/// The layer whose crates are roles.
pub(super) const ROLES: Layer = Shipped(6);

const TABLE: &[(&str, Layer)] = &[
    ("types", Shipped(0)),
    ("stdx", Shipped(0)),
    ("api-types", Shipped(1)),
    ("cluster-api", Shipped(1)),
    ("envd-api", Shipped(1)),
    ("store", Shipped(2)),
    ("catalog", Shipped(2)),
    ("discovery", Shipped(2)),
    ("analytics", Shipped(2)),
    ("blob", Shipped(2)),
    ("host", Shipped(2)),
    ("network", Shipped(3)),
    ("artifact", Shipped(3)),
    ("vmm", Shipped(3)),
    ("proxy", Shipped(3)),
    ("sandbox", Shipped(4)),
    ("builder", Shipped(5)),
    ("orchestrator", Shipped(6)),
    ("api", Shipped(6)),
    ("edge", Shipped(6)),
    ("envd", Shipped(6)),
    ("init", Shipped(6)),
    ("interpreter", Shipped(6)),
    ("sdk", Shipped(6)),
    ("hearth", Shipped(7)),
    ("codegen", Development),
    ("testkit", Development),
    ("xtask", Development),
];

/// A crate that must not see others, not even through a third.
#[derive(Debug)]
pub(super) struct Wall {
    /// The crate.
    pub(super) of: &'static str,
    /// What it must not see.
    pub(super) hides: &'static [&'static str],
    /// Why.
    pub(super) reason: &'static str,
}

const CONTROL: &[&str] = &["store", "catalog", "discovery"];
const NODE: &str = "a compromised node must hold no credential of the control plane";

/// The walls that layers alone do not make.
pub(super) const WALLS: &[Wall] = &[
    Wall { of: "orchestrator", hides: CONTROL, reason: NODE },
    Wall { of: "builder", hides: CONTROL, reason: NODE },
    Wall { of: "sandbox", hides: CONTROL, reason: NODE },
    Wall { of: "network", hides: CONTROL, reason: NODE },
    Wall { of: "artifact", hides: CONTROL, reason: NODE },
    Wall { of: "vmm", hides: CONTROL, reason: NODE },
    Wall { of: "proxy", hides: CONTROL, reason: NODE },
    Wall { of: "envd", hides: CONTROL, reason: NODE },
    Wall { of: "init", hides: CONTROL, reason: NODE },
    Wall { of: "interpreter", hides: CONTROL, reason: NODE },
    Wall { of: "sdk", hides: &["cluster-api"], reason: "clients speak the public interfaces only" },
    Wall { of: "envd-api", hides: &["types", "stdx"], reason: "the guest's interface depends on nothing of ours" },
];

/// Libraries that a crate must not import at all.
pub(super) const PLAIN: &[(&str, &[&str], &str)] =
    &[("types", &["serde", "serde_json", "tokio"], "the vocabulary is plain values: no serde, no IO")];

/// The layer of a crate, if the architecture knows it.
pub(super) fn layer(name: &str) -> Option<Layer> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}
