//! `/templates`: so far, whether a name means one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api_types::template::TemplateAlias;
use hearth_store::{ResolveError, Team};
use hearth_types::TemplateReference;
use http::StatusCode;

use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Reader;
use crate::http::document::tag;
use crate::http::path::AliasPath;

/// Tell whether a name means a template
///
/// 200 for the caller's own template, 403 for anybody else's, which clients read as "the name is taken".
#[utoipa::path(
    get, path = "/templates/aliases/{alias}", tag = tag::TEMPLATES, operation_id = "findTemplateAlias",
    params(AliasPath),
    responses(
        (status = 200, description = "It means this one.", body = TemplateAlias),
        (status = 400, description = "It is not a name, or is in another team's namespace."),
        (status = 403, description = "It means another team's template, or the team is banned."),
        (status = 404, description = "It means none, or there is no such team."),
    )
)]
pub(crate) async fn find_alias(
    State(control): State<Arc<Control>>,
    Reader(team): Reader,
    AliasPath(text): AliasPath,
) -> Result<Json<TemplateAlias>, Failure> {
    let reference: TemplateReference = text.parse().map_err(Failure::invalid)?;
    if reference.namespace().is_some_and(|namespace| namespace != team.slug) {
        return Err(Failure::bad_request(format!("the namespace of `{reference}` is not that of your team")));
    }
    let template = match resolve(&control, &reference, &team).await {
        Ok(template) => template,
        Err(ResolveError::Private { .. }) => return Err(foreign(&reference)),
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

/// A tag that is given has to exist; without one the template is meant, built or not.
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
