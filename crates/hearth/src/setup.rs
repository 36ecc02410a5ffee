//! What everything else stands on: guest kernel, driver, network, artifacts and the base template.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hearth_artifact::Cache;
use hearth_builder::{Base, Config as BuilderConfig, ensure_base, ensure_kernel};
use hearth_host::cgroup::Groups;
use hearth_host::lock::{Error as LockError, Lock};
use hearth_host::process::find_program;
use hearth_network::{Mode, Pool};
use hearth_sandbox::{DiskRoom, Parts, Remains, StartQueue};
use hearth_store::{Alias, NewBuild, Store};
use hearth_types::Tag;
use hearth_vmm::{AcceleratorChoice, Driver, Verdict};

use crate::guest_programs;
use crate::layout::Layout;
use crate::options::{Accelerator, NetworkMode, Settings};
use crate::progress::Display;

/// The template that SDKs ask for when nobody names one.
const BASE: &str = "base";

/// The parts that roles are started on.
pub(crate) struct Foundation {
    driver: Driver,
    pool: Pool,
    groups: Groups,
    cache: Cache,
    base: Base,
}

/// What a daemon writes into its lock, before its number.
const OWNER: &str = "hearth, process ";

/// The process that works in the data directory.
pub(crate) fn daemon(layout: &Layout) -> Result<Option<u32>> {
    if !layout.lock().exists() {
        return Ok(None);
    }
    match Lock::take(&layout.lock(), "") {
        Ok(_) => Ok(None),
        Err(LockError::Held { owner, .. }) => {
            let number = owner.strip_prefix(OWNER).and_then(|number| number.parse().ok());
            number.map(Some).with_context(|| format!("the lock of the data directory is held by `{owner}`"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes the data directory for this process.
pub(crate) fn lock(layout: &Layout) -> Result<Lock> {
    let owner = format!("{OWNER}{}", std::process::id());
    Lock::take(&layout.lock(), &owner)
        .context("another hearth works in this data directory: stop it, or choose another with --data-dir")
}

/// `hearth setup`: makes what is missing, and goes.
pub(crate) async fn run(settings: &Settings, force: bool) -> Result<()> {
    let layout = Layout::new(&settings.data_dir);
    layout.ensure()?;
    let _lock = lock(&layout)?;
    let foundation = prepare(settings, &layout, force).await?;
    let manifest = foundation.base.set.manifest().clone();
    foundation.close().await;
    println!("The base template is ready: build {}, kernel {}.", manifest.build_id, manifest.kernel_version);
    Ok(())
}

/// Makes sure of everything. Fast when nothing is missing. Cancel safe: what is half done is swept by the next run, child
/// processes end with the future.
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
        nameserver: hearth_builder::NAMESERVER,
        resources: hearth_builder::RESOURCES,
    };
    let display = Display::new();
    let kernel = ensure_kernel(&builder, &display).await?;
    let driver = Driver::open(&driver_config(settings, layout), &kernel).await?;
    let cache = Cache::open(layout.artifacts())?;
    let pool = Pool::open(network_config(settings)).await?;
    let base = match ensure_base(&builder, &driver, &pool, &cache, &kernel, &display).await {
        Ok(base) => base,
        Err(error) => {
            pool.shutdown().await;
            return Err(error.into());
        }
    };
    let groups = Groups::open(&group_name(&settings.data_dir));
    Ok(Foundation { driver, pool, groups, cache, base })
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
        // A path that was looked up once is the same in every namespace and environment.
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

/// The control groups of a data directory: its path with dashes.
fn group_name(data_dir: &Path) -> String {
    data_dir.to_string_lossy().trim_matches('/').replace('/', "-")
}

impl Foundation {
    /// What sandboxes are assembled from.
    pub(crate) fn parts(&self, disk: DiskRoom) -> Parts {
        Parts {
            network: self.pool.clone(),
            driver: self.driver.clone(),
            groups: self.groups.clone(),
            disk,
            starts: StartQueue::of_this_machine(),
            remains: Remains::default(),
        }
    }

    /// The disk of a sandbox of the base template.
    pub(crate) fn disk_mib(&self) -> u32 {
        self.base.set.manifest().resources.disk_mib
    }

    pub(crate) fn cache(&self) -> Cache {
        self.cache.clone()
    }

    pub(crate) fn verdict(&self) -> &Verdict {
        self.driver.verdict()
    }

    /// How guests are connected, for people.
    pub(crate) fn network(&self) -> &'static str {
        if self.pool.has_namespaces() {
            "a namespace for each sandbox"
        } else {
            "user mode (no root): guests can reach what this user can reach; `hearth doctor` says more"
        }
    }

    /// Makes `base` mean the build that is here, and removes older ones.
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
            self.cache.remove(*build_id)?;
        }
        Ok(())
    }

    /// Gives back what is held machine-wide.
    pub(crate) async fn close(self) {
        self.pool.shutdown().await;
        self.groups.close();
    }
}
