//! What may be asked of a sandbox in which state, and how its state may change.
//!
//! ```text
//!   Creating ──▶ Running ──▶ Killing ──▶ Gone
//!      │                        ▲          ▲
//!      └── killed, effect of ───┘          │
//!      │   the create unknown              │
//!      └── refused, nothing is left ───────┘
//! ```
//!
//! The answers are section 5.5 of the contract. Clients only ever see running sandboxes: one that is being created has
//! an id that nobody was told yet, one that is being killed is as good as gone.

use hearth_store::SandboxState;

/// The state of a sandbox, as the control plane intends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// A node is starting it.
    Creating,
    /// It can be used.
    Running,
    /// Its end has begun and cannot be stopped.
    Killing,
    /// Nothing of it is left.
    Gone,
}

/// What a client asks of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Tell about it.
    Describe,
    /// End it.
    Kill,
    /// Use it.
    Connect,
    /// Let it live longer or shorter.
    SetEnd,
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Do it.
    Proceed,
    /// Ask again when the state has changed.
    Wait,
    /// Do not.
    Refuse(Refusal),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such sandbox, as far as clients are concerned.
    NotFound,
    /// It is in the wrong state; the text completes "the sandbox …".
    Conflict(&'static str),
}

impl State {
    /// What is to be done about a request.
    pub(crate) fn decide(self, request: Request) -> Verdict {
        match (self, request) {
            (Self::Gone, _) | (Self::Creating | Self::Killing, Request::Describe) => Verdict::Refuse(Refusal::NotFound),
            (Self::Running, _) | (Self::Creating | Self::Killing, Request::Kill) => Verdict::Proceed,
            (Self::Creating, Request::Connect) => Verdict::Wait,
            (Self::Creating, Request::SetEnd) => Verdict::Refuse(Refusal::Conflict("is still being started")),
            (Self::Killing, Request::Connect | Request::SetEnd) => {
                Verdict::Refuse(Refusal::Conflict("is being killed"))
            }
        }
    }

    /// Whether it may become `next`, and if not, why.
    pub(crate) fn may_become(self, next: Self) -> Result<(), &'static str> {
        match (self, next) {
            (Self::Creating, Self::Running | Self::Killing | Self::Gone)
            | (Self::Running, Self::Killing)
            | (Self::Killing, Self::Killing | Self::Gone) => Ok(()),
            (Self::Creating | Self::Running, Self::Creating) => Err("a sandbox is created once"),
            (Self::Running, Self::Running) => Err("a sandbox that runs does not start again"),
            (Self::Running, Self::Gone) => Err("a sandbox that runs has to be released before it is gone"),
            (Self::Killing, Self::Creating | Self::Running) => Err("a kill outranks everything"),
            (Self::Gone, _) => Err("a sandbox that is gone does not come back"),
        }
    }
}

impl From<SandboxState> for State {
    fn from(state: SandboxState) -> Self {
        match state {
            SandboxState::Creating => Self::Creating,
            SandboxState::Running => Self::Running,
            SandboxState::Killing => Self::Killing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 4] = [State::Creating, State::Running, State::Killing, State::Gone];

    #[test]
    fn answers_are_those_of_the_contract() {
        let proceed = |_| Verdict::Proceed;
        let wait = |_| Verdict::Wait;
        let missing = |_| Verdict::Refuse(Refusal::NotFound);
        let conflict = |state: State| {
            let reason = if state == State::Killing { "is being killed" } else { "is still being started" };
            Verdict::Refuse(Refusal::Conflict(reason))
        };
        type Expected = fn(State) -> Verdict;
        let table: [(Request, [Expected; 4]); 4] = [
            (Request::Describe, [missing, proceed, missing, missing]),
            (Request::Kill, [proceed, proceed, proceed, missing]),
            (Request::Connect, [wait, proceed, conflict, missing]),
            (Request::SetEnd, [conflict, proceed, conflict, missing]),
        ];
        for (request, expected) in table {
            for (state, expected) in STATES.into_iter().zip(expected) {
                assert_eq!(state.decide(request), expected(state), "{request:?} while {state:?}");
            }
        }
    }

    #[test]
    fn nothing_waits_for_a_state_that_does_not_change() {
        for request in [Request::Describe, Request::Kill, Request::Connect, Request::SetEnd] {
            for state in STATES.into_iter().filter(|state| state.decide(request) == Verdict::Wait) {
                assert!(STATES.iter().any(|next| *next != state && state.may_become(*next).is_ok()), "{state:?}");
            }
        }
    }

    #[test]
    fn a_kill_is_never_undone() {
        let lead_to: Vec<State> = STATES.into_iter().filter(|next| State::Killing.may_become(*next).is_ok()).collect();
        assert_eq!(lead_to, [State::Killing, State::Gone]);
        assert!(STATES.into_iter().all(|next| State::Gone.may_become(next).is_err()));
        assert!(STATES[..3].iter().all(|state| state.decide(Request::Kill) == Verdict::Proceed));
    }
}
