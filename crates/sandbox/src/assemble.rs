//! Putting a sandbox together, phase by phase, and taking it apart.
//!
//! Each phase holds everything acquired so far and knows how to give it back; the next phase takes the one before by value.
//!
//! ```text
//!   Folder ──> Slotted ──> Restored ──> Reachable ──> Assembled
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_artifact::ArtifactSet;
use hearth_envd_api::{Client, Init, PORT};
use hearth_host::cgroup::Group;
use hearth_network::{Attachment, Slot};
use hearth_types::SandboxSpec;
use hearth_vmm::{Machine, Nic, Running, Saved};
use http::HeaderName;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::reach::{ForwardRequest, Reach};
use crate::state::EndReason;
use crate::{Config, DiskRoom, Error, Parts};

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// How long a VM has to run before a lack of space counts as a new one.
const SPACE_LASTS: Duration = Duration::from_secs(10);
/// How long a VM may stop and go on by turns for a lack of space that the disk does not show, such as a quota.
const SPACE_PATIENCE: Duration = Duration::from_secs(60);

/// A sandbox's folder, with its overlay. The first thing made and the last removed: what a killed daemon leaves is found by it.
struct Folder {
    path: PathBuf,
}

/// With its place on the network and in the control groups.
struct Slotted {
    folder: Folder,
    slot: Slot,
    group: Option<Group>,
}

/// With a VM that was restored and runs.
struct Restored {
    slotted: Slotted,
    vm: Running,
}

/// With a way to its guest.
struct Reachable {
    restored: Restored,
    reach: Reach,
    /// Requests for more ways, where there is not one to all ports.
    forwards: Option<mpsc::Receiver<ForwardRequest>>,
}

/// A sandbox whose guest answers.
pub(crate) struct Assembled {
    reachable: Reachable,
    pub(crate) envd_version: String,
    /// Its guest's daemon.
    pub(crate) client: Arc<Client>,
    /// What its guest was told.
    pub(crate) init: Init,
}

/// Waits for its turn and goes through all phases. Not cancel safe: end it by `kill`, upon which everything is undone.
pub(crate) async fn assemble(
    config: &Config,
    parts: &Parts,
    spec: &SandboxSpec,
    set: &ArtifactSet,
    kill: &CancellationToken,
) -> Result<Assembled, Error> {
    // Nothing is held yet.
    let permit = kill.run_until_cancelled(parts.starts.acquire(spec.team_id)).await.ok_or(Error::Killed)?;
    permit.run(go_through(config, parts, spec, set, kill)).await
}

async fn go_through(
    config: &Config,
    parts: &Parts,
    spec: &SandboxSpec,
    set: &ArtifactSet,
    kill: &CancellationToken,
) -> Result<Assembled, Error> {
    let folder = Folder::create(config, parts, spec, set).await?;
    let slotted = folder.into_slotted(parts, spec).await?;
    if kill.is_cancelled() {
        slotted.undo(parts).await;
        return Err(Error::Killed);
    }
    let restored = slotted.into_restored(parts, set).await?;
    let reachable = restored.into_reachable(parts).await?;
    reachable.into_assembled(config, parts, spec, kill).await
}

impl Folder {
    async fn create(config: &Config, parts: &Parts, spec: &SandboxSpec, set: &ArtifactSet) -> Result<Self, Error> {
        let path = config.folder.join(spec.execution_id.to_string());
        fs::create_dir(&path).map_err(|source| Error::File { action: "creating", path: path.clone(), source })?;
        let folder = Self { path };
        let (disk, overlay) = (parts.disk.clone(), folder.overlay());
        let disk_bytes = u64::from(set.manifest().resources.disk_mib) * MIB;
        let made = spawn_blocking(move || disk.create_overlay(&overlay, disk_bytes)).await;
        // The closure does not panic; it is not run when the runtime stops.
        match made.unwrap_or(Err(Error::Killed)) {
            Ok(()) => Ok(folder),
            Err(error) => {
                folder.undo(parts).await;
                Err(error)
            }
        }
    }

    fn overlay(&self) -> PathBuf {
        self.path.join("overlay.qcow2")
    }

