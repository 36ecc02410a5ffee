//! Assembly of a sandbox in phases, and its release.
//!
//! Each phase owns everything acquired so far and can release it; the next phase takes it by value.
//!
//! ```text
//!   Folder ──> Slotted ──> Restored ──> Reachable ──> Assembled
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_artifact::ArtifactSet;
use hearth_envd_api::{Client, Init};
use hearth_host::cgroup::Group;
use hearth_network::{Attachment, Slot};
use hearth_types::SandboxSpec;
use hearth_types::guest::DAEMON_PORT;
use hearth_vmm::{Machine, Nic, Running, Snapshot};
use http::HeaderName;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connector::{ForwardRequest, GuestConnector};
use crate::state::EndReason;
use crate::{Config, DiskSpace, Error, NodeResources};

const MIB: u64 = 1 << 20;

/// Time without a lack of space after which the next one counts as a new one.
const SPACE_STABLE_AFTER: Duration = Duration::from_secs(10);
/// Limit for a VM that alternates between stopping and running for a lack of space.
///
/// The disk may not show that lack, for example if it is a quota.
const SPACE_RETRY_LIMIT: Duration = Duration::from_secs(60);

/// A sandbox's folder with its overlay.
///
/// It is created first and removed last, because the next daemon finds leftovers of a killed one by it.
struct Folder {
    path: PathBuf,
}

/// A sandbox with a network slot and a control group.
struct Slotted {
    folder: Folder,
    slot: Slot,
    group: Option<Group>,
}

/// A sandbox with a restored VM that runs.
struct Restored {
    slotted: Slotted,
    vm: Running,
}

/// A sandbox whose guest can be connected to.
struct Reachable {
    restored: Restored,
    connector: GuestConnector,
    /// Requests for more forwards; `None` if all ports are directly reachable.
    forwards: Option<mpsc::Receiver<ForwardRequest>>,
}

/// A sandbox whose guest daemon has accepted its identity.
pub(crate) struct Assembled {
    reachable: Reachable,
    pub(crate) envd_version: String,
    /// Client of the guest daemon.
    pub(crate) client: Arc<Client>,
    /// Identity that the guest daemon received.
    pub(crate) init: Init,
}

/// Waits for the team's turn and runs all phases.
///
/// Not cancel safe: cancel `kill` to stop the assembly, which then releases everything.
pub(crate) async fn assemble(
    config: &Config,
    node: &NodeResources,
    spec: &SandboxSpec,
    set: &ArtifactSet,
    kill: &CancellationToken,
) -> Result<Assembled, Error> {
    // Nothing is acquired yet.
    let permit = kill.run_until_cancelled(node.starts.acquire(spec.team_id)).await.ok_or(Error::Killed)?;
    permit.run(run_phases(config, node, spec, set, kill)).await
}

async fn run_phases(
    config: &Config,
    node: &NodeResources,
    spec: &SandboxSpec,
    set: &ArtifactSet,
    kill: &CancellationToken,
) -> Result<Assembled, Error> {
    let folder = Folder::create(config, node, spec, set).await?;
    let slotted = folder.into_slotted(node, spec).await?;
    if kill.is_cancelled() {
        slotted.undo(node).await;
        return Err(Error::Killed);
    }
    let restored = slotted.into_restored(node, set).await?;
    let reachable = restored.into_reachable(node).await?;
    reachable.into_assembled(config, node, spec, kill).await
}

impl Folder {
    async fn create(
        config: &Config,
        node: &NodeResources,
        spec: &SandboxSpec,
        set: &ArtifactSet,
    ) -> Result<Self, Error> {
        let path = config.folder.join(spec.execution_id.to_string());
        fs::create_dir(&path).map_err(|source| Error::File { action: "creating", path: path.clone(), source })?;
        let folder = Self { path };
        let (disk, overlay) = (node.disk.clone(), folder.overlay());
        let disk_bytes = u64::from(set.manifest().resources.disk_mib) * MIB;
        let made = spawn_blocking(move || disk.create_overlay(&overlay, disk_bytes)).await;
        // The closure does not panic; it does not run if the runtime is shutting down.
        match made.unwrap_or(Err(Error::Killed)) {
            Ok(()) => Ok(folder),
            Err(error) => {
                folder.undo(node).await;
                Err(error)
            }
        }
    }

