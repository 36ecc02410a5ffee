//! The state machine of sandboxes: allowed requests in each state, and allowed transitions.
//!
//! ```text
//!   Creating ──▶ Running ──▶ Killing ──▶ Released
//!      │                        ▲            ▲
//!      ├── killed, or effect ───┘            │
//!      │   of the create unknown             │
//!      └── rejected, nothing remains ────────┘
//! ```
//!
//! The decisions follow section 5.5 of the contract. Clients only see running sandboxes: no client has received the id
//! of a sandbox that is being created, and a sandbox that is being killed appears as deleted.

use hearth_store::SandboxState;

/// Desired state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// A node is starting the sandbox.
    Creating,
    /// Clients can use the sandbox.
    Running,
    /// The sandbox is being torn down; this cannot be undone.
    Killing,
    /// The sandbox has neither a row nor a route, and its node holds nothing of it.
    Released,
}

/// Request of a client to one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Returns the details of the sandbox.
    Describe,
    /// Kills the sandbox.
    Kill,
    /// Connects to the sandbox, which extends its end time.
    Connect,
    /// Changes the end time.
    SetEnd,
}

/// Decision about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Execute the request.
    Proceed,
    /// Decide again after the next change of the state.
    Wait,
    /// Reject the request.
    Reject(Rejection),
}

/// Reason for a rejected request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// Clients see no such sandbox.
    NotFound,
    /// The state does not allow the request. The text completes the sentence "the sandbox …".
    Conflict(&'static str),
}

impl State {
    /// Decides about a request in this state.
    pub(crate) fn decide(self, request: Request) -> Decision {
        match (self, request) {
            (Self::Released, _) | (Self::Creating | Self::Killing, Request::Describe) => {
                Decision::Reject(Rejection::NotFound)
            }
            (Self::Running, _) | (Self::Creating | Self::Killing, Request::Kill) => Decision::Proceed,
            (Self::Creating, Request::Connect) => Decision::Wait,
            (Self::Creating, Request::SetEnd) => Decision::Reject(Rejection::Conflict("is still being started")),
            (Self::Killing, Request::Connect | Request::SetEnd) => {
                Decision::Reject(Rejection::Conflict("is being killed"))
            }
        }
    }

    /// Checks that the transition to `next` is allowed. Returns the reason if it is not.
    pub(crate) fn check_transition(self, next: Self) -> Result<(), &'static str> {
        match (self, next) {
            (Self::Creating, Self::Running | Self::Killing | Self::Released)
            | (Self::Running, Self::Killing)
            | (Self::Killing, Self::Killing | Self::Released) => Ok(()),
            (Self::Creating | Self::Running, Self::Creating) => Err("a sandbox is created once"),
            (Self::Running, Self::Running) => Err("a running sandbox is not started again"),
            (Self::Running, Self::Released) => Err("a running sandbox is torn down before it is released"),
            (Self::Killing, Self::Creating | Self::Running) => Err("a kill cannot be undone"),
            (Self::Released, _) => Err("a released sandbox has no further states"),
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

    const STATES: [State; 4] = [State::Creating, State::Running, State::Killing, State::Released];

    #[test]
    fn decisions_follow_the_contract() {
        let proceed = |_| Decision::Proceed;
        let wait = |_| Decision::Wait;
        let missing = |_| Decision::Reject(Rejection::NotFound);
        let conflict = |state: State| {
            let reason = if state == State::Killing { "is being killed" } else { "is still being started" };
            Decision::Reject(Rejection::Conflict(reason))
        };
        type Expected = fn(State) -> Decision;
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
    fn requests_only_wait_in_states_that_can_change() {
        for request in [Request::Describe, Request::Kill, Request::Connect, Request::SetEnd] {
            for state in STATES.into_iter().filter(|state| state.decide(request) == Decision::Wait) {
                assert!(STATES.iter().any(|next| *next != state && state.check_transition(*next).is_ok()), "{state:?}");
            }
        }
    }

    #[test]
    fn a_kill_is_never_undone() {
        let successors: Vec<State> =
            STATES.into_iter().filter(|next| State::Killing.check_transition(*next).is_ok()).collect();
        assert_eq!(successors, [State::Killing, State::Released]);
        assert!(STATES.into_iter().all(|next| State::Released.check_transition(next).is_err()));
        assert!(STATES[..3].iter().all(|state| state.decide(Request::Kill) == Decision::Proceed));
    }
}
