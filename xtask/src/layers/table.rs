//! Table of crates, the same as in ARCHITECTURE.md, section 2. A new crate gets a row in both.

/// Layer of a crate. A crate imports only crates in lower layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    /// Part of the product.
    Shipped(u8),
    /// Only for developers: above all layers, and imported only by tests.
    Development,
}

use Layer::{Development, Shipped};

/// Layer of the roles.
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

/// Crates that a crate must not depend on, not even indirectly.
#[derive(Debug)]
pub(super) struct VisibilityRule {
    pub(super) of: &'static str,
    pub(super) hides: &'static [&'static str],
    pub(super) reason: &'static str,
}

const CONTROL: &[&str] = &["store", "catalog", "discovery"];
const NODE: &str = "a compromised node must hold no credential of the control plane";

/// Rules in addition to the layers.
pub(super) const VISIBILITY_RULES: &[VisibilityRule] = &[
    VisibilityRule { of: "orchestrator", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "builder", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "sandbox", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "network", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "artifact", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "vmm", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "proxy", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "envd", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "init", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "interpreter", hides: CONTROL, reason: NODE },
    VisibilityRule { of: "sdk", hides: &["cluster-api"], reason: "clients use the public interfaces only" },
    VisibilityRule {
        of: "envd-api",
        hides: &["types", "stdx"],
        reason: "the guest's interface depends on no other crate",
    },
];

/// Libraries that a crate must not import, with the reason.
pub(super) const FORBIDDEN_LIBRARIES: &[(&str, &[&str], &str)] =
    &[("types", &["serde", "serde_json", "tokio"], "the vocabulary is plain values: no serde, no IO")];

/// Returns the layer of a crate, if it is in the table.
pub(super) fn layer(name: &str) -> Option<Layer> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}
