//! Registration of builds.
//!
//! One transaction registers the template, its alias, the build and the tag together, or changes nothing.

use hearth_types::{BuildId, Resources, Tag, TeamId, TemplateId};
use jiff::Timestamp;
use sea_orm::ActiveValue::{Set, Unchanged};
use sea_orm::{ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, QueryFilter as _};

use super::{Alias, Build, BuildStatus, GLOBAL, find_by_alias, find_tagged};
use crate::connection::{Store, Write};
use crate::entity::{build, tag_assignment, template, template_alias};
use crate::error::Error;
use crate::row::{RowReader, micros, now_micros};

/// A finished build to register, with its template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBuild {
    /// The template; created if it is missing.
    pub template_id: TemplateId,
    /// The template's owner; `None`: the platform.
    pub team_id: Option<TeamId>,
    /// `true` if other teams may use the template.
    pub public: bool,
    /// The template's new alias in the alias's namespace.
    pub alias: Alias,
    /// The tag that is assigned to this build.
    pub tag: Tag,
    pub build_id: BuildId,
    /// Virtual hardware of its sandboxes.
    pub resources: Resources,
    /// Version of the guest daemon in the build.
    pub envd_version: String,
    /// Version of the guest kernel in its snapshot.
    pub kernel_version: String,
    /// Start of the build.
    pub created_at: Timestamp,
    /// Time at which it was ready.
    pub finished_at: Timestamp,
}

/// Reason why a build was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterBuildError {
    /// The template has another owner.
    #[error("template {template_id} belongs to another owner")]
    Foreign { template_id: TemplateId },
    /// The alias refers to a template of another owner.
    #[error("the alias `{}` names template {holder} of another owner", alias.name)]
    AliasTaken {
        alias: Alias,
        /// The template that the alias refers to.
        holder: TemplateId,
    },
    /// The id belongs to a build of another template.
    #[error("build {build_id} is one of template {template_id}")]
    OtherTemplate {
        build_id: BuildId,
        /// The template of that build.
        template_id: TemplateId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Registers a finished build and assigns its template's alias and tag to it.
    ///
    /// Idempotent: a repetition changes nothing while alias and tag still refer to the build, and assigns them again
    /// otherwise. An alias of another template of the same owner is moved to this one.
    ///
    /// # Errors
    /// [`RegisterBuildError`].
    pub async fn register_build(&self, new: NewBuild) -> Result<Build, RegisterBuildError> {
        let write = self.begin("registering build", new.build_id).await?;
        let failed = |error| write.failed(error);
        ensure_template(&write, &new).await?;
        ensure_alias(&write, &new).await?;
        let row = ensure_build(&write, &new).await?;
        let tagged = find_tagged(&write.transaction, &new.template_id, &new.tag).await.map_err(failed)?;
        if tagged.is_none_or(|tagged| tagged.id != row.id) {
            let assignment = tag_assignment::ActiveModel {
                template_id: Set(new.template_id.as_str().to_owned()),
                tag: Set(new.tag.as_str().to_owned()),
                build_id: Set(new.build_id.as_uuid()),
                assigned_at_us: Set(now_micros()),
                ..Default::default()
            };
            assignment.insert(&write.transaction).await.map_err(failed)?;
        }
        let build = Build::try_from(row)?;
        write.commit().await?;
        Ok(build)
    }
}

async fn ensure_template(write: &Write, new: &NewBuild) -> Result<(), RegisterBuildError> {
    let owner = new.team_id.map(|team| team.as_uuid());
    let id = new.template_id.as_str();
    let known = template::Entity::find_by_id(id).one(&write.transaction).await;
    let outcome = match known.map_err(|error| write.failed(error))? {
        Some(known) if known.team_id != owner => {
            return Err(RegisterBuildError::Foreign { template_id: new.template_id.clone() });
        }
        Some(known) if known.public == new.public => return Ok(()),
        Some(known) => {
            let row = template::ActiveModel { id: Unchanged(known.id), public: Set(new.public), ..Default::default() };
            row.update(&write.transaction).await
        }
        None => {
            let row = template::ActiveModel {
                id: Set(id.to_owned()),
                team_id: Set(owner),
                public: Set(new.public),
                created_at_us: Set(now_micros()),
            };
            row.insert(&write.transaction).await
        }
    };
    outcome.map(drop).map_err(|error| write.failed(error).into())
}

/// Sets the template's alias in the alias's namespace, replacing its previous one there.
async fn ensure_alias(write: &Write, new: &NewBuild) -> Result<(), RegisterBuildError> {
    let failed = |error| write.failed(error);
    let Alias { namespace, name } = &new.alias;
    let namespace = namespace.as_deref().unwrap_or(GLOBAL);
    let owner = new.team_id.map(|team| team.as_uuid());
    if let Some(holder) = find_by_alias(&write.transaction, namespace, name).await.map_err(failed)? {
        if holder.id == new.template_id.as_str() {
            return Ok(());
        }
        if holder.team_id != owner {
            let holder = RowReader::new("template", &holder.id).text("id", &holder.id)?;
            return Err(RegisterBuildError::AliasTaken { alias: new.alias.clone(), holder });
        }
        let taken_over = template_alias::Entity::delete_by_id((namespace.to_owned(), name.clone()));
        taken_over.exec(&write.transaction).await.map_err(failed)?;
    }
    template_alias::Entity::delete_many()
        .filter(template_alias::Column::Namespace.eq(namespace))
        .filter(template_alias::Column::TemplateId.eq(new.template_id.as_str()))
        .exec(&write.transaction)
        .await
        .map_err(failed)?;
    let row = template_alias::ActiveModel {
        namespace: Set(namespace.to_owned()),
        alias: Set(name.clone()),
        template_id: Set(new.template_id.as_str().to_owned()),
        created_at_us: Set(now_micros()),
    };
    row.insert(&write.transaction).await.map(drop).map_err(|error| write.failed(error).into())
}

async fn ensure_build(write: &Write, new: &NewBuild) -> Result<build::Model, RegisterBuildError> {
    let NewBuild { template_id, build_id, resources, envd_version, kernel_version, created_at, finished_at, .. } = new;
    let Resources { vcpus, memory_mib, disk_mib } = *resources;
    let row = build::ActiveModel {
        id: Set(build_id.as_uuid()),
        template_id: Set(template_id.as_str().to_owned()),
        status: Set(BuildStatus::Ready.as_str().to_owned()),
        vcpus: Set(i64::from(vcpus)),
        memory_mib: Set(i64::from(memory_mib)),
        disk_mib: Set(i64::from(disk_mib)),
        envd_version: Set(envd_version.clone()),
        kernel_version: Set(kernel_version.clone()),
        created_at_us: Set(micros(*created_at)),
        finished_at_us: Set(Some(micros(*finished_at))),
    };
    let known = build::Entity::find_by_id(build_id.as_uuid()).one(&write.transaction).await;
    let outcome = match known.map_err(|error| write.failed(error))? {
        Some(known) if known.template_id != template_id.as_str() => {
            let template_id = RowReader::new("build", known.id).text("template_id", &known.template_id)?;
            return Err(RegisterBuildError::OtherTemplate { build_id: *build_id, template_id });
        }
        Some(_) => row.update(&write.transaction).await,
        None => row.insert(&write.transaction).await,
    };
    outcome.map_err(|error| write.failed(error).into())
}
