//! Checks imports between crates against the layers and the visibility rules.

use std::collections::BTreeSet;

use super::table::{FORBIDDEN_LIBRARIES, Layer, ROLES, VISIBILITY_RULES, layer};

/// Member of the workspace.
#[derive(Debug, Clone)]
pub(super) struct Crate {
    pub(super) package: String,
    /// Relative to the repository.
    pub(super) folder: String,
    /// Root files of its library and programs, relative to the repository.
    pub(super) roots: Vec<String>,
    pub(super) imports: Vec<Import>,
}

/// Dependency in a manifest.
#[derive(Debug, Clone)]
pub(super) struct Import {
    pub(super) package: String,
    /// The package is a member of this workspace.
    pub(super) is_member: bool,
    pub(super) kind: ImportKind,
}

/// Code that can use an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImportKind {
    /// The crate itself, or its build script.
    Code,
    /// Only its tests.
    Tests,
}

impl Crate {
    /// Name in the architecture: the package name without the prefix.
    pub(super) fn name(&self) -> &str {
        short(&self.package)
    }

    fn members(&self, kind: ImportKind) -> impl Iterator<Item = &str> {
        let wanted = self.imports.iter().filter(move |import| import.is_member && import.kind == kind);
        wanted.map(|import| short(&import.package))
    }
}

fn short(package: &str) -> &str {
    package.strip_prefix("hearth-").unwrap_or(package)
}

/// Returns a finding for every forbidden import and every crate that is not in the table.
pub(super) fn findings(crates: &[Crate]) -> Vec<String> {
    let mut findings = Vec::new();
    for member in crates {
        let Some(own) = layer(member.name()) else {
            findings.push(format!(
                "{}: the crate `{}` is not in the table of ARCHITECTURE.md and xtask/src/layers/table.rs",
                member.folder, member.package
            ));
            continue;
        };
        findings.extend(misnamed(member));
        findings.extend(layer_violations(member, own));
        findings.extend(hidden_crates(member, crates));
        findings.extend(forbidden_libraries(member));
    }
    findings
}

fn misnamed(member: &Crate) -> Option<String> {
    let folder = member.folder.rsplit('/').next().unwrap_or_default();
    // The binary and xtask have no prefix, because people type their names.
    let expected = match folder {
        "hearth" | "xtask" => folder.to_owned(),
        _ => format!("hearth-{folder}"),
    };
    (member.package != expected).then(|| format!("{}: the package must be named `{expected}`", member.folder))
}

fn layer_violations(member: &Crate, own: Layer) -> Vec<String> {
    let mut findings = Vec::new();
    for import in member.members(ImportKind::Code) {
        let Some(other) = layer(import) else { continue };
        if other < own {
            continue;
        }
        let reason = match (own, other) {
            (_, Layer::Development) if own != Layer::Development => "which is only for tests",
            (ROLES, ROLES) => "another role: roles communicate over contracts",
            (a, b) if a == b => "which is in the same layer",
            _ => "which is in a higher layer",
        };
        findings.push(format!("{}: `{}` imports `{import}`, {reason}", member.folder, member.name()));
    }
    for import in member.members(ImportKind::Tests) {
        let allowed = layer(import).is_none_or(|other| other < own || import == "testkit");
        if !allowed {
            findings.push(format!(
                "{}: tests of `{}` import `{import}`, which is neither in a lower layer nor the testkit",
                member.folder,
                member.name()
            ));
        }
    }
    findings
}

fn hidden_crates(member: &Crate, crates: &[Crate]) -> Vec<String> {
    let rules: Vec<_> = VISIBILITY_RULES.iter().filter(|rule| rule.of == member.name()).collect();
    if rules.is_empty() {
        return Vec::new();
    }
    let seen = reachable(member, crates);
    let broken = rules.iter().flat_map(|rule| rule.hides.iter().map(move |hidden| (rule, *hidden)));
    let broken = broken.filter(|(_, hidden)| seen.contains(*hidden));
    broken
        .map(|(rule, hidden)| format!("{}: `{}` depends on `{hidden}`: {}", member.folder, rule.of, rule.reason))
        .collect()
}

