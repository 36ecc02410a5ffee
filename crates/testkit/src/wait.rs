//! Waiting for a condition, never for a time.

use std::time::Duration;

use anyhow::{Result, bail};

/// Longer than anything may take on a busy machine: a test that gets here has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// Looks again and again until `condition` gives something.
///
/// # Errors
/// It never did; `what` names what was waited for.
pub async fn until<T, F>(what: &str, mut condition: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let search = async {
        loop {
            if let Some(found) = condition().await? {
                return Ok(found);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(found) => found,
        Err(_) => bail!("waited {PATIENCE:?} in vain for {what}"),
    }
}
