//! Starts that may be under way on this node at once, shared fairly between teams.
//!
//! Restoring a VM keeps a processor busy until its guest answers. Without a bound, a team that creates sandboxes without pause
//! takes the processors from every sandbox that already runs, and the creates of all teams slow each other down.
//!
//! Teams take turns: a free permit goes to a team with the fewest starts under way, and of several such teams not to the one
//! that was granted the last permit. Within a team the oldest start is first.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use hearth_types::TeamId;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// Longest time for which a start holds its permit. A guest that has not answered by then is waiting for something or never
/// answers: it must not hold up other teams until its deadline.
const PERMIT_LASTS: Duration = Duration::from_secs(5);
/// Waits from which on a start is logged as delayed.
const DELAY_LOGGED: Duration = Duration::from_secs(1);

/// The queue of starts. Cheap to clone. Its length is bounded by the sandboxes of the node: each waiting start is one of them.
#[derive(Debug, Clone)]
pub struct StartQueue {
    inner: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Permits that nobody holds. With any, nobody waits.
    free: usize,
    /// Permits held, by team. Teams without any are absent.
    held: HashMap<TeamId, usize>,
    /// The team that was granted the last permit.
    last: Option<TeamId>,
    /// Waiting starts, by team, in the order of turns. Teams without any are absent.
    waiting: VecDeque<(TeamId, VecDeque<oneshot::Sender<StartPermit>>)>,
}

/// Permission to start a sandbox, until it is dropped.
#[derive(Debug)]
pub(crate) struct StartPermit {
    queue: StartQueue,
    team_id: TeamId,
}

impl StartQueue {
    /// A queue that lets this many starts through at once.
    #[must_use]
    pub fn new(starts_max: NonZeroUsize) -> Self {
        let state = State { free: starts_max.get(), held: HashMap::new(), last: None, waiting: VecDeque::new() };
        Self { inner: Arc::new(Mutex::new(state)) }
    }

    /// A queue for this machine: one start for each processor.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::new(available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Waits for this team's turn. Cancel safe.
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
        // A sender leaves the queue to send, or because this future was dropped.
        let permit = granted.await.expect("a start in the queue is granted a permit");
        let waited = since.elapsed();
        if waited >= DELAY_LOGGED {
            tracing::info!(waited_ms = waited.as_millis(), "start delayed by other starts");
        }
        permit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every section leaves a valid state, also where it panics.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enqueue(&mut self, team_id: TeamId, sender: oneshot::Sender<StartPermit>) {
        match self.waiting.iter_mut().find(|(team, _)| *team == team_id) {
            Some((_, starts)) => {
                // Those that were given up meanwhile would otherwise stay until it is their turn.
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

    /// Takes a permit back from a team, and returns the start that holds it from now on.
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

    /// Takes the start whose turn it is out of the queue.
    fn next(&mut self) -> Option<(TeamId, oneshot::Sender<StartPermit>)> {
        for (_, starts) in &mut self.waiting {
            starts.retain(|start| !start.is_closed());
        }
        self.waiting.retain(|(_, starts)| !starts.is_empty());
        // Moved only now: a team that came since the last permit has its turn before it.
        if let Some(index) = self.waiting.iter().position(|(team_id, _)| Some(*team_id) == self.last)
            && let Some(team) = self.waiting.remove(index)
        {
            self.waiting.push_back(team);
        }
        let held = &self.held;
        // The first of several equal ones.
        let (team_id, starts) =
            self.waiting.iter_mut().min_by_key(|(team_id, _)| held.get(team_id).copied().unwrap_or(0))?;
        Some((*team_id, starts.pop_front()?))
    }
}

impl StartPermit {
    /// Runs a start, and releases the permit when it has ended or takes long. As cancel safe as the start.
    pub(crate) async fn run<T>(self, start: impl Future<Output = T>) -> T {
        let mut start = std::pin::pin!(start);
        match timeout(PERMIT_LASTS, &mut start).await {
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
            // A start that is given up at this moment drops the permit, which goes to the one after it. Not under the lock.
            let _ = start.send(StartPermit { queue: self.queue.clone(), team_id });
        }
    }
}

#[cfg(test)]
mod tests;
