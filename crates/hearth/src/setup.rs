//! Preparation of the host: guest kernel, VMM driver, network pool, artifact store and templates.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hearth_artifact::{ArtifactStore, Manifest};
use hearth_builder::{
    BASE, BuiltTemplate, Config as BuilderConfig, Recipe, ensure_kernel, ensure_template, stored_sets,
};
use hearth_host::cgroup::Groups;
use hearth_host::lock::{Error as LockError, Lock};
use hearth_host::process::find_program;
use hearth_network::{Mode, Pool};
use hearth_sandbox::{DiskSpace, Leftovers, NodeResources, StartQueue};
use hearth_store::Store;
use hearth_types::Resources;
use hearth_vmm::{AcceleratorChoice, Driver, Kernel, Nic, Verdict};

use crate::guest_programs;
use crate::layout::Layout;
use crate::options::{Accelerator, NetworkMode, Selection, Settings};
use crate::progress::ProgressDisplay;
use crate::templates::{Candidate, Maker as _, Plan, TemplateMaker, Weight, register};

/// Prepared parts of the host that the roles need.
pub(crate) struct Foundation {
    driver: Driver,
    pool: Pool,
    groups: Groups,
    cache: ArtifactStore,
    base: BuiltTemplate,
    builder: BuilderConfig,
    kernel: Kernel,
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

/// Templates to prepare, and their source.
#[derive(Debug, Clone)]
pub(crate) struct Setup<'a> {
    pub(crate) templates: Selection,
    /// Deletes the existing kernel and templates first.
    pub(crate) force: bool,
    /// Bundle to make the templates from, without network.
    pub(crate) bundle: Option<&'a Path>,
}

/// Runs `hearth setup`: prepares the missing parts, then exits.
pub(crate) async fn run(settings: &Settings, setup: Setup<'_>) -> Result<()> {
    let layout = Layout::new(&settings.data_dir);
    layout.ensure()?;
    let _lock = acquire_lock(&layout)?;
    let foundation = prepare(settings, &layout, &setup).await?;
    let mut lines = vec![summary(BASE, &foundation.base)];
    let mut outcome = Ok(());
    for name in setup.templates.names().filter(|name| *name != BASE) {
        match foundation.maker().make(name, &ProgressDisplay::of(name)).await {
            Ok(built) => {
                lines.push(summary(name, &built));
                for build_id in built.superseded {
                    foundation.cache.delete(build_id)?;
                }
            }
            Err(error) => {
                outcome = Err(error.context(format!("preparing the template {name}")));
                break;
            }
        }
    }
    foundation.close().await;
    for line in lines {
        println!("{line}");
    }
    outcome
}

/// Describes a finished template.
fn summary(name: &str, built: &BuiltTemplate) -> String {
    let Manifest { build_id, kernel_version, .. } = built.set.manifest();
    let how = match built.costs {
        Some(costs) => format!("made in {:.1} min", costs.duration.as_secs_f64() / 60.0),
        None => "unchanged".to_owned(),
    };
    let weight = Weight::of(&built.set);
    format!("The template {name} is ready: {how}, build {build_id}, kernel {kernel_version}, {weight}.")
}

/// Prepares the missing parts up to the template `base`, and opens all. Fast when nothing is missing.
///
/// Cancel safe: the next run removes partial results, and dropping the future kills its child processes.
pub(crate) async fn prepare(settings: &Settings, layout: &Layout, setup: &Setup<'_>) -> Result<Foundation> {
    if setup.force {
        for folder in [layout.guest(), layout.artifacts()] {
            remove(&folder)?;
        }
        layout.ensure()?;
    }
    let builder = builder_config(settings, layout)?;
    let display = ProgressDisplay::new();
    if let Some(bundle) = setup.bundle {
        crate::bundle::unpack(&builder, &setup.templates, bundle, &display).await?;
    }
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
    Ok(Foundation { driver, pool, groups, cache, base, builder, kernel })
}

/// Configuration of the builder. Unpacks the guest programs.
pub(crate) fn builder_config(settings: &Settings, layout: &Layout) -> Result<BuilderConfig> {
    Ok(BuilderConfig {
        folder: layout.guest(),
        guest: guest_programs::ensure(&layout.programs())?,
        suite: hearth_builder::SUITE.to_owned(),
        mirror: settings.mirror.clone(),
        variables: variables(),
        nameserver: hearth_builder::NAMESERVER,
    })
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

    /// Parts that making another template needs.
    pub(crate) fn maker(&self) -> TemplateMaker {
        TemplateMaker {
            config: self.builder.clone(),
            driver: self.driver.clone(),
            pool: self.pool.clone(),
            artifacts: self.cache.clone(),
            kernel: self.kernel.clone(),
        }
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
    ///
    /// No sandbox exists yet, so none needs them.
    pub(crate) async fn register(&self, store: &Store) -> Result<()> {
        register(store, Recipe::base().alias(), &self.base.set).await?;
        for build_id in &self.base.superseded {
            self.cache.delete(*build_id)?;
        }
        Ok(())
    }

    /// Plans which other templates are made in the background, and registers those that exist.
    pub(crate) async fn plan(&self, selection: &Selection, store: &Store) -> Result<Plan> {
        let nic = if self.pool.has_namespaces() {
            Nic::Tap { name: String::new() }
        } else {
            Nic::User { forwards: Vec::new() }
        };
        let mut candidates = Vec::new();
        for recipe in Recipe::all().iter().filter(|recipe| recipe.name() != BASE) {
            candidates.push(Candidate {
                name: recipe.name(),
                alias: recipe.alias().to_owned(),
                is_selected: selection.contains(recipe.name()),
                sets: stored_sets(&self.builder.folder, recipe, &self.cache)?,
            });
        }
        // The order of the selection is that of the preparation.
        let position = |name| selection.names().position(|selected| selected == name).unwrap_or(usize::MAX);
        candidates.sort_by_key(|candidate| position(candidate.name));
        Plan::new(candidates, &self.driver.platform(nic.kind()), store).await
    }

    /// Releases machine-wide resources: network slots and control groups.
    pub(crate) async fn close(self) {
        self.pool.shutdown().await;
        self.groups.close();
    }
}
