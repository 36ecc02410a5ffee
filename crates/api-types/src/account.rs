//! Teams, API keys, and replies about teams to operators.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A team of a user, with an API key created for this reply.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TeamOfUser {
    /// ID of the team.
    #[serde(rename = "teamID")]
    #[schema(format = Uuid)]
    pub team_id: String,
    /// Display name.
    pub name: String,
    /// New API key of the team, unmasked.
    #[schema(pattern = "^e2b_[0-9a-f]{40}$")]
    pub api_key: String,
    /// True for the team to use when the client selects none. Exactly one team of a user is the default.
    pub is_default: bool,
}

impl std::fmt::Debug for TeamOfUser {
    /// Omits the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TeamOfUser").field("team_id", &self.team_id).finish_non_exhaustive()
    }
}

/// Masked form of an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mask {
    /// Prefix that all API keys share.
    pub prefix: String,
    /// Number of digits after the prefix.
    pub value_length: u32,
    /// First digits after the prefix.
    pub masked_value_prefix: String,
    /// Last digits of the key.
    pub masked_value_suffix: String,
}

/// User who created a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Creator {
    /// ID of the user.
    #[schema(format = Uuid)]
    pub id: String,
    /// Email address of the user.
    pub email: String,
}

/// An API key of a team, masked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    /// ID of the key.
    #[schema(format = Uuid)]
    pub id: String,
    /// Display name.
    pub name: String,
    /// Masked form of the key.
    pub mask: Mask,
    /// Creation time.
    pub created_at: Timestamp,
    /// User who created the key; `null` if an operator created it or the user was deleted.
    #[schema(required = true)]
    pub created_by: Option<Creator>,
    /// Time of the last use, accurate to one minute; `null` if the key was never used.
    #[schema(required = true)]
    pub last_used: Option<Timestamp>,
}

/// A new API key. No other reply contains the whole key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiKey {
    /// The whole key.
    #[schema(pattern = "^e2b_[0-9a-f]{40}$")]
    pub key: String,
    /// Description of the key, as in lists.
    #[serde(flatten)]
    pub described: ApiKey,
}

impl std::fmt::Debug for CreatedApiKey {
    /// Omits the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedApiKey").field("described", &self.described).finish_non_exhaustive()
    }
}

/// Name of an API key to create or to rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyName {
    /// Display name: visible characters, and spaces between them.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
}

/// Result of killing all sandboxes of a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KillResult {
    /// Number of sandboxes that were killed and released.
    pub killed_count: usize,
    /// Number of sandboxes that are unreachable, but whose node has not confirmed the kill yet.
    pub failed_count: usize,
}

/// Number of running sandboxes of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunningCount {
    /// ID of the team.
    #[serde(rename = "teamID")]
    #[schema(format = Uuid)]
    pub team_id: String,
    /// Number of its running sandboxes.
    pub running_count: u32,
}
