//! A template: the root filesystem of its recipe, booted, prepared, and saved while it runs.
//!
//! ```text
//!   root filesystem (cached) ──copy──> draft ──boot──> ready ──pause──> saved ──commit──> artifact set
//! ```
//!
//! An artifact set has a *content key*: a hash over all inputs of the build. A set with the current key for this
//! platform is reused, so a second run only computes the key.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hearth_artifact::{ArtifactSet, ArtifactStore, Draft, Manifest};
use hearth_envd_api::Init;
use hearth_types::{BuildId, Platform, TemplateId};
use hearth_vmm::{Driver, Kernel};
use tokio::task::spawn_blocking;

use crate::build_folder::BuildFolder;
use crate::files::{hash, read, remove};
use crate::progress::{Progress, Unit};
use crate::recipe::Recipe;
use crate::rootfs::{self, RootFilesystem};
use crate::{Config, Error};

mod guest;
mod slot;

use guest::Guest;
use slot::BuildSlot;

/// Incremented when the same inputs give another snapshot.
const REVISION: &str = "2";
/// Bytes that a guest may write to its disk until its snapshot.
const WRITTEN_BYTES: u64 = 1 << 30;
/// User of commands for which the client names none.
const DEFAULT_USER: &str = "user";
/// Limit from the guest's first instruction to a reply of its daemon. An emulated guest on a busy host takes 30 s.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// A finished template.
#[derive(Debug, Clone)]
pub struct BuiltTemplate {
    /// Artifact set to restore sandboxes from.
    pub set: ArtifactSet,
    /// Id of the template, which is the same for the life of the data directory.
    pub template_id: TemplateId,
    /// Earlier builds, which are not needed once this one is registered.
    pub superseded: Vec<BuildId>,
    /// Costs of the build; `None` if a current one existed.
    pub costs: Option<Costs>,
}

/// Costs of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    pub duration: Duration,
    /// Size of the disk image, without its holes.
    pub disk_bytes: u64,
    /// Size of the memory image, without its holes.
    pub memory_bytes: u64,
}

/// Builds the template of a recipe for this driver and kind of network, unless a current build exists.
///
/// Cancel safe: the next run removes leftovers of an interrupted one, and its pool removes the network slot.
///
/// # Errors
/// A tool, its mirror or the VM failed; earlier results are unchanged.
pub async fn ensure_template(
    config: &Config,
    recipe: &Recipe,
    driver: &Driver,
    pool: &hearth_network::Pool,
    artifacts: &ArtifactStore,
    kernel: &Kernel,
    progress: &dyn Progress,
) -> Result<BuiltTemplate, Error> {
    let began = Instant::now();
    if recipe.needs_interpreter() && config.guest.interpreter.is_none() {
        return Err(Error::NoInterpreter { recipe: recipe.name() });
    }
    let build_folder = BuildFolder::open(config).await?;
    let template_id = build_folder.template_id(recipe.name())?;
    let root = rootfs::ensure(&build_folder, config, recipe, kernel, progress).await?;
    let slot = BuildSlot::acquire(pool).await?;
    let platform = driver.platform(guest::nic(&slot).kind());
    let content_key = content_key(recipe, kernel, &root, &platform)?;
    let (found, _) = sets(artifacts, &template_id, &content_key, &platform)?;
    let reused = found.is_some();
    let result = match found {
        Some(set) => Ok(set),
        None => {
            let job = SnapshotJob { recipe, driver, kernel, root: &root, build_folder: &build_folder };
            let manifest = |envd_version| Manifest {
                build_id: BuildId::generate(),
                template_id: template_id.clone(),
                content_key: content_key.clone(),
                resources: recipe.resources(),
                platform: platform.clone(),
                kernel_version: kernel.version.clone(),
                envd_version,
                created_at: jiff::Timestamp::now(),
            };
            job.run(&slot, artifacts, manifest, progress).await
        }
    };
    slot.release().await;
    let set = result?;
    progress.finished();
    let costs = (!reused).then(|| Costs {
        duration: began.elapsed(),
        disk_bytes: stored_bytes(&set.rootfs()),
        memory_bytes: stored_bytes(&set.memory()),
    });
    if let Some(Costs { duration, disk_bytes, memory_bytes }) = costs {
        tracing::info!(recipe = recipe.name(), ?duration, disk_bytes, memory_bytes, "made a template");
    }
    let (_, superseded) = sets(artifacts, &template_id, &content_key, &platform)?;
    Ok(BuiltTemplate { set, template_id, superseded, costs })
}

/// Returns the size of a file without its holes, in bytes.
fn stored_bytes(path: &Path) -> u64 {
    /// Unit of `st_blocks` (stat(3type)).
    const BLOCK_BYTES: u64 = 512;
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES)
}

