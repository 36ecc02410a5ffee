//! Templates.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to `GET /templates/aliases/{alias}` for a template of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateAlias {
    /// The template behind the name.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Whether other teams may use it.
    pub public: bool,
}