    async fn into_slotted(self, parts: &Parts, spec: &SandboxSpec) -> Result<Slotted, Error> {
        let slot = match parts.network.acquire(spec.internet_access).await {
            Ok(slot) => slot,
            Err(error) => {
                self.undo(parts).await;
                return Err(Error::Network(error));
            }
        };
        match parts.groups.create(&spec.execution_id.to_string()) {
            Ok(group) => Ok(Slotted { folder: self, slot, group }),
            Err(error) => {
                parts.network.release(slot).await;
                self.undo(parts).await;
                Err(Error::Cgroup(error))
            }
        }
    }

    async fn undo(self, parts: &Parts) {
        parts.remains.remove_folder(self.path).await;
    }
}

impl Slotted {
    async fn into_restored(self, parts: &Parts, set: &ArtifactSet) -> Result<Restored, Error> {
        match self.restore(parts, set).await {
            Ok(vm) => Ok(Restored { slotted: self, vm }),
            Err(error) => {
                self.undo(parts).await;
                Err(error)
            }
        }
    }

    async fn restore(&self, parts: &Parts, set: &ArtifactSet) -> Result<Running, Error> {
        let nic = nic(&self.slot);
        let platform = parts.driver.platform(nic.kind());
        if let Some((property, ours, theirs)) = platform.difference(&set.manifest().platform) {
            return Err(Error::Platform { property, ours: ours.to_owned(), theirs: theirs.to_owned() });
        }
        let resources = set.manifest().resources;
        let machine = Machine {
            folder: self.folder.path.clone(),
            resources,
            base: set.rootfs(),
            overlay: Some(self.folder.overlay()),
            nic,
            namespace: self.slot.namespace().map(Path::to_owned),
            cgroup: self.group.clone(),
        };
        let saved = Saved { memory: set.memory(), state: set.state() };
        let paused = parts.driver.restore(&machine, &saved).await.map_err(Error::Vm)?;
        match paused.resume().await {
            Ok(running) => Ok(running),
            Err((paused, error)) => {
                paused.kill().await;
                Err(Error::Vm(error))
            }
        }
    }

    async fn undo(self, parts: &Parts) {
        let Self { folder, slot, group } = self;
        if let Some(group) = group {
            parts.remains.remove_group(group).await;
        }
        parts.network.release(slot).await;
        folder.undo(parts).await;
    }
}

impl Restored {
    async fn into_reachable(mut self, parts: &Parts) -> Result<Reachable, Error> {
        if let Some(address) = self.slotted.slot.guest_address() {
            return Ok(Reachable { restored: self, reach: Reach::direct(address), forwards: None });
        }
        match self.vm.forward(PORT).await {
            Ok(host_port) => {
                let (reach, forwards) = Reach::forwarded(PORT, host_port);
                Ok(Reachable { restored: self, reach, forwards: Some(forwards) })
            }
            Err(error) => {
                self.undo(parts).await;
                Err(Error::Vm(error))
            }
        }
    }

    async fn undo(self, parts: &Parts) {
        self.vm.kill().await;
        self.slotted.undo(parts).await;
    }
}

impl Reachable {
    async fn into_assembled(
        mut self,
        config: &Config,
        parts: &Parts,
        spec: &SandboxSpec,
        kill: &CancellationToken,
    ) -> Result<Assembled, Error> {
        // All three arms are cancel safe: the first two only wait, the last only talks to a guest that is thrown away.
        let init = identity(config, spec);
        let client = Arc::new(daemon(spec, &self.reach));
        let result = tokio::select! {
            biased;
            () = kill.cancelled() => Err(Error::Killed),
            () = self.restored.vm.ended() => Err(Error::VmEnded),
            version = client.init(&init, config.init_attempt, config.init_budget) => version.map_err(Error::Guest),
        };
        match result {
            Ok(envd_version) => Ok(Assembled { reachable: self, envd_version, client, init }),
            Err(error) => {
                if matches!(error, Error::Guest(_)) {
                    let console = self.restored.vm.console().await;
                    tracing::warn!(console, "the guest did not become ready");
                }
                self.restored.undo(parts).await;
                Err(error)
            }
        }
    }
}

impl Assembled {
    /// How the guest is reached.
    pub(crate) fn reach(&self) -> Reach {
        self.reachable.reach.clone()
    }