fn content_key(recipe: &Recipe, kernel: &Kernel, root: &RootFilesystem, platform: &Platform) -> Result<String, Error> {
    let initramfs = read(&kernel.initramfs)?;
    let resources = format!("{:?}", recipe.resources());
    let platform = platform.to_string();
    let mut texts = vec![REVISION, &root.key, &kernel.version, &resources, &platform, DEFAULT_USER];
    texts.extend(recipe.ready());
    texts.extend(recipe.warm_up());
    texts.extend(guest::PREPARATION);
    Ok(hash(texts.into_iter().map(str::as_bytes).chain([initramfs.as_slice()])))
}

/// Returns the template's current set, if there is one, and the ids of its other builds.
fn sets(
    artifacts: &ArtifactStore,
    template_id: &TemplateId,
    content_key: &str,
    platform: &Platform,
) -> Result<(Option<ArtifactSet>, Vec<BuildId>), Error> {
    let (mut current, mut others) = (None, Vec::new());
    for set in artifacts.list().map_err(Error::Artifact)? {
        let manifest = set.manifest();
        if manifest.template_id != *template_id {
            continue;
        }
        if current.is_none() && manifest.content_key == content_key && manifest.platform == *platform {
            current = Some(set);
        } else {
            others.push(manifest.build_id);
        }
    }
    Ok((current, others))
}

/// Inputs of a snapshot.
struct SnapshotJob<'a> {
    recipe: &'a Recipe,
    driver: &'a Driver,
    kernel: &'a Kernel,
    root: &'a RootFilesystem,
    build_folder: &'a BuildFolder,
}

impl SnapshotJob<'_> {
    async fn run(
        &self,
        slot: &hearth_network::Slot,
        artifacts: &ArtifactStore,
        manifest: impl FnOnce(String) -> Manifest,
        progress: &dyn Progress,
    ) -> Result<ArtifactSet, Error> {
        // The copy of the root filesystem, what the guest writes, and its memory.
        let memory_bytes = u64::from(self.recipe.resources().memory_mib) << 20;
        let needed_bytes = self.recipe.installed_bytes() + WRITTEN_BYTES + memory_bytes;
        crate::require_space(self.build_folder.path(), needed_bytes, "boot and save the template")?;
        let mut manifest = manifest(String::new());
        let draft = artifacts.create_draft(manifest.build_id).map_err(Error::Artifact)?;
        progress.phase("copy of the root filesystem", Unit::Steps, None);
        let (from, to) = (self.root.image.clone(), draft.rootfs());
        let path = to.clone();
        blocking(move || hearth_host::disk::copy_sparse(&from, &to).map_err(Error::file("copying to", path))).await?;
        manifest.envd_version = self.prepare_and_save(slot, &draft, &manifest, progress).await?;
        blocking(move || draft.commit(manifest).map_err(Error::Artifact)).await
    }

    /// Boots the draft's disk, prepares the guest and saves it; returns the version of the guest daemon.
    async fn prepare_and_save(
        &self,
        slot: &hearth_network::Slot,
        draft: &Draft,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<String, Error> {
        let folder = self.build_folder.boot();
        std::fs::create_dir(&folder).map_err(Error::file("creating the folder", &folder))?;
        progress.phase("boot", Unit::Steps, None);
        let mut guest = Guest::boot(self.driver, self.kernel, self.recipe.resources(), &folder, draft, slot).await?;
        let init = Init {
            default_user: Some(DEFAULT_USER.to_owned()),
            template_id: Some(manifest.template_id.to_string()),
            ..Init::default()
        };
        let prepared = async {
            let version = guest.initialize(&init, BOOT_LIMIT).await?;
            guest.write_ids(manifest.template_id.as_str(), &manifest.build_id.to_string()).await?;
            if let Some(url) = self.recipe.ready() {
                progress.phase("start of services", Unit::Steps, None);
                guest.wait_until_ready(url).await?;
            }
            let commands = [&self.recipe.warm_up(), guest::PREPARATION].concat();
            progress.phase("warm-up", Unit::Steps, Some(commands.len() as u64));
            for (done, command) in (1..).zip(&commands) {
                guest.run(command).await?;
                progress.advance(done, commands.len() as u64);
            }
            Ok(version)
        }
        .await;
        let version = match prepared {
            Ok(version) => version,
            Err(error) => {
                guest.kill().await;
                return Err(error);
            }
        };
        progress.phase("snapshot", Unit::Steps, None);
        guest.save(&draft.state()).await?;
        remove(&folder)?;
        Ok(version)
    }
}

/// Runs work that blocks on the disk on a blocking thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Stopped),
    }
}
