//! Rules for the text of source files: names, sizes, unsafe code, access to the environment.
//!
//! Files are parsed to tokens, so comments and strings are never mistaken for code.

use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};

use super::graph::Crate;
use crate::files::TextFile;

/// Maximum length of a file, in lines.
const LINES_MAX: usize = 800;
/// Words that are too vague for the name of a module or type.
const VAGUE_WORDS: &[&str] = &["manager", "service", "util", "helper", "common", "data", "info"];
/// Functions of `std::env` that read or change the environment.
const ENVIRONMENT: &[&str] = &["var", "var_os", "vars", "vars_os", "set_var", "remove_var"];
/// Crates that may read the whole environment: the binary, and tools for developers.
///
/// Kernels inherit the environment of the code interpreter.
const READS_ENVIRONMENT: &[&str] = &["hearth", "interpreter", "testkit", "xtask"];
/// Crates that may read `PATH` only: the search path is a fact of the machine, and not configuration.
const READS_PATH: &[&str] = &["host", "envd", "init"];

/// Returns the findings in a file of a crate.
pub(super) fn findings(member: &Crate, source: &TextFile) -> Vec<String> {
    let path = Path::new(&source.path);
    // The generator determines the style of generated code.
    if path.iter().any(|part| part == "generated") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut report = |line: usize, what: &str| findings.push(format!("{}:{line}: {what}", source.path));
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        report(1, "a module `foo` is `foo.rs` beside the folder `foo`, never `mod.rs`");
    }
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        report(lines, &format!("a file has at most {LINES_MAX} lines: split it"));
    }
    if let Some(word) = path.file_stem().and_then(|stem| vague_word_of_module(&stem.to_string_lossy())) {
        report(1, &format!("`{word}` is too vague for a module: name its subject"));
    }
    let tokens = match TokenStream::from_str(&source.text) {
        Ok(tokens) => tokens,
        Err(error) => {
            report(1, &format!("invalid Rust: {error}"));
            return findings;
        }
    };
    let is_root = member.roots.contains(&source.path);
    if is_root && !guards_unsafe(&tokens, lint_for_unsafe(member.name())) {
        let lint = lint_for_unsafe(member.name()).unwrap_or_default();
        report(1, &format!("missing `#![{lint}(unsafe_code)]`"));
    }
    let outside_src = path.iter().any(|part| part == "tests" || part == "benches" || part == "examples");
    // Cargo passes the inputs of a build script in the environment.
    let is_build_script = path == Path::new(&member.folder).join("build.rs");
    let scan = Scan {
        unsafe_allowed: member.name() == "host" || is_sys_module(member, path),
        environment: if outside_src || is_build_script {
            EnvironmentAccess::All
        } else {
            environment_access_of(member.name())
        },
    };
    scan.walk(tokens, Position { in_impl: false, in_attribute: false }, &mut report);
    findings
}

/// Returns the lint for unsafe code that a crate's root must set; `None` for `host`, which contains the unsafe code.
fn lint_for_unsafe(name: &str) -> Option<&'static str> {
    match name {
        "host" => None,
        // Their `sys` module allows unsafe code, which `forbid` would not permit.
        "envd" | "init" => Some("deny"),
        _ => Some("forbid"),
    }
}

fn is_sys_module(member: &Crate, path: &Path) -> bool {
    let inside = path.strip_prefix(&member.folder).unwrap_or(path);
    matches!(member.name(), "envd" | "init") && (inside == Path::new("src/sys.rs") || inside.starts_with("src/sys"))
}

/// Returns true if the inner attributes contain the lint for `unsafe_code`, or a stricter one.
fn guards_unsafe(tokens: &TokenStream, lint: Option<&str>) -> bool {
    let Some(lint) = lint else { return true };
    let mut accepted = vec![format!("{lint}(unsafe_code)")];
    if lint == "deny" {
        accepted.push("forbid(unsafe_code)".to_owned());
    }
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            accepted.contains(&group.stream().to_string().replace(' ', ""))
        }
        _ => false,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EnvironmentAccess {
    /// The whole environment may be read.
    All,
    /// Only `PATH`.
    PathOnly,
    /// Nothing may be read.
    Denied,
}

fn environment_access_of(name: &str) -> EnvironmentAccess {
    if READS_ENVIRONMENT.contains(&name) {
        EnvironmentAccess::All
    } else if READS_PATH.contains(&name) {
        EnvironmentAccess::PathOnly
    } else {
        EnvironmentAccess::Denied
    }
}

