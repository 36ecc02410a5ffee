//! Teams, API keys, and what operators see of teams.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A team of a user, with a key that was made for this answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TeamOfUser {
    /// The team.
    #[serde(rename = "teamID")]
    #[schema(format = Uuid)]
    pub team_id: String,
    /// For people.
    pub name: String,
    /// A whole key of the team.
    #[schema(pattern = "^e2b_[0-9a-f]{40}$")]
    pub api_key: String,
    /// Whether it is the one that is meant when none is named. One of them is.
    pub is_default: bool,
}

impl std::fmt::Debug for TeamOfUser {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TeamOfUser").field("team_id", &self.team_id).finish_non_exhaustive()
    }
}

/// What is shown of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mask {
    /// What every key begins with.
    pub prefix: String,
    /// Number of digits after it.
    pub value_length: u32,
    /// First digits.
    pub masked_value_prefix: String,
    /// Last digits.
    pub masked_value_suffix: String,
}

/// Who made something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Creator {
    /// The user.
    #[schema(format = Uuid)]
    pub id: String,
    /// Their address.
    pub email: String,
}

/// A key of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    /// The key.
    #[schema(format = Uuid)]
    pub id: String,
    /// For people.
    pub name: String,
    /// What is shown of it.
    pub mask: Mask,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it; `null`: an operator, or a user who is gone.
    #[schema(required = true)]
    pub created_by: Option<Creator>,
    /// When it was last used, to the minute; `null`: never.
    #[schema(required = true)]
    pub last_used: Option<Timestamp>,
}

/// A key that was just made: the only time it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiKey {
    /// The whole key.
    #[schema(pattern = "^e2b_[0-9a-f]{40}$")]
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub described: ApiKey,
}

impl std::fmt::Debug for CreatedApiKey {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedApiKey").field("described", &self.described).finish_non_exhaustive()
    }
}

/// A key to make, or another name for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyName {
    /// For people: visible characters, and spaces between them.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
}

/// What came of killing all sandboxes of a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KillResult {
    /// Sandboxes of which nothing is left.
    pub killed_count: usize,
    /// Sandboxes that nobody can reach any more, but that a node did not confirm to be gone yet.
    pub failed_count: usize,
}

/// How many sandboxes of a team run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunningCount {
    /// The team.
    #[serde(rename = "teamID")]
    #[schema(format = Uuid)]
    pub team_id: String,
    /// Its running sandboxes.
    pub running_count: u32,
}
