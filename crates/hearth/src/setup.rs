//! Preparation of the host: guest kernel, VMM driver, network pool, artifact store and base template.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hearth_artifact::ArtifactStore;
use hearth_builder::{BASE, BuiltTemplate, Config as BuilderConfig, Recipe, ensure_kernel, ensure_template};
use hearth_host::cgroup::Groups;
use hearth_host::lock::{Error as LockError, Lock};
use hearth_host::process::find_program;
use hearth_network::{Mode, Pool};
use hearth_sandbox::{DiskSpace, Leftovers, NodeResources, StartQueue};
use hearth_store::{Alias, NewBuild, Store};
use hearth_types::{Resources, Tag};
use hearth_vmm::{AcceleratorChoice, Driver, Verdict};

use crate::guest_programs;
use crate::layout::Layout;
use crate::options::{Accelerator, NetworkMode, Settings};
use crate::progress::ProgressDisplay;

/// Prepared parts of the host that the roles need.
pub(crate) struct Foundation {
    driver: Driver,
    pool: Pool,
    groups: Groups,
    cache: ArtifactStore,
    base: BuiltTemplate,
}

/// Text that a daemon writes to its lock file, before its process ID.
const OWNER: &str = "hearth, process ";

/// Returns the process ID of the daemon that runs on the data directory; `None` if none runs.
pub(crate) fn running_daemon(layout: &Layout) -> Result<Option<u32>> {
    if !layout.lock().exists() {
        return Ok(None);
    }
    match Lock::acquire(&layout.lock(), "") {
        Ok(_) => Ok(None),
        Err(LockError::Held { owner, .. }) => {
            let number = owner.strip_prefix(OWNER).and_then(|number| number.parse().ok());
            number.map(Some).with_context(|| format!("`{owner}` holds the lock of the data directory"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Locks the data directory for this process.
pub(crate) fn acquire_lock(layout: &Layout) -> Result<Lock> {
    let owner = format!("{OWNER}{}", std::process::id());
    Lock::acquire(&layout.lock(), &owner)
        .context("another hearth process uses this data directory: stop it, or choose another with --data-dir")
}

/// Runs `hearth setup`: prepares the missing parts, then exits.
pub(crate) async fn run(settings: &Settings, force: bool) -> Result<()> {
    let layout = Layout::new(&settings.data_dir);
    layout.ensure()?;
    let _lock = acquire_lock(&layout)?;
    let foundation = prepare(settings, &layout, force).await?;
    let manifest = foundation.base.set.manifest().clone();
    foundation.close().await;
    println!("The base template is ready: build {}, kernel {}.", manifest.build_id, manifest.kernel_version);
    Ok(())
}

/// Prepares the missing parts, and opens all. Fast when nothing is missing.
///
/// Cancel safe: the next run removes partial results, and dropping the future kills its child processes.
pub(crate) async fn prepare(settings: &Settings, layout: &Layout, force: bool) -> Result<Foundation> {
    if force {
        for folder in [layout.guest(), layout.artifacts()] {
            remove(&folder)?;
        }
        layout.ensure()?;
    }
    let builder = BuilderConfig {
        folder: layout.guest(),
        guest: guest_programs::ensure(&layout.programs())?,
        suite: hearth_builder::SUITE.to_owned(),
        mirror: settings.mirror.clone(),
        variables: variables(),
        nameserver: hearth_builder::NAMESERVER,
    };
    let display = ProgressDisplay::new();
    let kernel = ensure_kernel(&builder, &display).await?;
    let driver = Driver::open(&driver_config(settings, layout), &kernel).await?;
    let cache = ArtifactStore::open(layout.artifacts())?;
    let pool = Pool::open(network_config(settings)).await?;
    let base = match ensure_template(&builder, Recipe::base(), &driver, &pool, &cache, &kernel, &display).await {
        Ok(base) => base,
        Err(error) => {
            pool.shutdown().await;
            return Err(error.into());
        }
    };
    let groups = Groups::open(&group_name(&settings.data_dir));
    Ok(Foundation { driver, pool, groups, cache, base })
}

/// Returns the environment variables, except those that are not UTF-8.
fn variables() -> BTreeMap<String, String> {
    let utf8 = |text: OsString| text.into_string().ok();
    std::env::vars_os().filter_map(|(name, value)| Some((utf8(name)?, utf8(value)?))).collect()
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn driver_config(settings: &Settings, layout: &Layout) -> hearth_vmm::Config {
    hearth_vmm::Config {
        // An absolute path gives the same program in every mount namespace and environment.
        qemu_program: find_program(settings.qemu.as_os_str()).unwrap_or_else(|| settings.qemu.clone()),
        accelerator: match settings.accelerator {
            Accelerator::Auto => AcceleratorChoice::Auto,
            Accelerator::Kvm => AcceleratorChoice::Kvm,
            Accelerator::Tcg => AcceleratorChoice::Tcg,
        },
        verdict_file: layout.verdict(),
    }
}

fn network_config(settings: &Settings) -> hearth_network::Config {
    hearth_network::Config {
        mode: match settings.network_mode {
            NetworkMode::Auto => Mode::Auto,
            NetworkMode::Namespaces => Mode::Namespaces,
            NetworkMode::User => Mode::User,
        },
        owner: settings.data_dir.display().to_string(),
        block: settings.network_block,
        prepared_target: settings.slots_prepared,
        guests_max: settings.sandboxes_max,
        egress_denied: settings.egress_denied.clone(),
    }
}

/// Returns the name of the control groups of a data directory: its path, with dashes for slashes.
fn group_name(data_dir: &Path) -> String {
    data_dir.to_string_lossy().trim_matches('/').replace('/', "-")
}

impl Foundation {
    /// Parts that sandboxes are assembled from.
    pub(crate) fn parts(&self, disk: DiskSpace) -> NodeResources {
        NodeResources {
            network: self.pool.clone(),
            driver: self.driver.clone(),
            groups: self.groups.clone(),
            disk,
            starts: StartQueue::of_this_machine(),
            leftovers: Leftovers::default(),
        }
    }

    /// Virtual hardware of a sandbox of the base template.
    pub(crate) fn typical_resources(&self) -> Resources {
        self.base.set.manifest().resources
    }

    pub(crate) fn cache(&self) -> ArtifactStore {
        self.cache.clone()
    }

    pub(crate) fn verdict(&self) -> &Verdict {
        self.driver.verdict()
    }

    /// Network mode, in words.
    pub(crate) fn network(&self) -> &'static str {
        if self.pool.has_namespaces() {
            "one namespace per sandbox"
        } else {
            "user mode (no root): guests can reach everything that this user can reach; see `hearth doctor`"
        }
    }

    /// Points the alias `base` to the current build, and removes the artifact sets of older builds.
    pub(crate) async fn register(&self, store: &Store) -> Result<()> {
        let manifest = self.base.set.manifest();
        store
            .register_build(NewBuild {
                template_id: manifest.template_id.clone(),
                team_id: None,
                public: true,
                alias: Alias { namespace: None, name: BASE.to_owned() },
                tag: Tag::default(),
                build_id: manifest.build_id,
                resources: manifest.resources,
                envd_version: manifest.envd_version.clone(),
                kernel_version: manifest.kernel_version.clone(),
                created_at: manifest.created_at,
                finished_at: manifest.created_at,
            })
            .await
            .context("registering the base template")?;
        for build_id in &self.base.superseded {
            self.cache.delete(*build_id)?;
        }
        Ok(())
    }

    /// Releases machine-wide resources: network slots and control groups.
    pub(crate) async fn close(self) {
        self.pool.shutdown().await;
        self.groups.close();
    }
}