/// Permissions of a file.
#[derive(Debug, Clone, Copy)]
struct Scan {
    unsafe_allowed: bool,
    environment: EnvironmentAccess,
}

/// Syntactic position of a token.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// The trait names the associated types of an `impl`, and may come from another crate.
    in_impl: bool,
    in_attribute: bool,
}

impl Scan {
    fn walk(self, tokens: TokenStream, position: Position, report: &mut dyn FnMut(usize, &str)) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut scan = self;
        let mut in_impl = position.in_impl;
        for (at, token) in tokens.iter().enumerate() {
            let rest = &tokens[at + 1..];
            match token {
                TokenTree::Ident(ident) => {
                    in_impl |= ident == "impl";
                    let here = Position { in_impl, ..position };
                    scan.check_ident(ident, rest, here, report);
                }
                TokenTree::Group(group) => {
                    let in_attribute = group.delimiter() == Delimiter::Bracket && follows_hash(&tokens[..at]);
                    if in_attribute && group.stream().to_string().replace(' ', "") == "cfg(test)" {
                        // The next item is a test, which may read the whole environment.
                        scan.environment = EnvironmentAccess::All;
                    }
                    scan.walk(
                        group.stream(),
                        Position { in_impl, in_attribute: in_attribute || position.in_attribute },
                        report,
                    );
                    if group.delimiter() == Delimiter::Brace {
                        // The body of an item ends the item.
                        scan = self;
                        in_impl = position.in_impl;
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    scan = self;
                    in_impl = position.in_impl;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    fn check_ident(self, ident: &Ident, rest: &[TokenTree], position: Position, report: &mut dyn FnMut(usize, &str)) {
        let line = ident.span().start().line;
        if ident == "unsafe" && !self.unsafe_allowed && !position.in_attribute {
            report(line, "unsafe code belongs in `host`, or in the `sys` module of a guest program");
        }
        if ident == "env" && self.reads_environment(rest, position) {
            report(line, "only `hearth` reads the environment: take a `Config` by value");
        }
        let Some(TokenTree::Ident(name)) = rest.first() else { return };
        let name = name.to_string();
        let empty = match ident.to_string().as_str() {
            "mod" => vague_word_of_module(&name),
            "struct" | "enum" | "trait" | "union" => vague_word_of_type(&name),
            "type" if !position.in_impl => vague_word_of_type(&name),
            _ => None,
        };
        if let Some(word) = empty {
            report(line, &format!("`{name}`: `{word}` is too vague, name its subject"));
        }
    }

    fn reads_environment(self, rest: &[TokenTree], position: Position) -> bool {
        if self.environment == EnvironmentAccess::All {
            return false;
        }
        if position.in_attribute {
            // clap's `#[arg(env = ..)]`.
            return true;
        }
        let [TokenTree::Punct(first), TokenTree::Punct(second), what, after @ ..] = rest else { return false };
        if first.as_char() != ':' || second.as_char() != ':' {
            return false;
        }
        let is_reader = |token: &TokenTree| match token {
            TokenTree::Ident(name) => ENVIRONMENT.iter().any(|reader| name == reader),
            _ => false,
        };
        let reads = match what {
            TokenTree::Group(group) => group.stream().into_iter().any(|token| is_reader(&token)),
            other => is_reader(other),
        };
        let only_path = match after.first() {
            Some(TokenTree::Group(arguments)) => arguments.stream().to_string() == "\"PATH\"",
            _ => false,
        };
        reads && !(self.environment == EnvironmentAccess::PathOnly && only_path)
    }
}

fn follows_hash(before: &[TokenTree]) -> bool {
    let is =
        |token: &TokenTree, expected: char| matches!(token, TokenTree::Punct(punct) if punct.as_char() == expected);
    match before {
        [.., hash, bang] if is(bang, '!') => is(hash, '#'),
        [.., hash] => is(hash, '#'),
        [] => false,
    }
}

/// Returns the first vague word in a module's name: `helper` for `test_helpers`.
fn vague_word_of_module(name: &str) -> Option<&'static str> {
    name.split('_').find_map(vague_word)
}

/// Returns the last word of a type's name if it is vague: `manager` for `SlotManager`.
///
/// The suffix `Service` is allowed, because Protobuf services have it.
fn vague_word_of_type(name: &str) -> Option<&'static str> {
    let start = name.rfind(|character: char| character.is_ascii_uppercase())?;
    let alone = start == 0;
    vague_word(&name[start..].to_ascii_lowercase()).filter(|word| alone || *word != "service")
}

fn vague_word(word: &str) -> Option<&'static str> {
    let singular = word.strip_suffix('s').unwrap_or(word);
    VAGUE_WORDS.iter().find(|empty| **empty == word || **empty == singular).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the findings in a file of a crate as `line: text`, without the path.
    fn found(package: &str, path: &str, text: &str) -> Vec<String> {
        let folder = format!("crates/{package}");
        let path = format!("{folder}/{path}");
        let member = Crate {
            package: format!("hearth-{package}"),
            roots: vec![format!("{folder}/src/lib.rs")],
            folder,
            imports: Vec::new(),
        };
        let prefix = format!("{path}:");
        let source = TextFile { path, text: text.to_owned() };
        findings(&member, &source)
            .iter()
            .map(|finding| finding.strip_prefix(&prefix).expect("findings begin with the path").to_owned())
            .collect()
    }

    fn check(package: &str, path: &str, text: &str, expected: &[&str]) {
        let found = found(package, path, text);
        assert_eq!(found.len(), expected.len(), "{package} {path}: {text}\n{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{package} {path}: {text}\n`{found}` has no `{expected}`");
        }
    }

