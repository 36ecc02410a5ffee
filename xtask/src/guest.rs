//! Builds the guest programs: statically linked and small, for the gnu target that every Rust toolchain includes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Package, and the file name of its program in the guest.
const PROGRAMS: &[(&str, &str)] =
    &[("hearth-init", "hearth-init"), ("hearth-envd", "envd"), ("hearth-interpreter", "hearth-interpreter")];
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// Builds the programs below `root` and copies them to `target/guest`. Cargo skips what is up to date.
pub(crate) fn run(root: &Path) -> Result<()> {
    let out_dir = root.join("target/guest");
    fs::create_dir_all(&out_dir)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With an explicit target, these builds have a separate folder, and the flags do not apply to host programs.
    cargo.current_dir(root).args(["build", "--profile", PROFILE, "--target", TARGET]);
    // RUSTFLAGS would override the flags of the target.
    cargo.env_remove("RUSTFLAGS");
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    for (package, _) in PROGRAMS {
        cargo.args(["-p", package]);
    }
    let status = cargo.status().context("starting cargo")?;
    if !status.success() {
        bail!("building the guest programs: {status}");
    }
    let built = root.join("target").join(TARGET).join(PROFILE);
    for (binary, name) in PROGRAMS {
        copy_if_changed(&built.join(binary), &out_dir.join(name))?;
    }
    Ok(())
}

/// Copies a program, unless the target is equal: its modification time must not change, because builds depend on it.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let program = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|present| present == program) {
        return Ok(());
    }
    // A unique temporary name, because `make up` and `make test` may run at the same time.
    let folder = to.parent().context("a program is in a folder")?;
    let fresh = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("writing to {}", folder.display()))?;
    fs::copy(from, fresh.path()).with_context(|| format!("writing {}", fresh.path().display()))?;
    fresh.persist(to).with_context(|| format!("writing {}", to.display()))?;
    println!("{} ({} KiB)", to.display(), program.len() / 1024);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_equal_program_is_not_copied_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("built"), folder.path().join("placed"));
        fs::write(&from, "program").expect("a file");
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).expect("own file");
        copy_if_changed(&from, &to).expect("it is copied");
        let first = fs::metadata(&to).expect("it exists");
        assert_eq!(first.permissions().mode() & 0o777, 0o755);
        copy_if_changed(&from, &to).expect("it is not copied again");
        assert_eq!(fs::metadata(&to).expect("it exists").modified().ok(), first.modified().ok());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
    }
}
