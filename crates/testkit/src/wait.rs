//! Waiting for a condition instead of a fixed time.

use std::time::Duration;

use anyhow::{Result, bail};

/// Time limit, longer than anything takes on a busy machine: a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// Polls `condition` until it returns a value.
///
/// # Errors
/// Fails if the condition fails, or returns no value within 60 seconds. The message then has `what`, the name of the
/// condition.
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
        Err(_) => bail!("timed out after {PATIENCE:?} waiting for {what}"),
    }
}
