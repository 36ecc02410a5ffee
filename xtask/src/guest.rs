//! The programs that go into a guest: static, small, for the gnu target that every Rust toolchain has.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A package and what its program is called where it goes.
const PROGRAMS: &[(&str, &str)] = &[("hearth-init", "hearth-init"), ("hearth-envd", "envd")];
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// Builds the programs below `root` and puts them into `target/guest`. Cargo knows what is up to date.
pub(crate) fn run(root: &Path) -> Result<()> {
    let out_dir = root.join("target/guest");
    fs::create_dir_all(&out_dir)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With a target named, these builds have a folder of their own and the host's programs do not get the flags.
    cargo.current_dir(root).args(["build", "--profile", PROFILE, "--target", TARGET]);
    // It would override the flags for the target.
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
        place(&built.join(binary), &out_dir.join(name))?;
    }
    Ok(())
}

/// Copies a program, unless an equal one is there: whoever looks at its time sees no change then.
fn place(from: &Path, to: &Path) -> Result<()> {
    let program = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|present| present == program) {
        return Ok(());
    }
    // Under a name of its own: `make up` and `make test` may be at it at once.
    let folder = to.parent().context("a program lies in a folder")?;
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
    fn a_program_is_placed_once_and_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("built"), folder.path().join("placed"));
        fs::write(&from, "program").expect("a file");
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).expect("it is ours");
        place(&from, &to).expect("it is placed");
        let first = fs::metadata(&to).expect("it is there");
        assert_eq!(first.permissions().mode() & 0o777, 0o755);
        place(&from, &to).expect("it is there already");
        assert_eq!(fs::metadata(&to).expect("it is there").modified().ok(), first.modified().ok());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
    }
}
