//! Templates: aliases, builds, and resolution of references.
//!
//! A **template** has at most one **alias** per namespace (a team's slug, or none: global) and many **builds**. A
//! **tag** of a template is a sequence of assignments to builds. It refers to the newest of them whose build is ready,
//! so a tag that was assigned to a build that then failed still refers to the previous build.

mod register;

use hearth_types::{BuildId, Resources, Tag, TeamId, TemplateId, TemplateReference};
use jiff::Timestamp;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, JoinType, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    RelationTrait as _,
};
use uuid::Uuid;

pub use self::register::{NewBuild, RegisterBuildError};
use crate::connection::Store;
use crate::entity::{build, tag_assignment, template, template_alias};
use crate::error::{Error, failed};
use crate::row::{RowReader, UnknownValue};
use crate::team::Team;

/// Stored value of the global namespace. Not null, because nulls are never equal, so aliases could not be unique.
const GLOBAL: &str = "";

/// A named buildable environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub id: TemplateId,
    /// The owner; `None`: the platform.
    pub team_id: Option<TeamId>,
    /// `true` if other teams may use it.
    pub public: bool,
    /// Time of its first registration.
    pub created_at: Timestamp,
}

impl Template {
    fn is_accessible_to(&self, team: &Team) -> bool {
        self.public || self.team_id == Some(team.id)
    }
}

/// A readable name of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// A team's slug; `None`: global.
    pub namespace: Option<String>,
    pub name: String,
}

/// One result of building a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    pub id: BuildId,
    pub template_id: TemplateId,
    pub status: BuildStatus,
    /// Virtual hardware of its sandboxes.
    pub resources: Resources,
    /// Version of the guest daemon in the build.
    pub envd_version: String,
    /// Version of the guest kernel in its snapshot.
    pub kernel_version: String,
    /// Start of the build.
    pub created_at: Timestamp,
    /// Time at which it became ready or failed.
    pub finished_at: Option<Timestamp>,
}

/// Progress of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BuildStatus {
    /// Registered, not started.
    Waiting,
    Building,
    /// Sandboxes can be created from it.
    Ready,
    /// The build failed.
    Error,
}

impl BuildStatus {
    const ALL: [Self; 4] = [Self::Waiting, Self::Building, Self::Ready, Self::Error];

    /// Returns the value that is stored and shown to clients.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Error => "error",
        }
    }
}

/// Template and build that a reference resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedTemplate {
    pub template: Template,
    /// The build; always ready.
    pub build: Build,
    /// The template's oldest alias in any namespace.
    pub alias: Option<String>,
}

/// Reason why a reference does not resolve for a team.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No template has this alias or id.
    #[error("template `{reference}` not found")]
    UnknownTemplate { reference: TemplateReference },
    /// The template has no ready build with this tag or id.
    #[error("template `{reference}` has no ready build `{tag}`")]
    UnknownTag {
        reference: TemplateReference,
        /// The tag of the reference, or the default tag.
        tag: Tag,
    },
    /// The template belongs to another team and is not public.
    ///
    /// Most replies to clients must not distinguish this from an unknown template.
    #[error("template `{reference}` belongs to another team")]
    Private { reference: TemplateReference },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Resolves a reference to a template for a team, whatever the tag.
    ///
    /// If the reference has a namespace, only that namespace is searched. A bare name is searched in the team's own
    /// namespace, then among global aliases, then among template ids; the first match is final, whether it is
    /// accessible or not.
    ///
    /// # Errors
    /// All of [`ResolveError`] except [`ResolveError::UnknownTag`].
    pub async fn resolve_template(&self, reference: &TemplateReference, team: &Team) -> Result<Template, ResolveError> {
        let found = find_template(&self.database, reference, team)
            .await
            .map_err(failed("resolving template", reference))?
            .ok_or_else(|| ResolveError::UnknownTemplate { reference: reference.clone() })?;
        let template = Template::try_from(found)?;
        if !template.is_accessible_to(team) {
            return Err(ResolveError::Private { reference: reference.clone() });
        }
        Ok(template)
    }

    /// Resolves a reference to a ready build for a team.
    ///
    /// Of [the template](Store::resolve_template), it is the build with the tag's id if the tag is a build id,
    /// otherwise the newest ready build assigned to the tag.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(&self, reference: &TemplateReference, team: &Team) -> Result<ResolvedTemplate, ResolveError> {
        let template = self.resolve_template(reference, team).await?;
        let tag = reference.tag();
        let build = find_ready(&self.database, &template.id, &tag)
            .await
            .map_err(failed("resolving template", reference))?
            .ok_or_else(|| ResolveError::UnknownTag { reference: reference.clone(), tag })?;
        let build = Build::try_from(build)?;
        let alias = template_alias::Entity::find()
            .filter(template_alias::Column::TemplateId.eq(template.id.as_str()))
            .order_by_asc(template_alias::Column::CreatedAtUs)
            .order_by_asc(template_alias::Column::Namespace)
            .one(&self.database)
            .await
            .map_err(failed("reading the aliases of template", &template.id))?;
        Ok(ResolvedTemplate { template, build, alias: alias.map(|row| row.alias) })
    }
}

