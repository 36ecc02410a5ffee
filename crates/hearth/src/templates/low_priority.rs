//! A thread of the lowest priority, for work that must not slow down sandboxes.
//!
//! Linux has one nice value per thread, and child processes inherit it (setpriority(2), ioprio_set(2)); the priority of
//! disk accesses follows from it. So the programs and the VM that the work starts have the lowest priority, too.

use anyhow::{Context, Result};
use rustix::process::setpriority_process;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The lowest priority (nice(1)).
const NICE: i32 = 19;
/// Time for blocking work of a cancelled future, such as the copy of a file, which cannot be interrupted.
const BLOCKING_LIMIT: std::time::Duration = std::time::Duration::from_millis(500);

/// Runs work on its own thread until it ends, or drops it at `stop`; `None` if it was dropped.
///
/// Returns after the work has been dropped.
pub(super) async fn run<F, T>(work: impl FnOnce() -> F + Send + 'static, stop: CancellationToken) -> Result<Option<T>>
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let (sender, outcome) = oneshot::channel();
    let body = move || {
        if let Err(error) = setpriority_process(None, NICE) {
            tracing::warn!(%error, "priority of a background thread not lowered");
        }
        let outcome = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let outcome = runtime.block_on(async { stop.run_until_cancelled(work()).await });
                runtime.shutdown_timeout(BLOCKING_LIMIT);
                Ok(outcome)
            }
            Err(error) => Err(error),
        };
        // Sending fails if nobody waits any more.
        let _ = sender.send(outcome);
    };
    std::thread::Builder::new().name("template".to_owned()).spawn(body).context("starting a thread")?;
    outcome.await.context("the thread panicked")?.context("starting a runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn child_processes_have_the_lowest_priority_and_this_thread_does_not() {
        let nice = async || {
            let output = tokio::process::Command::new("nice").output().await.expect("coreutils");
            String::from_utf8_lossy(&output.stdout).trim().parse::<i32>().expect("a number")
        };
        let before = nice().await;
        let outcome = run(move || async move { nice().await }, CancellationToken::new()).await;
        assert_eq!(outcome.expect("runs"), Some(NICE));
        let output = std::process::Command::new("nice").output().expect("coreutils");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), before.to_string());
    }

    #[tokio::test]
    async fn a_stop_drops_the_work_before_it_returns() {
        let stop = CancellationToken::new();
        let (dropped, is_dropped) = std::sync::mpsc::channel::<()>();
        let (started, is_started) = oneshot::channel();
        let work = move || async move {
            let _dropped = dropped;
            let _ = started.send(());
            std::future::pending::<()>().await;
        };
        let (outcome, ()) = tokio::join!(run(work, stop.clone()), async {
            is_started.await.expect("starts");
            stop.cancel();
        });
        assert_eq!(outcome.expect("runs"), None);
        assert_eq!(is_dropped.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected));
    }
}
