//! Cleanup after a daemon that crashed.

use std::fs;
use std::path::Path;

use hearth_host::process::Process;

use crate::{Config, Error};

/// Kills every VM of an earlier daemon of this node and removes its folder; returns their number.
///
/// Network slots and control groups are reclaimed by `network` and `host`. A VMM is recognised by its folder's path
/// among its arguments, which its guest cannot change.
///
/// # Errors
/// The folder of executions cannot be created or listed.
pub async fn reclaim(config: &Config) -> Result<usize, Error> {
    let error = |action| move |source| Error::File { action, path: config.folder.clone(), source };
    fs::create_dir_all(&config.folder).map_err(error("creating"))?;
    let mut reclaimed = 0;
    for entry in fs::read_dir(&config.folder).map_err(error("listing"))? {
        let folder = entry.map_err(error("listing"))?.path();
        kill_processes(&folder).await;
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(path = %folder.display(), %error, "could not remove a sandbox's folder");
        }
        reclaimed += 1;
    }
    Ok(reclaimed)
}

async fn kill_processes(folder: &Path) {
    for process in Process::find_by_argument(&folder.to_string_lossy()) {
        tracing::info!(pid = process.pid(), folder = %folder.display(), "killing a VM of an earlier daemon");
        if let Err(error) = process.kill() {
            tracing::warn!(pid = process.pid(), %error, "could not kill a VMM");
        }
        process.wait().await;
    }
}
