//! A certificate authority of the host, trusted by the guest's programs.
//!
//! Its certificates are appended to the bundle that TLS libraries read, in a directory that PID 1 mounts in memory.
//! Certificates appended earlier for this sandbox are removed. A copy in the source directory of
//! `update-ca-certificates` retains them when a program rebuilds the bundle.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::regular;

/// Bundle of Debian's ca-certificates, relative to the root of the file system.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// Largest bundle that is extended. The guest writes this file; Debian's has 230 KiB.
const BUNDLE_BYTES_MAX: u64 = 16 << 20;
/// Local source from which `update-ca-certificates` rebuilds the bundle.
pub(crate) const SOURCE: &str = "usr/local/share/ca-certificates/e2b-ca.crt";

/// Certificates added to the distribution's bundle.
#[derive(Debug, Default)]
pub(crate) struct InjectedCertificates {
    text: Option<String>,
}

impl InjectedCertificates {
    /// Trusts `certificates` (PEM, one or several) below `root` and removes the previous ones. Does nothing for the
    /// same text.
    pub(crate) fn trust(&mut self, root: &Path, certificates: &str) -> io::Result<()> {
        let text = with_final_newline(certificates);
        if self.text.as_ref() == Some(&text) {
            return Ok(());
        }
        let bundle = root.join(BUNDLE);
        let mut content = regular::read_text(&bundle, BUNDLE_BYTES_MAX)?;
        if let Some(before) = self.text.take()
            && let Some(start) = content.rfind(&before)
        {
            content.replace_range(start..start + before.len(), "");
        }
        if !content.is_empty() && !content.ends_with('\n') {
            content.push('\n');
        }
        content.push_str(&text);
        replace(&bundle, &content)?;
        self.text = Some(text);
        Ok(())
    }

    /// Writes the certificates to the local sources of the bundle.
    ///
    /// Writes to the disk, so no request should wait for it.
    pub(crate) fn store_source(root: &Path, certificates: &str) -> io::Result<()> {
        let source = root.join(SOURCE);
        fs::create_dir_all(source.parent().unwrap_or(root))?;
        replace(&source, &with_final_newline(certificates))
    }
}

/// Returns the text with exactly one line break at its end.
fn with_final_newline(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

/// Replaces a file atomically; the new one is readable by all.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let fresh = PathBuf::from(format!("{}.e2b-new", path.display()));
    let written = regular::write(&fresh, content.as_bytes())
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    // envd: X3
    #[test]
    fn certificates_are_appended_once_and_replaced() {
        let root = tempfile::tempdir().expect("create a temporary directory");
        let bundle = root.path().join(BUNDLE);
        let mut injected = InjectedCertificates::default();
        assert!(injected.trust(root.path(), "new").is_err(), "trusting fails without a bundle");
        fs::create_dir_all(bundle.parent().expect("has a parent")).expect("create");
        fs::write(&bundle, "one\ntwo").expect("write");
        let read = || fs::read_to_string(&bundle).expect("read");
        for _ in 0..2 {
            injected.trust(root.path(), "first\n\n").expect("trust");
            assert_eq!(read(), "one\ntwo\nfirst\n");
        }
        injected.trust(root.path(), "second\nthird").expect("trust");
        assert_eq!(read(), "one\ntwo\nsecond\nthird\n");
        InjectedCertificates::store_source(root.path(), "second").expect("store");
        assert_eq!(fs::read_to_string(root.path().join(SOURCE)).expect("read"), "second\n");
        let entries = fs::read_dir(bundle.parent().expect("has a parent")).expect("read").count();
        assert_eq!(entries, 1, "no temporary file remains");
    }
}
