//! `/sandboxes`: one module for each operation.
//!
//! Handlers validate the request, pass it to the sandbox's owner (`live`) or query the store, and convert the outcome
//! to its wire type. They retain no state between requests.

pub(crate) mod connect;
pub(crate) mod create;
mod describe;
pub(crate) mod detail;
mod idempotency;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod timeout;
mod validate;

use hearth_store::Team;
use hearth_types::SandboxId;

use crate::control::Control;
use crate::failure::Failure;
use crate::live::{Handle, Rejection};

/// Returns the handle of a team's sandbox. Another team's sandbox is reported as not found.
fn find(control: &Control, team: &Team, sandbox_id: &SandboxId) -> Result<Handle, Failure> {
    let found = control.live.find(sandbox_id).filter(|handle| handle.team_id() == team.id);
    found.ok_or_else(|| match control.tasks.token().is_cancelled() {
        // Owners exit when the server stops, while their sandboxes continue.
        true => Failure::stopping(),
        false => Rejection::NotFound.into(),
    })
}
