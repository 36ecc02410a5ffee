//! `/sandboxes`: one module for each thing that can be asked.
//!
//! Handlers check what they were given, hand the rest to the sandbox's owner (`live`) or ask the store, and describe
//! the outcome. They hold nothing across requests.

pub(crate) mod connect;
pub(crate) mod create;
mod describe;
pub(crate) mod detail;
pub(crate) mod end;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod metrics;
mod named;
mod wanted;

use hearth_store::Team;
use hearth_types::SandboxId;

use crate::control::Control;
use crate::failure::Failure;
use crate::live::{Handle, Refusal};

/// A sandbox of a team. Another team's is as unknown as one that never was.
fn find(control: &Control, team: &Team, sandbox_id: &SandboxId) -> Result<Handle, Failure> {
    let found = control.live.find(sandbox_id).filter(|handle| handle.team_id() == team.id);
    found.ok_or_else(|| match control.tasks.token().is_cancelled() {
        // Owners leave when the server stops, and their sandboxes go on.
        true => Failure::stopping(),
        false => Refusal::NotFound.into(),
    })
}
