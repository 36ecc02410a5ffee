//! Languages: their names, kernels, and the code that prepares a kernel between executions.
//!
//! Values are passed into code only as literals that the language's module escapes, or as base64. This code runs
//! silently: it is not counted and has no output.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

mod bash;
mod java;
mod javascript;
mod python;
mod r;

/// Environment variables.
pub(crate) type Variables = BTreeMap<String, String>;

/// Longest name of a language, in bytes; it becomes a directory name.
const NAME_BYTES_MAX: usize = 128;

/// Name of a language as clients see it: lower case, without aliases.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Language(String);

/// Syntax of the code that prepares a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Python,
    JavaScript,
    R,
    Java,
    Bash,
    /// The kernel is not prepared.
    Unknown,
}

impl Language {
    /// Language of the first default context.
    pub(crate) fn python() -> Self {
        Self("python".to_owned())
    }

    /// Language of the second default context.
    pub(crate) fn javascript() -> Self {
        Self("javascript".to_owned())
    }

    /// Normalizes a client's name; an empty one is Python.
    pub(crate) fn new(name: &str) -> Self {
        let name = name.trim().to_lowercase();
        Self(match name.as_str() {
            "" => "python".to_owned(),
            "js" => "javascript".to_owned(),
            "ts" => "typescript".to_owned(),
            _ => name,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Names of the kernels that run the language, in order of preference; none if the name cannot be a kernel's.
    pub(crate) fn kernels(&self) -> Vec<&str> {
        match self.0.as_str() {
            "python" => vec!["python3", "python"],
            "typescript" => vec!["javascript"],
            "r" => vec!["r", "ir"],
            name if is_kernel_name(name) => vec![name],
            _ => Vec::new(),
        }
    }

    /// Returns the language whose code prepares the kernel: this one, or the kernel's own if this is only a name.
    pub(crate) fn dialect(&self, kernel_language: &str) -> Self {
        let is_named_after_kernel = self.syntax() == Syntax::Unknown && !kernel_language.is_empty();
        if is_named_after_kernel { Self::new(kernel_language) } else { self.clone() }
    }

    fn syntax(&self) -> Syntax {
        match self.0.as_str() {
            "python" | "python3" => Syntax::Python,
            "javascript" | "typescript" => Syntax::JavaScript,
            "r" | "ir" => Syntax::R,
            "java" => Syntax::Java,
            "bash" => Syntax::Bash,
            _ => Syntax::Unknown,
        }
    }

    /// Code that runs once in a new kernel.
    pub(crate) fn start_code(&self) -> Option<&'static str> {
        match self.syntax() {
            Syntax::Python => Some(python::START),
            _ => None,
        }
    }

    /// Code that changes the working directory; none if the language's kernels have no known way.
    pub(crate) fn directory_code(&self, path: &str) -> Option<String> {
        match self.syntax() {
            Syntax::Python => Some(python::change_directory(path)),
            Syntax::JavaScript => Some(javascript::change_directory(path)),
            Syntax::R => Some(r::change_directory(path)),
            Syntax::Java => Some(java::change_directory(path)),
            Syntax::Bash => Some(bash::change_directory(path)),
            Syntax::Unknown => None,
        }
    }

    /// Code that sets variables and removes others; none if there is nothing to do.
    pub(crate) fn variables_code(&self, set: &Variables, removed: &[&str]) -> Option<String> {
        if set.is_empty() && removed.is_empty() {
            return None;
        }
        match self.syntax() {
            Syntax::Python => Some(python::change_variables(set, removed)),
            Syntax::JavaScript => Some(javascript::change_variables(set, removed)),
            Syntax::R => Some(r::change_variables(set, removed)),
            Syntax::Java => Some(java::change_variables(set, removed)),
            Syntax::Bash => Some(bash::change_variables(set, removed)),
            Syntax::Unknown => None,
        }
    }

    /// Code that gives a kernel new random numbers, from the kernel's own source or from `seed`.
    pub(crate) fn reseed_code(&self, seed: u32) -> Option<String> {
        match self.syntax() {
            Syntax::Python => Some(python::RESEED.to_owned()),
            Syntax::JavaScript => Some(javascript::RESEED.to_owned()),
            Syntax::R => Some(r::reseed(seed)),
            Syntax::Bash => Some(bash::reseed(seed)),
            // Generators that a program has made cannot be reached; new ones differ by the time.
            Syntax::Java | Syntax::Unknown => None,
        }
    }

    /// Returns true if the language's kernel counts silent code as executions, against the protocol.
    pub(crate) fn counts_silent_code(&self) -> bool {
        self.syntax() == Syntax::Java
    }

    /// Returns true if the last line end of an output is an event of its own, as clients of the language expect.
    pub(crate) fn separates_line_ends(&self) -> bool {
        self.syntax() == Syntax::Java
    }

    /// Returns true if variables are set in the environment with which the kernel was started.
    pub(crate) fn has_environment(&self) -> bool {
        self.syntax() != Syntax::Java
    }

    /// File name of the language's warm-up code.
    pub(crate) fn warm_up_file(&self) -> Option<&'static str> {
        match self.syntax() {
            Syntax::Python => Some("warm-up.py"),
            Syntax::JavaScript => Some("warm-up.js"),
            _ => None,
        }
    }
}

fn is_kernel_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.bytes().all(is_plain)
}

/// JSON in base64: only letters, digits, `+`, `/` and `=`.
fn packed(value: &impl serde::Serialize) -> String {
    // Maps and lists of strings can be written as JSON.
    BASE64_STANDARD.encode(serde_json::to_vec(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalized() {
        for (name, expected, kernels) in [
            ("", "python", &["python3", "python"][..]),
            (" Python ", "python", &["python3", "python"]),
            ("JS", "javascript", &["javascript"]),
            ("ts", "typescript", &["javascript"]),
            ("R", "r", &["r", "ir"]),
            ("py", "py", &["py"]),
            ("python3", "python3", &["python3"]),
            ("../x", "../x", &[]),
            ("a b", "a b", &[]),
            (".", ".", &[]),
        ] {
            let language = Language::new(name);
            assert_eq!((language.name(), language.kernels()), (expected, kernels.to_vec()));
        }
    }

    #[test]
    fn a_kernel_with_another_name_is_prepared_in_its_own_language() {
        for (name, kernel, expected) in
            [("science", "python", "python"), ("stats", "R", "r"), ("bash", "python", "bash"), ("x", "cobol", "cobol")]
        {
            assert_eq!(Language::new(name).dialect(kernel).name(), expected);
        }
        assert_eq!(Language::new("x").dialect("").syntax(), Syntax::Unknown);
    }

    #[test]
    fn nothing_runs_without_variables() {
        for name in ["python", "ts", "r", "java", "bash", "other"] {
            assert_eq!(Language::new(name).variables_code(&Variables::new(), &[]), None);
        }
    }
}