    fn overlay(&self) -> PathBuf {
        self.path.join("overlay.qcow2")
    }

    async fn into_slotted(self, node: &NodeResources, spec: &SandboxSpec) -> Result<Slotted, Error> {
        let slot = match node.network.acquire(spec.internet_access).await {
            Ok(slot) => slot,
            Err(error) => {
                self.undo(node).await;
                return Err(Error::Network(error));
            }
        };
        match node.groups.create(&spec.execution_id.to_string()) {
            Ok(group) => Ok(Slotted { folder: self, slot, group }),
            Err(error) => {
                node.network.release(slot).await;
                self.undo(node).await;
                Err(Error::Cgroup(error))
            }
        }
    }

    async fn undo(self, node: &NodeResources) {
        node.leftovers.remove_folder(self.path).await;
    }
}

impl Slotted {
    async fn into_restored(self, node: &NodeResources, set: &ArtifactSet) -> Result<Restored, Error> {
        match self.restore(node, set).await {
            Ok(vm) => Ok(Restored { slotted: self, vm }),
            Err(error) => {
                self.undo(node).await;
                Err(error)
            }
        }
    }

    async fn restore(&self, node: &NodeResources, set: &ArtifactSet) -> Result<Running, Error> {
        let nic = nic(&self.slot);
        let platform = node.driver.platform(nic.kind());
        if let Some((property, this_node, theirs)) = platform.difference(&set.manifest().platform) {
            return Err(Error::Platform { property, ours: this_node.to_owned(), theirs: theirs.to_owned() });
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
        let snapshot = Snapshot { memory: set.memory(), state: set.state() };
        let paused = node.driver.restore(&machine, &snapshot).await.map_err(Error::Vm)?;
        match paused.resume().await {
            Ok(running) => Ok(running),
            Err((paused, error)) => {
                paused.kill().await;
                Err(Error::Vm(error))
            }
        }
    }

    async fn undo(self, node: &NodeResources) {
        let Self { folder, slot, group } = self;
        if let Some(group) = group {
            node.leftovers.remove_group(group).await;
        }
        node.network.release(slot).await;
        folder.undo(node).await;
    }
}

impl Restored {
    async fn into_reachable(mut self, node: &NodeResources) -> Result<Reachable, Error> {
        if let Some(address) = self.slotted.slot.guest_address() {
            return Ok(Reachable { restored: self, connector: GuestConnector::direct(address), forwards: None });
        }
        match self.vm.forward(DAEMON_PORT).await {
            Ok(host_port) => {
                let (connector, forwards) = GuestConnector::forwarded(DAEMON_PORT, host_port);
                Ok(Reachable { restored: self, connector, forwards: Some(forwards) })
            }
            Err(error) => {
                self.undo(node).await;
                Err(Error::Vm(error))
            }
        }
    }

    async fn undo(self, node: &NodeResources) {
        self.vm.kill().await;
        self.slotted.undo(node).await;
    }
}

impl Reachable {
    async fn into_assembled(
        mut self,
        config: &Config,
        node: &NodeResources,
        spec: &SandboxSpec,
        kill: &CancellationToken,
    ) -> Result<Assembled, Error> {
        // All three arms are cancel safe: the first two only wait, and after the last is dropped the VM is killed.
        let init = identity(config, spec);
        let client = Arc::new(daemon_client(spec, &self.connector));
        let result = tokio::select! {
            biased;
            () = kill.cancelled() => Err(Error::Killed),
            () = self.restored.vm.exited() => Err(Error::VmExited),
            version = client.init(&init, config.init_attempt, config.init_budget) => version.map_err(Error::Guest),
        };
        match result {
            Ok(envd_version) => Ok(Assembled { reachable: self, envd_version, client, init }),
            Err(error) => {
                if matches!(error, Error::Guest(_)) {
                    let console = self.restored.vm.console().await;
                    tracing::warn!(console, "the guest did not become ready");
                }
                self.restored.undo(node).await;
                Err(error)
            }
        }
    }
}

impl Assembled {
    /// Returns the connector to the guest's ports.
    pub(crate) fn connector(&self) -> GuestConnector {
        self.reachable.connector.clone()
    }

