//! Guest programs, embedded in this binary.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hearth_builder::GuestPrograms;

const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hearth-init"));
const ENVD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envd"));
const INTERPRETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hearth-interpreter"));

/// Writes the embedded programs to a folder for the builder, and replaces those of another version.
///
/// # Errors
/// This binary was built without them, or the file system returned an error.
pub(crate) fn ensure(folder: &Path) -> Result<GuestPrograms> {
    ensure!(
        !INIT.is_empty() && !ENVD.is_empty(),
        "this binary was built without the guest programs: run `cargo xtask guest` and build it again"
    );
    fs::create_dir_all(folder).with_context(|| format!("creating the folder {}", folder.display()))?;
    let interpreter = match INTERPRETER {
        [] => None,
        program => Some(unpack(&folder.join("hearth-interpreter"), program)?),
    };
    Ok(GuestPrograms {
        init: unpack(&folder.join("hearth-init"), INIT)?,
        envd: unpack(&folder.join("envd"), ENVD)?,
        interpreter,
    })
}

fn unpack(path: &Path, program: &[u8]) -> Result<PathBuf> {
    let fresh = path.with_extension("new");
    if fs::read(path).is_ok_and(|existing| existing == program) {
        return Ok(path.to_owned());
    }
    fs::write(&fresh, program)
        .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("unpacking {}", path.display()))?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_different_version_is_replaced() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("program");
        for content in [&b"one"[..], b"two", b"two"] {
            assert_eq!(unpack(&path, content).expect("writes"), path);
            assert_eq!(fs::read(&path).expect("reads"), content);
        }
        assert_eq!(fs::metadata(&path).expect("it exists").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }
}
