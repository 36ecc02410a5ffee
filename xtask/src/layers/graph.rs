//! Who imports whom, and whether that is allowed.

use std::collections::BTreeSet;

use super::table::{Layer, PLAIN, ROLES, WALLS, layer};

/// One member of the workspace.
#[derive(Debug, Clone)]
pub(super) struct Crate {
    /// The package's name.
    pub(super) package: String,
    /// Its folder, relative to the repository.
    pub(super) folder: String,
    /// The files that its library and its programs begin with, relative to the repository.
    pub(super) roots: Vec<String>,
    /// What its manifest imports.
    pub(super) imports: Vec<Import>,
}

/// One line of a manifest's dependencies.
#[derive(Debug, Clone)]
pub(super) struct Import {
    /// The package's name.
    pub(super) package: String,
    /// It is a member of this workspace.
    pub(super) ours: bool,
    /// What sees it.
    pub(super) used_for: Use,
}

/// What an import is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The crate itself, or its build script.
    Code,
    /// Its tests only.
    Tests,
}

impl Crate {
    /// The name in the architecture: the package's without the prefix.
    pub(super) fn name(&self) -> &str {
        short(&self.package)
    }

    fn ours(&self, used_for: Use) -> impl Iterator<Item = &str> {
        let wanted = self.imports.iter().filter(move |import| import.ours && import.used_for == used_for);
        wanted.map(|import| short(&import.package))
    }
}

fn short(package: &str) -> &str {
    package.strip_prefix("hearth-").unwrap_or(package)
}

/// Every import that the architecture does not allow, and every crate that it does not know.
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
        findings.extend(upward(member, own));
        findings.extend(through_walls(member, crates));
        findings.extend(impure(member));
    }
    findings
}

fn misnamed(member: &Crate) -> Option<String> {
    let folder = member.folder.rsplit('/').next().unwrap_or_default();
    // The one binary and the chores carry no prefix: people type their names.
    let expected = match folder {
        "hearth" | "xtask" => folder.to_owned(),
        _ => format!("hearth-{folder}"),
    };
    (member.package != expected).then(|| format!("{}: the package must be named `{expected}`", member.folder))
}

fn upward(member: &Crate, own: Layer) -> Vec<String> {
    let mut findings = Vec::new();
    for import in member.ours(Use::Code) {
        let Some(other) = layer(import) else { continue };
        if other < own {
            continue;
        }
        let why = match (own, other) {
            (_, Layer::Development) if own != Layer::Development => "which is only for tests",
            (ROLES, ROLES) => "another role: roles talk over contracts",
            (a, b) if a == b => "which is in the same layer",
            _ => "which is in a higher layer",
        };
        findings.push(format!("{}: `{}` imports `{import}`, {why}", member.folder, member.name()));
    }
    for import in member.ours(Use::Tests) {
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

fn through_walls(member: &Crate, crates: &[Crate]) -> Vec<String> {
    let walls: Vec<_> = WALLS.iter().filter(|wall| wall.of == member.name()).collect();
    if walls.is_empty() {
        return Vec::new();
    }
    let seen = reachable(member, crates);
    let broken = walls.iter().flat_map(|wall| wall.hides.iter().map(move |hidden| (wall, *hidden)));
    let broken = broken.filter(|(_, hidden)| seen.contains(*hidden));
    broken.map(|(wall, hidden)| format!("{}: `{}` sees `{hidden}`: {}", member.folder, wall.of, wall.reason)).collect()
}

/// Everything of ours that a crate's code is compiled with.
fn reachable<'a>(member: &'a Crate, crates: &'a [Crate]) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![member];
    while let Some(next) = open.pop() {
        for import in next.ours(Use::Code) {
            if seen.insert(import) {
                open.extend(crates.iter().filter(|other| other.name() == import));
            }
        }
    }
    seen
}

fn impure(member: &Crate) -> Vec<String> {
    let rules = PLAIN.iter().filter(|(of, _, _)| *of == member.name());
    let mut findings = Vec::new();
    for (of, libraries, reason) in rules {
        let code = member.imports.iter().filter(|import| import.used_for == Use::Code);
        let caught = code.filter(|import| libraries.contains(&import.package.as_str()));
        findings
            .extend(caught.map(|import| format!("{}: `{of}` imports `{}`: {reason}", member.folder, import.package)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name: import import ; test-import`, an external import in parentheses.
    fn member(line: &str) -> Crate {
        let (name, imports) = line.split_once(':').expect("a name, then a colon");
        let (code, tests) = imports.split_once(';').unwrap_or((imports, ""));
        let import = |used_for| {
            move |word: &str| match word.strip_prefix('(').and_then(|word| word.strip_suffix(')')) {
                Some(external) => Import { package: external.to_owned(), ours: false, used_for },
                None => Import { package: format!("hearth-{word}"), ours: true, used_for },
            }
        };
        let code = code.split_whitespace().map(import(Use::Code));
        let tests = tests.split_whitespace().map(import(Use::Tests));
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
        check(&["edge: api"], &["crates/edge: `edge` imports `api`, another role: roles talk over contracts"]);
        check(&["api: testkit"], &["crates/api: `api` imports `testkit`, which is only for tests"]);
        check(
            &["network: ; vmm"],
            &["crates/network: tests of `network` import `vmm`, which is neither in a lower layer nor the testkit"],
        );
    }

    #[test]
    fn walls_hold_through_third_crates() {
        check(
            &["orchestrator: sandbox", "sandbox: artifact", "artifact: catalog", "catalog:"],
            &["orchestrator", "sandbox", "artifact"]
                .map(|of| {
                    format!("crates/{of}: `{of}` sees `catalog`: a compromised node must hold no credential of the control plane")
                })
                .each_ref()
                .map(String::as_str),
        );
        check(
            &["sdk: cluster-api", "cluster-api:"],
            &["crates/sdk: `sdk` sees `cluster-api`: clients speak the public interfaces only"],
        );
        check(
            &["envd-api: types"],
            &["crates/envd-api: `envd-api` sees `types`: the guest's interface depends on nothing of ours"],
        );
        check(&["api: store catalog discovery", "edge: catalog discovery"], &[]);
    }

    #[test]
    fn unknown_and_impure_crates_are_found() {
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
