//! Soak: keeps sandboxes busy for minutes, and fails on crashed programs and wrong results.

use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::check::Build;
use crate::instance::{Addressing, Instance, Template};
use crate::phases::Phases;
use crate::sdk::{Sdks, on_private_server};

/// Duration in `make test`, in minutes.
pub(crate) const MINUTES: u32 = 5;

/// Duration and build.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// Duration of the soak, in minutes.
    #[arg(long, default_value_t = MINUTES)]
    minutes: u32,
    /// Use the debug build, as `make test` does, instead of the release build.
    #[arg(long)]
    debug: bool,
}

impl Selection {
    pub(crate) fn build(&self) -> Build {
        if self.debug { Build::Debug } else { Build::Release }
    }
}

/// Running soak. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Soak(Child);

impl Soak {
    /// Starts the soak on a server.
    pub(crate) fn start(sdks: &Sdks, instance: &Instance, minutes: u32) -> Result<Self> {
        let mut command = sdks.python();
        command.args(["soak.py", "--minutes", &minutes.to_string()]).stdin(Stdio::null());
        let child = command.envs(instance.environment(Addressing::Addresses)?).spawn().context("starting the soak")?;
        Ok(Self(child))
    }

    /// Waits until it finishes.
    ///
    /// # Errors
    /// The soak failed.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.0.wait().context("waiting for the soak")?;
        if !status.success() {
            bail!("the soak failed: {status}");
        }
        Ok(())
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        // After another failure the soak must not continue against a stopped server.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs only the soak, on a private server.
pub(crate) fn test(root: &Path, phases: &Phases, selection: &Selection) -> Result<()> {
    let sdks = phases.run("official SDKs", || Sdks::ensure(root))?;
    on_private_server(root, phases, selection.build(), ("soak", Template::Base), |instance| {
        phases.run("soak", || Soak::start(&sdks, instance, selection.minutes)?.wait())
    })
}
