//! Templates besides `base`, which the daemon prepares while it serves.
//!
//! ```text
//!   plan: recipes, stored builds ──▶ background: one template after another ──▶ registered, earlier builds removed
//!                                          │
//!                                        states ── watch ──▶ api: creates wait or are rejected
//!                                              └── file ──▶ hearth doctor
//! ```
//!
//! - A selected template without a current build is made. Its earlier build is used until then, if this host can
//!   restore it.
//! - A template that is not selected, but was made by `hearth setup --template`, is used as it is.
//! - Making a template runs on a thread of the lowest priority ([`low_priority`]), and so do its programs and its VM.

mod background;
mod low_priority;
mod percent;
mod plan;
mod states;
mod superseded;

pub(crate) use background::{Background, Job, Maker};
pub(crate) use plan::{Candidate, Plan};
pub(crate) use states::{Published, States, published};

use anyhow::{Context, Result};
use hearth_artifact::{ArtifactSet, ArtifactStore, Manifest};
use hearth_builder::BuiltTemplate;
use hearth_builder::{Config as BuilderConfig, Progress, Recipe, ensure_template};
use hearth_network::Pool;
use hearth_store::{Alias, NewBuild, Store};
use hearth_types::Tag;
use hearth_vmm::{Driver, Kernel};

/// Parts of the host that making a template needs.
pub(crate) struct TemplateMaker {
    pub(crate) config: BuilderConfig,
    pub(crate) driver: Driver,
    pub(crate) pool: Pool,
    pub(crate) artifacts: ArtifactStore,
    pub(crate) kernel: Kernel,
}

impl Maker for TemplateMaker {
    async fn make(&self, name: &'static str, progress: &dyn Progress) -> Result<BuiltTemplate> {
        let Self { config, driver, pool, artifacts, kernel } = self;
        let recipe = Recipe::find(name).with_context(|| format!("there is no template `{name}`"))?;
        Ok(ensure_template(config, recipe, driver, pool, artifacts, kernel, progress).await?)
    }
}

/// Points the global alias to the build of an artifact set. Idempotent.
pub(crate) async fn register(store: &Store, alias: &str, set: &ArtifactSet) -> Result<()> {
    let Manifest { build_id, template_id, resources, kernel_version, envd_version, created_at, .. } =
        set.manifest().clone();
    let build = NewBuild {
        template_id,
        team_id: None,
        public: true,
        alias: Alias { namespace: None, name: alias.to_owned() },
        tag: Tag::default(),
        build_id,
        resources,
        envd_version,
        kernel_version,
        created_at,
        finished_at: created_at,
    };
    store.register_build(build).await.with_context(|| format!("registering the template {alias}"))?;
    Ok(())
}

/// Disk space of an artifact set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight {
    pub(crate) disk_bytes: u64,
    pub(crate) memory_bytes: u64,
}

impl Weight {
    /// Measures the allocated bytes of the files; a missing file has none.
    pub(crate) fn of(set: &ArtifactSet) -> Self {
        let bytes = |path: &std::path::Path| hearth_host::disk::allocated_bytes(path).unwrap_or(0);
        Self { disk_bytes: bytes(&set.rootfs()), memory_bytes: bytes(&set.memory()) }
    }
}

impl std::fmt::Display for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { disk_bytes, memory_bytes } = self;
        write!(f, "disk {} MiB, memory image {} MiB", disk_bytes >> 20, memory_bytes >> 20)
    }
}

#[cfg(test)]
mod tests;