    #[test]
    fn unsafe_code_is_allowed_in_host_and_sys_only() {
        let block = "fn f() {\n    unsafe { g() }\n}";
        check("vmm", "src/qemu.rs", block, &["2: unsafe code"]);
        check("vmm", "tests/real.rs", block, &["2: unsafe code"]);
        check("host", "src/process.rs", block, &[]);
        check("envd", "src/sys.rs", block, &[]);
        check("envd", "src/system.rs", block, &["unsafe code"]);
        check("vmm", "src/qemu.rs", "/// unsafe\nconst A: &str = \"unsafe\"; // unsafe", &[]);
    }

    #[test]
    fn roots_forbid_unsafe_code() {
        check("vmm", "src/lib.rs", "//! Doc.\n#![forbid(unsafe_code)]\nmod a;", &[]);
        check("vmm", "src/lib.rs", "#![deny(unsafe_code)]", &["missing `#![forbid(unsafe_code)]`"]);
        check("envd", "src/lib.rs", "#![deny(unsafe_code)]", &[]);
        check("envd", "src/lib.rs", "", &["missing `#![deny(unsafe_code)]`"]);
        check("host", "src/lib.rs", "", &[]);
    }

    #[test]
    fn only_the_binary_reads_the_environment() {
        let read = "fn f() { std::env::var(\"HEARTH_X\"); }";
        check("api", "src/config.rs", read, &["1: only `hearth` reads"]);
        check("api", "tests/rest.rs", read, &[]);
        check("hearth", "src/config.rs", read, &[]);
        check("api", "src/config.rs", "use std::env::{args, var_os};", &["only `hearth` reads"]);
        check("api", "src/config.rs", "struct A { #[arg(long, env = \"X\")] b: u8 }", &["only `hearth` reads"]);
        check("api", "src/config.rs", "const A: &str = env!(\"CARGO_PKG_VERSION\");", &[]);
        check("api", "src/config.rs", "#[cfg(test)]\nmod tests { fn f() { env::var(\"X\"); } }", &[]);
        check("api", "src/config.rs", "#[cfg(test)]\nuse a;\nfn f() { env::var(\"X\"); }", &["3: only `hearth` reads"]);
        check("api", "build.rs", read, &[]);
        check("host", "src/process.rs", "fn f() { env::var_os(\"PATH\"); env::var_os(\"HOME\"); }", &["only `hearth`"]);
    }

    #[test]
    fn vague_names_are_found() {
        check(
            "api",
            "src/teams.rs",
            "struct SlotManager; enum Data {} trait Helper {} mod utils;",
            &["`SlotManager`: `manager`", "`Data`: `data`", "`Helper`: `helper`", "`utils`: `util`"],
        );
        check("api", "src/teams.rs", "struct Metadata; struct ProcessService; mod database; struct Infovore;", &[]);
        check("api", "src/teams.rs", "impl Body for A { type Data = Bytes; } type Data = u8;", &["`Data`"]);
        check("api", "src/test_helpers.rs", "", &["`helper` is too vague for a module"]);
        check("api", "src/teams/mod.rs", "", &["never `mod.rs`"]);
    }

    #[test]
    fn generated_files_are_skipped_and_long_ones_are_found() {
        let long = "const A: u8 = 1;\n".repeat(LINES_MAX + 1);
        check("api", "src/teams.rs", &long, &["801: a file has at most 800 lines"]);
        check("api", "src/generated/mod.rs", &format!("{long} struct Data;"), &[]);
        check("api", "src/teams.rs", "fn (", &["1: invalid Rust"]);
    }
}
