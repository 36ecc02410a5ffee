//! How many sandboxes teams have, and how many they start: counted here, kept once a minute.
//!
//! ```text
//!   a sandbox runs ──▶ Counts::started ──▶ counts of this minute ──▶ run: once a minute ──▶ analytics
//!                                            live: who runs now ────────┘                      │
//!                                                   metrics: GET /teams/{teamID}/metrics ◀─────┘
//! ```
//!
//! The number of sandboxes that run at the same time only grows when one is started. So the most of a minute is known
//! exactly, without looking all the time. A minute of a team that had nothing is not kept, but for the first of them: there
//! a curve ends at zero. What a daemon that was killed had counted in its last minute is lost.

pub(crate) mod metrics;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use hearth_analytics::Usage;
use hearth_stdx::chain;
use hearth_types::TeamId;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};

use crate::control::Control;

/// What a team had since the last time it was kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    sandboxes_max: u32,
    starts: u32,
}

/// The counts of all teams that had something. Bounded by the number of sandboxes started in a minute, and of those that run.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    teams: Mutex<HashMap<TeamId, Count>>,
}

impl Counts {
    /// A sandbox of a team has been started, and is one of so many that run now.
    pub(crate) fn started(&self, team_id: TeamId, running: u32) {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = teams.entry(team_id).or_default();
        count.starts = count.starts.saturating_add(1);
        count.sandboxes_max = count.sandboxes_max.max(running);
    }

    /// What teams had, of which so many sandboxes run now; begins anew with these.
    fn take(&self, running: &BTreeMap<TeamId, u32>) -> Vec<(TeamId, Count)> {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *teams);
        let concerned: HashSet<TeamId> = before.keys().chain(running.keys()).copied().collect();
        let mut taken = Vec::new();
        for team_id in concerned {
            let count = before.get(&team_id).copied().unwrap_or_default();
            let now = running.get(&team_id).copied().unwrap_or(0);
            let count = Count { sandboxes_max: count.sandboxes_max.max(now), ..count };
            taken.push((team_id, count));
            // Without anything in it this is the last one.
            if count != Count::default() {
                teams.insert(team_id, Count { sandboxes_max: now, starts: 0 });
            }
        }
        taken
    }
}

/// Has what teams use kept, until the server stops, and then once more.
pub(crate) async fn run(control: Arc<Control>) {
    let stop = control.tasks.token();
    let mut timer = tokio::time::interval(control.config.usage_interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once.
    timer.tick().await;
    let mut since = Instant::now();
    let mut is_failing = false;
    loop {
        let is_last = tokio::select! {
            () = stop.cancelled() => true,
            _ = timer.tick() => false,
        };
        let (at, span) = (Timestamp::now(), since.elapsed());
        since = Instant::now();
        let taken = control.usage.take(&control.live.running_by_team());
        let usages = taken
            .into_iter()
            .map(|(team_id, Count { sandboxes_max, starts })| (team_id, Usage { at, span, sandboxes_max, starts }));
        let kept = control.usages.keep_usages(usages.collect()).await;
        if let Err(error) = &kept
            && !is_failing
        {
            // Once for each time it stops working.
            tracing::warn!(error = %chain(error), "what teams used was not kept");
        }
        is_failing = kept.is_err();
        if is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(counts: &Counts, running: &[(TeamId, u32)], expected: &[(TeamId, u32, u32)]) {
        let mut taken = counts.take(&running.iter().copied().collect());
        taken.sort_by_key(|(team_id, _)| *team_id);
        let mut expected: Vec<_> = expected
            .iter()
            .map(|(team_id, sandboxes_max, starts)| {
                (*team_id, Count { sandboxes_max: *sandboxes_max, starts: *starts })
            })
            .collect();
        expected.sort_by_key(|(team_id, _)| *team_id);
        assert_eq!(taken, expected);
    }

    #[test]
    fn the_most_of_a_time_is_kept_and_a_curve_ends_at_zero() {
        let (counts, team, other) = (Counts::default(), TeamId::generate(), TeamId::generate());
        check(&counts, &[], &[]);
        counts.started(team, 1);
        counts.started(team, 2);
        // It ended, another began.
        counts.started(team, 2);
        check(&counts, &[(team, 1), (other, 3)], &[(team, 2, 3), (other, 3, 0)]);
        check(&counts, &[(team, 1)], &[(team, 1, 0), (other, 3, 0)]);
        check(&counts, &[(team, 1)], &[(team, 1, 0), (other, 0, 0)]);
        check(&counts, &[], &[(team, 1, 0)]);
        check(&counts, &[], &[(team, 0, 0)]);
        check(&counts, &[], &[]);
    }
}
