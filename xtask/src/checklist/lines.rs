//! Data types of a checklist.

use super::markers::Language;

/// Acceptance checklist of one part of the product, with its page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checklist {
    /// Prefix of the comments that name its lines, after the language's comment sign.
    pub(super) marker: &'static str,
    /// Path of the generated page.
    pub(super) page: &'static str,
    /// Beginning of the page, before the tables.
    pub(super) head: &'static str,
    pub(super) groups: &'static [Group],
    /// Folders with tests, relative to the root, and the language of the test files.
    pub(super) folders: &'static [(&'static str, Language)],
}

/// Lines of one subject.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) lines: &'static [Line],
}

/// One line: behaviour on which clients or the platform rely.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    /// Languages that must each have a test of the line. Empty: one test in any language is enough.
    pub(super) needs: &'static [Language],
    /// Part that is not implemented yet, and the feature that adds it. Empty: the whole line is proven by tests.
    pub(super) unimplemented: &'static str,
}

impl Checklist {
    pub(super) fn lines(&self) -> impl Iterator<Item = &'static Line> {
        self.groups.iter().flat_map(|group| group.lines)
    }

    /// Returns true if a line with this ID exists.
    pub(super) fn has(&self, id: &str) -> bool {
        self.lines().any(|line| line.id == id)
    }
}