    /// Waits until the VM ends by itself or has to end, and meanwhile opens the ways to its guest that are asked for and holds
    /// the VM while the disk has no room for it. Not cancel safe while a way is being opened or the VM is held: the caller
    /// drops it only to release the sandbox.
    pub(crate) async fn ended(&mut self, disk: &DiskRoom) -> EndReason {
        let process = self.reachable.restored.vm.process().clone();
        let overlay = self.reachable.restored.slotted.folder.overlay();
        // Since when the VM lacks space, and when it went on last.
        let mut lack: Option<(Instant, Instant)> = None;
        loop {
            let Reachable { restored, forwards, .. } = &mut self.reachable;
            tokio::select! {
                () = process.wait() => return EndReason::VmEnded,
                request = next(forwards) => {
                    let result = restored.vm.forward(request.guest_port).await;
                    // Whoever asked may have left.
                    let _ = request.reply.send(result);
                    continue;
                }
                () = disk.over_share(&overlay) => {
                    if let Err(error) = restored.vm.hold().await {
                        tracing::warn!(%error, "could not hold a sandbox that takes more than its share of a full disk");
                        return EndReason::DiskFull;
                    }
                }
                () = restored.vm.out_of_space() => {}
            }
            tracing::warn!("the sandbox waits for disk space");
            let since = match lack {
                Some((since, went_on)) if went_on.elapsed() < SPACE_LASTS => since,
                _ => Instant::now(),
            };
            let has_room = tokio::select! {
                () = process.wait() => return EndReason::VmEnded,
                has_room = disk.room(&overlay) => has_room,
            };
            let is_in_vain = since.elapsed() > SPACE_PATIENCE && lack.is_some();
            if !has_room || is_in_vain || restored.vm.go_on().await.is_err() {
                return EndReason::DiskFull;
            }
            tracing::info!("the sandbox goes on, there is disk space again");
            lack = Some((since, Instant::now()));
        }
    }

    /// Gives everything back, in reverse order of acquisition.
    pub(crate) async fn release(self, parts: &Parts) {
        self.reachable.restored.undo(parts).await;
    }
}

/// The next request for a forward. Cancel safe; never ready where there are none.
async fn next(forwards: &mut Option<mpsc::Receiver<ForwardRequest>>) -> ForwardRequest {
    let request = match forwards {
        Some(forwards) => forwards.recv().await,
        None => None,
    };
    match request {
        Some(request) => request,
        None => std::future::pending().await,
    }
}

/// The network device's backend that a slot asks for.
fn nic(slot: &Slot) -> Nic {
    match slot.attachment() {
        Attachment::Tap { name } => Nic::Tap { name: name.to_owned() },
        Attachment::User => Nic::User { forwards: Vec::new() },
    }
}

/// The guest's daemon, as its host talks to it.
fn daemon(spec: &SandboxSpec, reach: &Reach) -> Client {
    let reach = reach.clone();
    let dial = move || -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<tokio::net::TcpStream>> + Send>> {
        let reach = reach.clone();
        Box::pin(async move { reach.dial(PORT).await })
    };
    // Tokens are made by us, of characters that fit into a header.
    let token = spec.envd_access_token.as_ref().and_then(|token| token.expose().parse().ok());
    let headers = token.into_iter().map(|token| (HeaderName::from_static("x-access-token"), token));
    Client::new(Box::new(dial), &format!("localhost:{PORT}"), headers.collect())
}

/// What a guest is told about itself.
fn identity(config: &Config, spec: &SandboxSpec) -> Init {
    Init {
        access_token: spec.envd_access_token.as_ref().map(|token| token.expose().to_owned()),
        env_vars: spec.env_vars.clone(),
        sandbox_id: Some(spec.sandbox_id.to_string()),
        template_id: Some(spec.template_id.to_string()),
        random_seed: Some(random_seed()),
        log_output: config.logs.with_output,
        ..Init::default()
    }
}

/// Bytes for the guest's random pool: as many as a pool of 256 bits holds.
///
/// # Panics
/// If the operating system has no random source (`getrandom(2)` fails), in which case no guest could be told apart.
pub(crate) fn random_seed() -> String {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    hex::encode(bytes)
}
