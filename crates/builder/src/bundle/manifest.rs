//! The manifest of a bundle, and the limits of what it may list.

use std::collections::HashSet;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::Bundle;
use super::content::Digest;

/// Path of the manifest in the archive.
pub(super) const MANIFEST: &str = "hearth-bundle.json";
/// Folder of the kernel package's files in the archive.
pub(super) const KERNEL: &str = "kernel";
/// Folder of the root filesystems in the archive.
pub(super) const ROOTFS: &str = "rootfs";
/// Version of the format; a reader rejects all others.
const FORMAT: u32 = 1;
/// Maximum size of the manifest: 200 bytes for each of the files.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Maximum number of files. A kernel package has 1400.
const FILES_MAX: usize = 20_000;
/// Maximum size of a file with its holes. A root filesystem has 8 to 20 GiB.
const FILE_BYTES_MAX: u64 = 128 << 30;
/// Maximum size of all files with their holes, which are read block by block.
const BYTES_MAX: u64 = 1 << 40;
/// Maximum length of a path: what a ustar header can hold.
const PATH_BYTES_MAX: usize = 255;

/// Manifest of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// Version of the program that wrote it.
    pub(super) writer: String,
    /// Debian release.
    pub(super) suite: String,
    pub(super) kernel_version: String,
    pub(super) templates: Vec<String>,
    /// In the order of the archive.
    pub(super) files: Vec<FileEntry>,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    /// Path in the archive.
    pub(super) path: String,
    /// Length with holes.
    pub(super) bytes: u64,
    /// Bytes in blocks that are not all zero.
    pub(super) data_bytes: u64,
    /// BLAKE3 hash in hex.
    pub(super) blake3: String,
}

/// Read first, so that another format is named in the error.
#[derive(Deserialize)]
struct FormatHeader {
    format: u32,
}

impl Manifest {
    pub(super) fn new(
        writer: String,
        suite: String,
        kernel_version: String,
        templates: Vec<String>,
        files: Vec<FileEntry>,
    ) -> Self {
        Self { format: FORMAT, writer, suite, kernel_version, templates, files }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers can be serialized")
    }

    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let syntax = |error| format!("its manifest cannot be read: {error}");
        let FormatHeader { format } = serde_json::from_slice(json).map_err(syntax)?;
        if format != FORMAT {
            return Err(format!("it has format {format}, and this version reads format {FORMAT}"));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(syntax)?;
        manifest.check()?;
        Ok(manifest)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.files.len() > FILES_MAX {
            return Err(format!("it lists {} files, and {FILES_MAX} are allowed", self.files.len()));
        }
        if !is_plain_name(&self.kernel_version) {
            return Err("the version of its kernel is not a file name".to_owned());
        }
        let (mut paths, mut total) = (HashSet::new(), 0_u64);
        for FileEntry { path, bytes, data_bytes, .. } in &self.files {
            if !is_allowed(path) {
                return Err(format!("the path {path:?} is not allowed"));
            }
            if !paths.insert(path) {
                return Err(format!("the path {path:?} is listed twice"));
            }
            if *bytes > FILE_BYTES_MAX || data_bytes > bytes {
                return Err(format!("the size of {path:?} is not allowed"));
            }
            total = total.saturating_add(*bytes);
        }
        if total > BYTES_MAX {
            return Err(format!("its files have {} GiB, and {} GiB are allowed", total >> 30, BYTES_MAX >> 30));
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub(super) fn summary(&self) -> Bundle {
        Bundle {
            writer: self.writer.clone(),
            kernel_version: self.kernel_version.clone(),
            templates: self.templates.clone(),
            data_bytes: self.files.iter().map(|file| file.data_bytes).sum(),
        }
    }
}

impl FileEntry {
    pub(super) fn new(path: String, digest: Digest) -> Self {
        let Digest { bytes, data_bytes, hash } = digest;
        Self { path, bytes, data_bytes, blake3: hash }
    }
}

/// Returns true for a name of a file that is no path.
fn is_plain_name(name: &str) -> bool {
    !name.starts_with('.') && !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// Returns true for a path below one of the two folders that cannot leave it.
fn is_allowed(path: &str) -> bool {
    let components: Vec<Component<'_>> = Path::new(path).components().collect();
    let names = components.iter().map(|component| component.as_os_str().to_string_lossy());
    // The comparison excludes doubled slashes and dots, which `components` omits.
    let is_normal = components.iter().all(|component| matches!(component, Component::Normal(_)))
        && names.collect::<Vec<_>>().join("/") == path;
    let is_printable = path.len() <= PATH_BYTES_MAX && path.bytes().all(|byte| byte.is_ascii_graphic());
    let is_known = match path.split_once('/') {
        Some((KERNEL, rest)) => !rest.is_empty(),
        Some((ROOTFS, image)) => is_plain_name(image) && image.ends_with(".ext4"),
        _ => false,
    };
    is_normal && is_printable && is_known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_leave_their_folder() {
        for path in ["kernel/boot/vmlinuz-6.12+deb13", "rootfs/base-0123.ext4"] {
            assert!(is_allowed(path), "{path}");
        }
        for path in [
            "",
            "/etc/passwd",
            "kernel",
            "kernel/",
            "kernel/../../x",
            "kernel/./x",
            "kernel//x",
            "kernel/x/",
            "kernel/a\nb",
            "rootfs/../kernel/x.ext4",
            "rootfs/a/b.ext4",
            "rootfs/.new-base.ext4",
            "rootfs/base.img",
            "other/x",
            "hearth-bundle.json",
        ] {
            assert!(!is_allowed(path), "{path:?}");
        }
        assert!(!is_allowed(&format!("kernel/{}", "x".repeat(PATH_BYTES_MAX))));
    }

    #[test]
    fn limits_and_other_formats_are_named() {
        let file = |path: &str, bytes, data_bytes| FileEntry {
            path: path.to_owned(),
            bytes,
            data_bytes,
            blake3: String::new(),
        };
        let manifest = |files| Manifest::new("1".into(), "trixie".into(), "6.12".into(), Vec::new(), files);
        let many = (0..=FILES_MAX).map(|number| file(&format!("kernel/{number}"), 0, 0)).collect();
        let large = (0..9).map(|number| file(&format!("kernel/{number}"), FILE_BYTES_MAX, 0)).collect();
        for (files, part) in [
            (vec![file("kernel/x", 1, 1), file("kernel/x", 1, 1)], "listed twice"),
            (vec![file("kernel/x", FILE_BYTES_MAX + 1, 1)], "size"),
            (vec![file("kernel/x", 1, 2)], "size"),
            (vec![file("../x", 1, 1)], "not allowed"),
            (many, "20000 are allowed"),
            (large, "1024 GiB are allowed"),
        ] {
            let reason = Manifest::parse(&manifest(files).to_json()).expect_err("invalid");
            assert!(reason.contains(part), "{reason}");
        }
        let other = Manifest { format: 2, ..manifest(Vec::new()) };
        assert!(Manifest::parse(&other.to_json()).expect_err("newer").contains("format 2"));
        let other = Manifest { kernel_version: "../x".to_owned(), ..manifest(Vec::new()) };
        assert!(Manifest::parse(&other.to_json()).expect_err("a path").contains("kernel"));
        assert!(Manifest::parse(b"{").is_err() && Manifest::parse(&manifest(Vec::new()).to_json()).is_ok());
    }
}
