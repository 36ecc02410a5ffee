//! Archives in the `newc` format, which a Linux kernel unpacks into its initial root filesystem.
//!
//! See Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`. Equal contents give equal bytes: entries
//! are sorted, belong to root and have no time.

use std::collections::BTreeMap;
use std::io;

const MAGIC: &str = "070701";
/// Name of the entry that ends the archive.
const TRAILER: &str = "TRAILER!!!";
/// Alignment of headers and contents, in bytes.
const ALIGNMENT: usize = 4;
/// File types in a mode (inode(7)).
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive under construction. Paths are relative, without a leading slash.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    contents: Vec<u8>,
}

impl Archive {
    /// Adds a folder and its parents.
    pub(crate) fn folder(&mut self, path: &str) -> &mut Self {
        self.parents(path);
        self.put(path, FOLDER | 0o755, (0, 0), Vec::new())
    }

    /// Adds a file with permissions `mode`, and its parent folders.
    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: Vec<u8>) -> &mut Self {
        self.parents(path);
        self.put(path, FILE | mode, (0, 0), contents)
    }

    /// Adds a character device for root, and its parent folders.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        self.parents(path);
        self.put(path, CHARACTER_DEVICE | 0o600, (major, minor), Vec::new())
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry {
                mode: FOLDER | 0o755,
                device: (0, 0),
                contents: Vec::new(),
            });
        }
    }

    fn put(&mut self, path: &str, mode: u32, device: (u32, u32), contents: Vec<u8>) -> &mut Self {
        self.entries.insert(path.to_owned(), Entry { mode, device, contents });
        self
    }

    /// Returns the archive's bytes.
    ///
    /// # Errors
    /// A file is larger than the format's limit of 4 GiB.
    pub(crate) fn into_bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // A folder sorts before its contents, as the kernel requires.
        for (index, (path, entry)) in (1..).zip(&self.entries) {
            append(&mut bytes, index, path, entry)?;
        }
        append(&mut bytes, 0, TRAILER, &Entry { mode: 0, device: (0, 0), contents: Vec::new() })?;
        Ok(bytes)
    }
}

fn append(bytes: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) -> io::Result<()> {
    let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} does not fit into an archive"));
    let size = u32::try_from(entry.contents.len()).map_err(too_large)?;
    let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
    let (major, minor) = entry.device;
    // inode, mode, uid, gid, links, time, size, device (2), device of a device file (2), name size, checksum
    let fields = [inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
    bytes.extend(MAGIC.as_bytes());
    for field in fields {
        bytes.extend(format!("{field:08X}").as_bytes());
    }
    bytes.extend(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(&entry.contents);
    pad(bytes);
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn archive() -> Archive {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"#!/bin/sh\n".to_vec());
        archive.file("modules/kernel/a.ko", 0o644, b"abcde".to_vec());
        archive.folder("proc").character_device("dev/console", 5, 1);
        archive
    }

    #[test]
    fn equal_contents_have_equal_bytes_in_any_order() {
        let mut other = Archive::default();
        other.character_device("dev/console", 5, 1).folder("proc");
        other.file("modules/kernel/a.ko", 0o644, b"abcde".to_vec());
        other.file("init", 0o755, b"#!/bin/sh\n".to_vec());
        assert_eq!(archive().into_bytes().expect("small"), other.into_bytes().expect("small"));
    }

    /// The format's own tool reads the archive.
    #[test]
    fn bsdtar_lists_and_unpacks_the_archive() {
        let bytes = archive().into_bytes().expect("small");
        let list = run(&["-tvf", "-"], &bytes);
        let lines: Vec<&str> = list.lines().collect();
        let expected = [
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
            ("-rwxr-xr-x", "init"),
            ("drwxr-xr-x", "modules"),
            ("drwxr-xr-x", "modules/kernel"),
            ("-rw-r--r--", "modules/kernel/a.ko"),
            ("drwxr-xr-x", "proc"),
        ];
        assert_eq!(lines.len(), expected.len(), "{list}");
        for (line, (mode, path)) in lines.iter().zip(expected) {
            assert!(line.starts_with(mode) && line.ends_with(path), "{line}: {mode} {path}");
        }
        assert!(list.contains("5,1"), "{list}");
        assert_eq!(run(&["-xOf", "-", "modules/kernel/a.ko"], &bytes), "abcde");
    }

    fn run(args: &[&str], input: &[u8]) -> String {
        let mut child = Command::new("bsdtar")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bsdtar is installed (package libarchive-tools)");
        child.stdin.take().expect("piped").write_all(input).expect("is read");
        let output = child.wait_with_output().expect("exits");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    }
}
