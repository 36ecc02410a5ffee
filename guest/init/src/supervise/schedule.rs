//! Restarts of one program.
//!
//! ```text
//!   running ──exits──> backing off ──pause over──> running
//! ```
//!
//! The pause doubles while the program exits soon after its start, so that a broken one does not use up the guest's CPU.
//! It is reset once the program has run for a while.

use std::time::{Duration, Instant};

use rustix::process::Pid;

const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Time after which a running program counts as healthy, which resets the pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// State of one program.
#[derive(Debug)]
pub(super) struct Schedule {
    state: State,
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Running { pid: Pid, since: Instant },
    BackingOff { until: Instant },
}

impl Schedule {
    /// Creates the state of a program that is due for its first start.
    pub(super) fn due(now: Instant) -> Self {
        Self { state: State::BackingOff { until: now }, pause: PAUSE_FIRST }
    }

    /// Returns the process, if it is running.
    pub(super) fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::BackingOff { .. } => None,
        }
    }

    /// Returns the time of the next start; `None` while the program runs.
    pub(super) fn next_start(&self) -> Option<Instant> {
        match self.state {
            State::Running { .. } => None,
            State::BackingOff { until } => Some(until),
        }
    }

    pub(super) fn started(&mut self, pid: Pid, now: Instant) {
        self.state = State::Running { pid, since: now };
    }

    /// Records the end of the process, or a failed start.
    pub(super) fn ended(&mut self, now: Instant) {
        if let State::Running { since, .. } = self.state
            && now.duration_since(since) >= HEALTHY_AFTER
        {
            self.pause = PAUSE_FIRST;
        }
        self.state = State::BackingOff { until: now + self.pause };
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("a positive number")
    }

    #[test]
    fn pauses_double_up_to_a_maximum_and_are_reset_by_a_long_run() {
        let mut now = Instant::now();
        let mut schedule = Schedule::due(now);
        assert_eq!((schedule.pid(), schedule.next_start()), (None, Some(now)));
        let mut pauses = Vec::new();
        for number in 1..=9 {
            schedule.started(pid(number), now);
            assert_eq!((schedule.pid(), schedule.next_start()), (Some(pid(number)), None));
            schedule.ended(now);
            let next = schedule.next_start().expect("backs off");
            pauses.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000]);
        schedule.started(pid(1), now);
        now += HEALTHY_AFTER;
        schedule.ended(now);
        assert_eq!(schedule.next_start(), Some(now + PAUSE_FIRST));
    }

    #[test]
    fn a_program_that_cannot_be_started_backs_off_too() {
        let now = Instant::now();
        let mut schedule = Schedule::due(now);
        schedule.ended(now);
        schedule.ended(now);
        assert_eq!(schedule.next_start(), Some(now + PAUSE_FIRST * 2));
    }
}
