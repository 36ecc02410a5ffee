//! The base template: its root filesystem, booted, made ready and saved while it runs.
//!
//! ```text
//!   root filesystem (cached) ──copy──> draft ──boot──> ready ──pause──> saved ──commit──> artifact set
//! ```
//!
//! A set has a *content key*: a hash over everything that went into it. A set of the current key for this platform is used
//! as it is, so a second run only computes the key.

use std::time::Duration;

use hearth_artifact::{ArtifactSet, Cache, Draft, Manifest};
use hearth_envd_api::Init;
use hearth_types::{BuildId, Platform, TemplateId};
use hearth_vmm::{Driver, Kernel};
use tokio::task::spawn_blocking;

use crate::files::{hash, read, remove};
use crate::progress::{Progress, Unit};
use crate::rootfs::{self, RootFilesystem};
use crate::workshop::Workshop;
use crate::{Config, Error};

mod guest;

use guest::Guest;

/// Raised when the same inputs become another snapshot.
const REVISION: &str = "2";
/// The copy of the root filesystem and the memory of its VM.
const NEEDED_BYTES: u64 = 3 << 30;
/// Who commands run as when nobody is named.
const DEFAULT_USER: &str = "user";
/// How long the guest may take from its first instruction to an answering daemon. Emulated on a busy host it takes 30 s.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What everybody's first commands need: run once, so that it is in the guest's memory when a sandbox begins. Runs as
/// [`DEFAULT_USER`].
const WARM_UP: &[&str] = &[
    "true",
    "python3 -c 'import asyncio, http.client, json, os, subprocess, sys, urllib.request'",
    "node -e 'require(\"fs\"); require(\"http\")'",
    "git --version && curl --version && pip --version && ls -l /usr/bin > /dev/null && sudo -n true",
];

/// The base template, ready.
#[derive(Debug, Clone)]
pub struct Base {
    /// The artifacts to restore sandboxes from.
    pub set: ArtifactSet,
    /// The template's id: the same for the life of the data directory.
    pub template_id: TemplateId,
    /// Earlier builds, which nobody needs once this one is known.
    pub superseded: Vec<BuildId>,
}

/// Makes sure that the base template is there for this driver and kind of network.
///
/// Cancel safe: what an interrupted run leaves is removed by the next one. A network slot is then only free again when the
/// pool is opened anew.
///
/// # Errors
/// A tool, its mirror or the VM failed; nothing that was there before is lost.
pub async fn ensure_base(
    config: &Config,
    driver: &Driver,
    pool: &hearth_network::Pool,
    cache: &Cache,
    kernel: &Kernel,
    progress: &dyn Progress,
) -> Result<Base, Error> {
    let workshop = Workshop::open(config).await?;
    let template_id = workshop.base_template_id()?;
    let root = rootfs::ensure(&workshop, config, kernel, progress).await?;
    let slot = pool.acquire(true).await.map_err(Error::Network)?;
    let platform = driver.platform(guest::nic(&slot).kind());
    let content_key = content_key(config, kernel, &root, &platform)?;
    let (found, _) = sets(cache, &template_id, &content_key, &platform)?;
    let result = match found {
        Some(set) => Ok(set),
        None => {
            let work = Snapshot { config, driver, kernel, root: &root, workshop: &workshop };
            let manifest = |envd_version| Manifest {
                build_id: BuildId::generate(),
                template_id: template_id.clone(),
                content_key: content_key.clone(),
                resources: config.resources,
                platform: platform.clone(),
                kernel_version: kernel.version.clone(),
                envd_version,
                created_at: jiff::Timestamp::now(),
            };
            work.take(&slot, cache, manifest, progress).await
        }
    };
    pool.release(slot).await;
    let set = result?;
    progress.finished();
    let (_, superseded) = sets(cache, &template_id, &content_key, &platform)?;
    Ok(Base { set, template_id, superseded })
}

fn content_key(config: &Config, kernel: &Kernel, root: &RootFilesystem, platform: &Platform) -> Result<String, Error> {
    let initramfs = read(&kernel.initramfs)?;
    let resources = format!("{:?}", config.resources);
    let platform = platform.to_string();
    let mut texts = vec![REVISION, &root.key, &kernel.version, &resources, &platform, DEFAULT_USER];
    texts.extend(WARM_UP);
    texts.extend(guest::PREPARATION);
    Ok(hash(texts.into_iter().map(str::as_bytes).chain([initramfs.as_slice()])))
}

/// The template's current set, if there is one, and its other builds.
fn sets(
    cache: &Cache,
    template_id: &TemplateId,
    content_key: &str,
    platform: &Platform,
) -> Result<(Option<ArtifactSet>, Vec<BuildId>), Error> {
    let (mut current, mut others) = (None, Vec::new());
    for set in cache.list().map_err(Error::Artifact)? {
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

/// What a snapshot is made of.
struct Snapshot<'a> {
    config: &'a Config,
    driver: &'a Driver,
    kernel: &'a Kernel,
    root: &'a RootFilesystem,
    workshop: &'a Workshop,
}

impl Snapshot<'_> {
    async fn take(
        &self,
        slot: &hearth_network::Slot,
        cache: &Cache,
        manifest: impl FnOnce(String) -> Manifest,
        progress: &dyn Progress,
    ) -> Result<ArtifactSet, Error> {
        crate::require_space(self.workshop.folder(), NEEDED_BYTES, "boot and save the base template")?;
        let mut manifest = manifest(String::new());
        let draft = cache.begin(manifest.build_id).map_err(Error::Artifact)?;
        progress.phase("copy of the root filesystem", Unit::Steps, None);
        let (from, to) = (self.root.image.clone(), draft.rootfs());
        let path = to.clone();
        blocking(move || hearth_host::disk::copy_sparse(&from, &to).map_err(Error::file("copying to", path))).await?;
        manifest.envd_version = self.ready_state(slot, &draft, &manifest, progress).await?;
        blocking(move || draft.commit(manifest).map_err(Error::Artifact)).await
    }

    /// Boots the draft's disk, gets the guest ready and saves it. The version of the guest's daemon.
    async fn ready_state(
        &self,
        slot: &hearth_network::Slot,
        draft: &Draft,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<String, Error> {
        let folder = self.workshop.boot();
        std::fs::create_dir(&folder).map_err(Error::file("creating the folder", &folder))?;
        progress.phase("boot", Unit::Steps, None);
        let mut guest = Guest::boot(self.driver, self.kernel, self.config.resources, &folder, draft, slot).await?;
        let init = Init {
            default_user: Some(DEFAULT_USER.to_owned()),
            template_id: Some(manifest.template_id.to_string()),
            ..Init::default()
        };
        let prepared = async {
            let version = guest.identify(&init, BOOT_LIMIT).await?;
            progress.phase("warm-up", Unit::Steps, Some((guest::PREPARATION.len() + WARM_UP.len()) as u64));
            guest.mark(manifest.template_id.as_str(), &manifest.build_id.to_string()).await?;
            let commands = WARM_UP.iter().chain(guest::PREPARATION);
            for (done, command) in (1..).zip(commands) {
                guest.run(command).await?;
                progress.advance(done, (guest::PREPARATION.len() + WARM_UP.len()) as u64);
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

/// Runs work that blocks on the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Stopped),
    }
}
