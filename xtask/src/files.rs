//! Reads the repository's text files for the checks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Folders that hold build output, installed packages or generated code.
const SKIPPED: &[&str] = &["target", "node_modules", "generated", "artifacts", "corpus"];

/// A text file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct TextFile {
    /// Path relative to the repository, with `/` as separator.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Returns the files with `extension` at or below `path`, sorted by path.
///
/// Hidden folders and [`SKIPPED`] ones are left out. A `path` that does not exist is an error.
pub(crate) fn read(root: &Path, path: &str, extension: &str) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    let mut pending = vec![root.join(path)];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("listing {}", path.display()))?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if !name.starts_with('.') && !SKIPPED.contains(&name.as_ref()) {
                    pending.push(entry.path());
                }
            }
        } else if metadata.is_file() && path.extension().is_some_and(|found| found == extension) {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            files.push(TextFile { path, text });
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}