    /// Waits until the VM exits or must be killed; meanwhile opens requested forwards and waits for disk space.
    ///
    /// The CPUs are stopped while disk space is lacking. Not cancel safe while a forward is opened or the CPUs are
    /// stopped: the caller drops it only to release the sandbox.
    pub(crate) async fn ended(&mut self, disk: &DiskSpace) -> EndReason {
        let process = self.reachable.restored.vm.process().clone();
        let overlay = self.reachable.restored.slotted.folder.overlay();
        // Start of the lack of space, and last time at which the CPUs were started again.
        let mut lack: Option<(Instant, Instant)> = None;
        loop {
            let Reachable { restored, forwards, .. } = &mut self.reachable;
            tokio::select! {
                () = process.wait() => return EndReason::VmExited,
                request = next(forwards) => {
                    let result = restored.vm.forward(request.guest_port).await;
                    // The requester may have been dropped.
                    let _ = request.reply.send(result);
                    continue;
                }
                () = disk.exceeds_share(&overlay) => {
                    if let Err(error) = restored.vm.stop_cpus().await {
                        tracing::warn!(%error, "could not stop the CPUs of a sandbox above its share of a full disk");
                        return EndReason::DiskFull;
                    }
                }
                () = restored.vm.out_of_space() => {}
            }
            tracing::warn!("the sandbox waits for disk space");
            let since = match lack {
                Some((since, started)) if started.elapsed() < SPACE_STABLE_AFTER => since,
                _ => Instant::now(),
            };
            let has_space = tokio::select! {
                () = process.wait() => return EndReason::VmExited,
                has_space = disk.wait_for_space(&overlay) => has_space,
            };
            let is_over_limit = since.elapsed() > SPACE_RETRY_LIMIT && lack.is_some();
            if !has_space || is_over_limit || restored.vm.start_cpus().await.is_err() {
                return EndReason::DiskFull;
            }
            tracing::info!("the sandbox continues, disk space is available");
            lack = Some((since, Instant::now()));
        }
    }

    /// Releases everything, in reverse order of acquisition.
    pub(crate) async fn release(self, node: &NodeResources) {
        self.reachable.restored.undo(node).await;
    }
}

/// Returns the next request for a forward. Cancel safe; never ready if there is no channel.
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

/// Returns the network device's backend for a slot.
fn nic(slot: &Slot) -> Nic {
    match slot.attachment() {
        Attachment::Tap { name } => Nic::Tap { name: name.to_owned() },
        Attachment::User => Nic::User { forwards: Vec::new() },
    }
}

/// Creates a client of the guest daemon.
fn daemon_client(spec: &SandboxSpec, connector: &GuestConnector) -> Client {
    let connector = connector.clone();
    let dial = move || -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<tokio::net::TcpStream>> + Send>> {
        let connector = connector.clone();
        Box::pin(async move { connector.connect(DAEMON_PORT).await })
    };
    // Hearth makes the tokens, of characters that are valid in a header.
    let token = spec.envd_access_token.as_ref().and_then(|token| token.expose().parse().ok());
    let headers = token.into_iter().map(|token| (HeaderName::from_static("x-access-token"), token));
    Client::new(Box::new(dial), &format!("localhost:{DAEMON_PORT}"), headers.collect())
}

/// Identity that the guest daemon receives.
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

/// Returns random bytes for the guest's random pool, in hex: 256 bits, the size of the pool.
///
/// # Panics
/// If the operating system has no random source (`getrandom(2)` fails). Restored guests could then have
/// equal random numbers.
pub(crate) fn random_seed() -> String {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    hex::encode(bytes)
}