type FindResult<T> = Result<Option<T>, sea_orm::DbErr>;

async fn find_template(
    database: &impl ConnectionTrait,
    reference: &TemplateReference,
    team: &Team,
) -> FindResult<template::Model> {
    let name = reference.name();
    if let Some(namespace) = reference.namespace() {
        return find_by_alias(database, namespace, name).await;
    }
    for namespace in [team.slug.as_str(), GLOBAL] {
        if let Some(found) = find_by_alias(database, namespace, name).await? {
            return Ok(Some(found));
        }
    }
    template::Entity::find_by_id(name).one(database).await
}

async fn find_by_alias(database: &impl ConnectionTrait, namespace: &str, alias: &str) -> FindResult<template::Model> {
    let named = template_alias::Entity::find_by_id((namespace.to_owned(), alias.to_owned())).one(database).await?;
    match named {
        Some(named) => template::Entity::find_by_id(named.template_id).one(database).await,
        None => Ok(None),
    }
}

async fn find_ready(database: &impl ConnectionTrait, template_id: &TemplateId, tag: &Tag) -> FindResult<build::Model> {
    match build_id(tag) {
        Some(id) => {
            let found = build::Entity::find_by_id(id)
                .filter(build::Column::TemplateId.eq(template_id.as_str()))
                .filter(build::Column::Status.eq(BuildStatus::Ready.as_str()));
            found.one(database).await
        }
        None => find_tagged(database, template_id, tag).await,
    }
}

/// Parses a build id in place of a tag. Only the form with dashes is accepted: 32 digits without them are a valid tag.
fn build_id(tag: &Tag) -> Option<Uuid> {
    let id = Uuid::try_parse(tag.as_str()).ok()?;
    (id.hyphenated().to_string() == tag.as_str()).then_some(id)
}

async fn find_tagged(database: &impl ConnectionTrait, template_id: &TemplateId, tag: &Tag) -> FindResult<build::Model> {
    build::Entity::find()
        .join(JoinType::InnerJoin, tag_assignment::Relation::Build.def().rev())
        .filter(tag_assignment::Column::TemplateId.eq(template_id.as_str()))
        .filter(tag_assignment::Column::Tag.eq(tag.as_str()))
        .filter(build::Column::Status.eq(BuildStatus::Ready.as_str()))
        .order_by_desc(tag_assignment::Column::Sequence)
        .limit(1)
        .one(database)
        .await
}

impl TryFrom<template::Model> for Template {
    type Error = Error;

    fn try_from(row: template::Model) -> Result<Self, Error> {
        let template::Model { id, team_id, public, created_at_us } = row;
        let reader = RowReader::new("template", &id);
        Ok(Self {
            id: reader.text("id", &id)?,
            team_id: team_id.map(TeamId::from_uuid),
            public,
            created_at: reader.time("created_at_us", created_at_us)?,
        })
    }
}

impl TryFrom<build::Model> for Build {
    type Error = Error;

    fn try_from(row: build::Model) -> Result<Self, Error> {
        let build::Model {
            id,
            template_id,
            status,
            vcpus,
            memory_mib,
            disk_mib,
            envd_version,
            kernel_version,
            created_at_us,
            finished_at_us,
        } = row;
        let reader = RowReader::new("build", id);
        let known = BuildStatus::ALL.into_iter().find(|known| known.as_str() == status);
        Ok(Self {
            id: BuildId::from_uuid(id),
            template_id: reader.text("template_id", &template_id)?,
            status: known.ok_or_else(|| reader.damaged("status", UnknownValue(status)))?,
            resources: Resources {
                vcpus: reader.number("vcpus", vcpus)?,
                memory_mib: reader.number("memory_mib", memory_mib)?,
                disk_mib: reader.number("disk_mib", disk_mib)?,
            },
            envd_version,
            kernel_version,
            created_at: reader.time("created_at_us", created_at_us)?,
            finished_at: finished_at_us.map(|at| reader.time("finished_at_us", at)).transpose()?,
        })
    }
}
