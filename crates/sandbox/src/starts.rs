//! Limit of concurrent starts on a node, shared fairly between teams.
//!
//! Restoring a VM keeps a processor busy until its guest replies. Without a limit, a team that creates sandboxes without
//! pause takes the processors from every running sandbox, and the creates of all teams slow each other down.
//!
//! Teams take turns: a free permit goes to a team with the fewest concurrent starts, and of several such teams not to the
//! one that was granted the last permit. Within a team the oldest start is first.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use hearth_types::TeamId;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// Maximum time that a start holds its permit.
///
/// A guest that has not replied by then may never do so; it must not delay other teams until its deadline.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Waiting time above which a start is logged as delayed.
const DELAY_LOGGED_MIN: Duration = Duration::from_secs(1);

/// Queue of starts. Cheap to clone.
///
/// Its length is limited by the number of sandboxes of the node: each waiting start is one of them.
#[derive(Debug, Clone)]
pub struct StartQueue {
    inner: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Free permits. If there are any, no start is waiting.
    free: usize,
    /// Permits held by each team. Teams without any are absent.
    held: HashMap<TeamId, usize>,
    /// Team that was granted the last permit.
    last: Option<TeamId>,
    /// Waiting starts of each team, in the order of turns. Teams without any are absent.
    waiting: VecDeque<(TeamId, VecDeque<oneshot::Sender<StartPermit>>)>,
}

/// Permit to start a sandbox; dropping it releases it.
#[derive(Debug)]
pub(crate) struct StartPermit {
    queue: StartQueue,
    team_id: TeamId,
}

impl StartQueue {
    /// Creates a queue for at most `starts_max` concurrent starts.
    #[must_use]
    pub fn new(starts_max: NonZeroUsize) -> Self {
        let state = State { free: starts_max.get(), held: HashMap::new(), last: None, waiting: VecDeque::new() };
        Self { inner: Arc::new(Mutex::new(state)) }
    }

    /// Creates a queue for this machine: one start per processor.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::new(available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Waits for the team's turn. Cancel safe.
    pub(crate) async fn acquire(&self, team_id: TeamId) -> StartPermit {
        let since = Instant::now();
        let granted = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                state.hold(team_id);
                return StartPermit { queue: self.clone(), team_id };
            }
            let (sender, granted) = oneshot::channel();
            state.enqueue(team_id, sender);
            granted
        };
        // A sender is removed from the queue only to send a permit, or because this future was dropped.
        let permit = granted.await.expect("a start in the queue is granted a permit");
        let waited = since.elapsed();
        if waited >= DELAY_LOGGED_MIN {
            tracing::info!(waited_ms = waited.as_millis(), "start delayed by other starts");
        }
        permit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every section leaves a valid state, even if it panics.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enqueue(&mut self, team_id: TeamId, sender: oneshot::Sender<StartPermit>) {
        match self.waiting.iter_mut().find(|(team, _)| *team == team_id) {
            Some((_, starts)) => {
                // Cancelled starts would otherwise stay in the queue until their turn.
                starts.retain(|start| !start.is_closed());
                starts.push_back(sender);
            }
            None => self.waiting.push_back((team_id, VecDeque::from([sender]))),
        }
    }

    fn hold(&mut self, team_id: TeamId) {
        *self.held.entry(team_id).or_insert(0) += 1;
        self.last = Some(team_id);
    }

    /// Releases a permit of a team, and returns the start that it is granted to.
    fn release(&mut self, team_id: TeamId) -> Option<(TeamId, oneshot::Sender<StartPermit>)> {
        if let Some(held) = self.held.get_mut(&team_id) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&team_id);
            }
        }
        let next = self.next();
        match &next {
            Some((team_id, _)) => self.hold(*team_id),
            None => self.free += 1,
        }
        next
    }

    /// Removes the start whose turn it is from the queue.
    fn next(&mut self) -> Option<(TeamId, oneshot::Sender<StartPermit>)> {
        for (_, starts) in &mut self.waiting {
            starts.retain(|start| !start.is_closed());
        }
        self.waiting.retain(|(_, starts)| !starts.is_empty());
        // Moved only now, so that a team that arrived since the last permit has its turn before it.
        if let Some(index) = self.waiting.iter().position(|(team_id, _)| Some(*team_id) == self.last)
            && let Some(team) = self.waiting.remove(index)
        {
            self.waiting.push_back(team);
        }
        let held = &self.held;
        // `min_by_key` returns the first of several equal teams.
        let (team_id, starts) =
            self.waiting.iter_mut().min_by_key(|(team_id, _)| held.get(team_id).copied().unwrap_or(0))?;
        Some((*team_id, starts.pop_front()?))
    }
}

impl StartPermit {
    /// Runs a start, and releases the permit when it has finished or after [`PERMIT_TIMEOUT`].
    ///
    /// As cancel safe as the start.
    pub(crate) async fn run<T>(self, start: impl Future<Output = T>) -> T {
        let mut start = std::pin::pin!(start);
        match timeout(PERMIT_TIMEOUT, &mut start).await {
            Ok(output) => output,
            Err(_) => {
                drop(self);
                start.await
            }
        }
    }
}

impl Drop for StartPermit {
    fn drop(&mut self) {
        let next = self.queue.state().release(self.team_id);
        if let Some((team_id, start)) = next {
            // Not under the lock: a start that was cancelled at this moment drops the permit, which locks again.
            let _ = start.send(StartPermit { queue: self.queue.clone(), team_id });
        }
    }
}

#[cfg(test)]
mod tests;
