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
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("writing {}", to.display()))?;
    println!("{} ({} KiB)", to.display(), program.len() / 1024);
    Ok(())
}
