//! Busy sandboxes for a long time: programs in them that die, and results that are wrong.

use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::check::Build;
use crate::instance::{By, Instance};
use crate::phases::Phases;
use crate::sdk::{Sdks, on_private_server};

/// Minutes in `make test`.
pub(crate) const MINUTES: u32 = 5;

/// How long, and on which build.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// How long
    #[arg(long, default_value_t = MINUTES)]
    minutes: u32,
    /// On the debug build, as `make test` does, instead of the one that is shipped.
    #[arg(long)]
    debug: bool,
}

impl Selection {
    pub(crate) fn build(&self) -> Build {
        if self.debug { Build::Debug } else { Build::Release }
    }
}

/// A soak that is under way.
#[derive(Debug)]
pub(crate) struct Soak(Child);

impl Soak {
    /// Starts it on a server.
    pub(crate) fn start(sdks: &Sdks, instance: &Instance, minutes: u32) -> Result<Self> {
        let mut command = sdks.python();
        command.args(["soak.py", "--minutes", &minutes.to_string()]).stdin(Stdio::null());
        let child = command.envs(instance.environment(By::Addresses)?).spawn().context("starting the soak")?;
        Ok(Self(child))
    }

    /// Waits for its end, and says whether all went well.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.0.wait().context("waiting for the soak")?;
        if !status.success() {
            bail!("the soak ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        // After a failure of something else: it would go on against a server that is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The soak alone, on a private server.
pub(crate) fn test(root: &Path, phases: &Phases, selection: &Selection) -> Result<()> {
    let sdks = phases.run("official SDKs", || Sdks::ensure(root))?;
    on_private_server(root, phases, selection.build(), "soak", |instance| {
        phases.run("soak", || Soak::start(&sdks, instance, selection.minutes)?.wait())
    })
}
