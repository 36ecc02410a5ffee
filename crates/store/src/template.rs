//! Templates: their names, their builds, and what a reference means.
//!
//! A **template** has at most one **alias** per namespace (a team's slug, or none: global) and many **builds**. A
//! **tag** of a template is a row of assignments to builds; the newest one whose build is ready is what the tag means,
//! so a tag that was given to a build that then failed still means the build before.

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
use crate::row::{Reading, UnknownWord};
use crate::team::Team;

/// How the global namespace is kept: a null is equal to no other, and could not be unique.
const GLOBAL: &str = "";

/// A named buildable environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The template.
    pub id: TemplateId,
    /// Whose it is; `None`: the platform's.
    pub team_id: Option<TeamId>,
    /// Whether other teams may use it.
    pub public: bool,
    /// When it was first registered.
    pub created_at: Timestamp,
}

impl Template {
    fn is_accessible_to(&self, team: &Team) -> bool {
        self.public || self.team_id == Some(team.id)
    }
}

/// A human name of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// A team's slug; `None`: global.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

/// One result of building a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The build.
    pub id: BuildId,
    /// What it is a build of.
    pub template_id: TemplateId,
    /// How far it is.
    pub status: BuildStatus,
    /// The virtual hardware of its sandboxes.
    pub resources: Resources,
    /// Version of the guest daemon in it.
    pub envd_version: String,
    /// Version of the guest kernel it was snapshotted with.
    pub kernel_version: String,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it became ready or failed.
    pub finished_at: Option<Timestamp>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BuildStatus {
    /// Registered, not started.
    Waiting,
    /// Being built.
    Building,
    /// Sandboxes can be created from it.
    Ready,
    /// Failed.
    Error,
}

impl BuildStatus {
    const ALL: [Self; 4] = [Self::Waiting, Self::Building, Self::Ready, Self::Error];

    /// The word that is kept and shown.
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

/// What a reference means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The template.
    pub template: Template,
    /// Its build: ready.
    pub build: Build,
    /// The template's first name in any namespace.
    pub alias: Option<String>,
}

/// Why a reference means nothing to a team.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No template has this name or id.
    #[error("template `{reference}` not found")]
    UnknownTemplate {
        /// As asked.
        reference: TemplateReference,
    },
    /// The template has no ready build of this tag, or with this id.
    #[error("template `{reference}` has no ready build `{tag}`")]
    UnknownTag {
        /// As asked.
        reference: TemplateReference,
        /// The tag that was meant.
        tag: Tag,
    },
    /// The template is another team's and not public. Most answers must not tell this apart from an unknown one.
    #[error("template `{reference}` belongs to another team")]
    Private {
        /// As asked.
        reference: TemplateReference,
    },
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// The template that a team means by a reference, whatever the tag.
    ///
    /// A namespace that was given is the only one looked into. A bare name is looked for in the team's own namespace,
    /// then among global aliases, then among template ids; the first one found is meant, whether accessible or not.
    ///
    /// # Errors
    /// All of [`ResolveError`] but [`ResolveError::UnknownTag`].
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

    /// The build that a team means by a reference: of [the template](Store::resolve_template), the one with the tag's
    /// id if the tag is a build id, otherwise the newest assigned to the tag; ready in either case.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(&self, reference: &TemplateReference, team: &Team) -> Result<Resolved, ResolveError> {
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
        Ok(Resolved { template, build, alias: alias.map(|row| row.alias) })
    }
}

type Found<T> = Result<Option<T>, sea_orm::DbErr>;

async fn find_template(
    database: &impl ConnectionTrait,
    reference: &TemplateReference,
    team: &Team,
) -> Found<template::Model> {
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

async fn find_by_alias(database: &impl ConnectionTrait, namespace: &str, alias: &str) -> Found<template::Model> {
    let named = template_alias::Entity::find_by_id((namespace.to_owned(), alias.to_owned())).one(database).await?;
    match named {
        Some(named) => template::Entity::find_by_id(named.template_id).one(database).await,
        None => Ok(None),
    }
}

async fn find_ready(database: &impl ConnectionTrait, template_id: &TemplateId, tag: &Tag) -> Found<build::Model> {
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

/// The build id that stands in place of a tag. Only the form with dashes: 32 digits may well be a tag.
fn build_id(tag: &Tag) -> Option<Uuid> {
    let id = Uuid::try_parse(tag.as_str()).ok()?;
    (id.hyphenated().to_string() == tag.as_str()).then_some(id)
}

async fn find_tagged(database: &impl ConnectionTrait, template_id: &TemplateId, tag: &Tag) -> Found<build::Model> {
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
        let reading = Reading::new("template", &id);
        Ok(Self {
            id: reading.text("id", &id)?,
            team_id: team_id.map(TeamId::from_uuid),
            public,
            created_at: reading.time("created_at_us", created_at_us)?,
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
        let reading = Reading::new("build", id);
        let known = BuildStatus::ALL.into_iter().find(|known| known.as_str() == status);
        Ok(Self {
            id: BuildId::from_uuid(id),
            template_id: reading.text("template_id", &template_id)?,
            status: known.ok_or_else(|| reading.damaged("status", UnknownWord(status)))?,
            resources: Resources {
                vcpus: reading.number("vcpus", vcpus)?,
                memory_mib: reading.number("memory_mib", memory_mib)?,
                disk_mib: reading.number("disk_mib", disk_mib)?,
            },
            envd_version,
            kernel_version,
            created_at: reading.time("created_at_us", created_at_us)?,
            finished_at: finished_at_us.map(|at| reading.time("finished_at_us", at)).transpose()?,
        })
    }
}
