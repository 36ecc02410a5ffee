//! Replies about templates.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Reply to `GET /templates/aliases/{alias}` for a template of the caller's team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateAlias {
    /// ID of the template that the alias refers to.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// True if other teams may use the template.
    pub public: bool,
}
