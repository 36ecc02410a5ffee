//! Handlers of `/templates`. Only the lookup of aliases is implemented.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api_types::template::TemplateAlias;
use hearth_store::{ResolveError, Team};
use hearth_types::TemplateReference;
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::UnbannedTeam;
use crate::http::document::tag;
use crate::http::path::AliasPath;

/// Look up a template by alias
///
/// Replies 200 for a template of the caller's team, and 403 for a template of another team, which clients interpret as
/// a name in use.
#[utoipa::path(
    get, path = "/templates/aliases/{alias}", tag = tag::TEMPLATES, operation_id = "findTemplateAlias",
    params(AliasPath),
    responses(
        (status = 200, description = "The alias refers to this template of the team.", body = TemplateAlias),
        (status = 400, description = "The alias is invalid, or is in another team's namespace."),
        (status = 403, description = "The template belongs to another team, or the caller's team is banned."),
        (status = 404, description = "The template or the team does not exist."),
    )
)]
pub(crate) async fn find_alias(
    State(control): State<Arc<Control>>,
    UnbannedTeam(team): UnbannedTeam,
    AliasPath(text): AliasPath,
) -> Result<Json<TemplateAlias>, Failure> {
    let reference: TemplateReference = text.parse().map_err(Failure::invalid)?;
    if reference.namespace().is_some_and(|namespace| namespace != team.slug) {
        return Err(Failure::bad_request(format!("the namespace of `{reference}` is not that of your team")));
    }
    let template = match resolve(&control, &reference, &team).await {
        Ok(template) => template,
        Err(ResolveError::Private { .. }) => return Err(foreign(&reference)),
        // Its alias will be in use, so clients must not build a template of their own.
        Err(ResolveError::UnknownTemplate { .. }) if control.preparations.reserves(&reference) => {
            return Err(foreign(&reference));
        }
        Err(ResolveError::UnknownTemplate { .. } | ResolveError::UnknownTag { .. }) => {
            return Err(Failure::not_found(format!("template `{reference}` not found")));
        }
        Err(ResolveError::Store(error)) => return Err(Failure::internal("resolving a template", &error)),
    };
    if template.team_id != Some(team.id) {
        return Err(foreign(&reference));
    }
    Ok(Json(TemplateAlias { template_id: template.id.to_string(), public: template.public }))
}

fn foreign(reference: &TemplateReference) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, format!("template `{reference}` belongs to another team"))
}

/// Returns the template of a reference. An explicit tag must exist; without a tag, the template may have no build.
async fn resolve(
    control: &Control,
    reference: &TemplateReference,
    team: &Team,
) -> Result<hearth_store::Template, ResolveError> {
    match reference.explicit_tag() {
        Some(_) => control.store.resolve(reference, team).await.map(|resolved| resolved.template),
        None => control.store.resolve_template(reference, team).await,
    }
}
