//! Usage of teams: concurrent sandboxes and starts, counted in memory and flushed to analytics once a minute.
//!
//! ```text
//!   sandbox started ──▶ Counts::record_start ──▶ counts of this minute ──▶ run: once a minute ──▶ analytics
//!                                          live: running sandboxes now ──────┘                      │
//!                                                        metrics: GET /teams/{teamID}/metrics ◀─────┘
//! ```
//!
//! The number of concurrent sandboxes only grows when one is started, so the maximum of a minute is exact without polling.
//! A minute without usage is not stored, except for the first one after usage, so that a curve ends at zero. A daemon that
//! is killed loses the counts of its last minute.

pub(crate) mod metrics;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use hearth_analytics::Usage;
use hearth_stdx::chain;
use hearth_types::TeamId;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};

use crate::control::Control;

/// Usage of a team since the last flush.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    sandboxes_max: u32,
    starts: u32,
}

/// Usage not yet flushed, by team.
///
/// Bounded by the number of sandboxes started in a minute plus the number of running ones.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    teams: Mutex<HashMap<TeamId, Count>>,
}

impl Counts {
    /// Counts the start of a sandbox. `running` is the team's number of running sandboxes, including this one.
    pub(crate) fn record_start(&self, team_id: TeamId, running: u32) {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = teams.entry(team_id).or_default();
        count.starts = count.starts.saturating_add(1);
        count.sandboxes_max = count.sandboxes_max.max(running);
    }

    /// Takes the counts for a flush, and restarts them with the sandboxes that run now.
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
            // A count of zero was taken once, as the end of the curve, and is dropped.
            if count != Count::default() {
                teams.insert(team_id, Count { sandboxes_max: now, starts: 0 });
            }
        }
        taken
    }
}

/// Flushes the usage of all teams periodically, and a last time when the server stops.
pub(crate) async fn run(control: Arc<Control>) {
    let stop = control.tasks.token();
    let mut timer = tokio::time::interval(control.config.usage_interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick completes immediately.
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
        let stored = control.usages.record_usages(usages.collect()).await;
        if let Err(error) = &stored
            && !is_failing
        {
            // Warns once for each series of failures.
            tracing::warn!(error = %chain(error), "usage of teams not stored");
        }
        is_failing = stored.is_err();
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
    fn a_flush_has_the_maximum_and_a_curve_ends_at_zero() {
        let (counts, team, other) = (Counts::default(), TeamId::generate(), TeamId::generate());
        check(&counts, &[], &[]);
        counts.record_start(team, 1);
        counts.record_start(team, 2);
        // One ended, another one started.
        counts.record_start(team, 2);
        check(&counts, &[(team, 1), (other, 3)], &[(team, 2, 3), (other, 3, 0)]);
        check(&counts, &[(team, 1)], &[(team, 1, 0), (other, 3, 0)]);
        check(&counts, &[(team, 1)], &[(team, 1, 0), (other, 0, 0)]);
        check(&counts, &[], &[(team, 1, 0)]);
        check(&counts, &[], &[(team, 0, 0)]);
        check(&counts, &[], &[]);
    }
}