/// Returns all workspace crates that a crate's code depends on, directly or indirectly.
fn reachable<'a>(member: &'a Crate, crates: &'a [Crate]) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![member];
    while let Some(next) = open.pop() {
        for import in next.members(ImportKind::Code) {
            if seen.insert(import) {
                open.extend(crates.iter().filter(|other| other.name() == import));
            }
        }
    }
    seen
}

fn forbidden_libraries(member: &Crate) -> Vec<String> {
    let rules = FORBIDDEN_LIBRARIES.iter().filter(|(of, _, _)| *of == member.name());
    let mut findings = Vec::new();
    for (of, libraries, reason) in rules {
        let code = member.imports.iter().filter(|import| import.kind == ImportKind::Code);
        let caught = code.filter(|import| libraries.contains(&import.package.as_str()));
        findings
            .extend(caught.map(|import| format!("{}: `{of}` imports `{}`: {reason}", member.folder, import.package)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses `name: import import ; test-import`, with external imports in parentheses.
    fn member(line: &str) -> Crate {
        let (name, imports) = line.split_once(':').expect("a name, then a colon");
        let (code, tests) = imports.split_once(';').unwrap_or((imports, ""));
        let import = |kind| {
            move |word: &str| match word.strip_prefix('(').and_then(|word| word.strip_suffix(')')) {
                Some(external) => Import { package: external.to_owned(), is_member: false, kind },
                None => Import { package: format!("hearth-{word}"), is_member: true, kind },
            }
        };
        let code = code.split_whitespace().map(import(ImportKind::Code));
        let tests = tests.split_whitespace().map(import(ImportKind::Tests));
        let package = if name == "hearth" { name.to_owned() } else { format!("hearth-{name}") };
        Crate { package, folder: format!("crates/{name}"), roots: Vec::new(), imports: code.chain(tests).collect() }
    }

    fn check(lines: &[&str], expected: &[&str]) {
        let crates: Vec<Crate> = lines.iter().map(|line| member(line)).collect();
        assert_eq!(findings(&crates), expected, "{lines:?}");
    }

    #[test]
    fn lower_layers_may_be_imported() {
        check(&["types:", "host: types", "vmm: host types (tokio)", "sandbox: vmm ; builder-less"], &[]);
        check(&["hearth: api edge orchestrator sdk store types"], &[]);
        check(
            &["vmm: ; host testkit (tempfile)", "testkit: sandbox orchestrator", "xtask:"],
            &["crates/xtask: the package must be named `xtask`"],
        );
    }

    #[test]
    fn higher_and_equal_layers_may_not() {
        check(&["host: vmm"], &["crates/host: `host` imports `vmm`, which is in a higher layer"]);
        check(&["vmm: network"], &["crates/vmm: `vmm` imports `network`, which is in the same layer"]);
        check(&["edge: api"], &["crates/edge: `edge` imports `api`, another role: roles communicate over contracts"]);
        check(&["api: testkit"], &["crates/api: `api` imports `testkit`, which is only for tests"]);
        check(
            &["network: ; vmm"],
            &["crates/network: tests of `network` import `vmm`, which is neither in a lower layer nor the testkit"],
        );
    }

    #[test]
    fn visibility_rules_apply_to_indirect_imports() {
        check(
            &["orchestrator: sandbox", "sandbox: artifact", "artifact: catalog", "catalog:"],
            &["orchestrator", "sandbox", "artifact"]
                .map(|of| {
                    format!("crates/{of}: `{of}` depends on `catalog`: a compromised node must hold no credential of the control plane")
                })
                .each_ref()
                .map(String::as_str),
        );
        check(
            &["sdk: cluster-api", "cluster-api:"],
            &["crates/sdk: `sdk` depends on `cluster-api`: clients use the public interfaces only"],
        );
        check(
            &["envd-api: types"],
            &["crates/envd-api: `envd-api` depends on `types`: the guest's interface depends on no other crate"],
        );
        check(&["api: store catalog discovery", "edge: catalog discovery"], &[]);
    }

    #[test]
    fn unknown_crates_and_forbidden_libraries_are_found() {
        check(
            &["tools:"],
            &[
                "crates/tools: the crate `hearth-tools` is not in the table of ARCHITECTURE.md and xtask/src/layers/table.rs",
            ],
        );
        check(
            &["types: (serde) (uuid) ; (tokio)"],
            &["crates/types: `types` imports `serde`: the vocabulary is plain values: no serde, no IO"],
        );
    }
}
