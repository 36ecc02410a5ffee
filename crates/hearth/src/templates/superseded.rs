//! Removal of builds that newer ones have superseded.
//!
//! A build is removed once no sandbox was created from it. A create that was resolved to it just before the newer build
//! was registered has no row yet, so a build is retained for longer than any request takes.

use std::collections::BTreeSet;
use std::time::Duration;

use hearth_artifact::ArtifactStore;
use hearth_stdx::chain;
use hearth_store::Store;
use hearth_types::BuildId;
use tokio_util::sync::CancellationToken;

/// Pause before the first check and between two checks. A request ends after 70 s.
const PAUSE: Duration = Duration::from_secs(90);

/// Removes the artifact sets of these builds when no sandbox needs them. The next start removes those left at `stop`.
pub(super) async fn remove(builds: Vec<BuildId>, store: Store, artifacts: ArtifactStore, stop: CancellationToken) {
    let mut rest: BTreeSet<BuildId> = builds.into_iter().collect();
    while !rest.is_empty() && stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some() {
        let in_use: BTreeSet<BuildId> = match store.sandboxes().await {
            Ok(rows) => rows.into_iter().map(|row| row.build_id).collect(),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "sandboxes of superseded builds not read");
                continue;
            }
        };
        let unused: Vec<BuildId> = rest.difference(&in_use).copied().collect();
        let folder = artifacts.clone();
        let removing = tokio::task::spawn_blocking(move || {
            let removed = unused.into_iter().filter(|build_id| match folder.delete(*build_id) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%build_id, error = %chain(&error), "superseded build not removed");
                    false
                }
            });
            removed.collect::<Vec<_>>()
        });
        // The closure does not panic; it does not run if the runtime is shutting down.
        for build_id in removing.await.unwrap_or_default() {
            tracing::info!(%build_id, "superseded build removed");
            rest.remove(&build_id);
        }
    }
}
