//! The VM in which a template is prepared.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hearth_artifact::Draft;
use hearth_envd_api::{Client, Init};
use hearth_host::process::Process;
use hearth_network::{Attachment, Slot};
use hearth_types::Resources;
use hearth_types::guest::DAEMON_PORT;
use hearth_vmm::{Boot, Driver, Kernel, Machine, Nic, Running};
use http::HeaderMap;
use tokio::net::TcpStream;

use crate::Error;

/// Limit of one attempt to reach a booting guest, which rejects or replies immediately, or is not up yet.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Limit of one command. The slowest takes 30 s in an emulated guest on a busy host.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);
/// Limit until a service of the template is ready. An emulated guest on a busy host imports big packages for minutes.
const READY_LIMIT: Duration = Duration::from_secs(600);
/// Maximum part of a failed command's output that an error quotes.
const OUTPUT_CHARS: usize = 1000;

/// Last commands: they write everything to the disk that is cached in the snapshot's memory.
pub(super) const PREPARATION: &[&str] = &["sync"];

/// Returns the network device's backend for a slot.
pub(super) fn nic(slot: &Slot) -> Nic {
    match slot.attachment() {
        Attachment::Tap { name } => Nic::Tap { name: name.to_owned() },
        Attachment::User => Nic::User { forwards: Vec::new() },
    }
}

/// A running template VM.
pub(super) struct Guest {
    vm: Running,
    client: Client,
    _guard: KillOnDrop,
}

/// Kills the VMM on drop. VMMs outlive their parent, and this one must not outlive a cancelled build.
struct KillOnDrop(Process);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // If the build finished, the VMM has exited already.
        let _ = self.0.kill();
    }
}

impl Guest {
    /// Boots the draft's disk, with the draft's memory file as guest memory. Cancel safe.
    pub(super) async fn boot(
        driver: &Driver,
        kernel: &Kernel,
        resources: Resources,
        folder: &Path,
        draft: &Draft,
        slot: &Slot,
    ) -> Result<Self, Error> {
        let machine = Machine {
            folder: folder.to_owned(),
            resources,
            base: draft.rootfs(),
            overlay: None,
            nic: nic(slot),
            namespace: slot.namespace().map(Path::to_owned),
            cgroup: None,
        };
        let boot = Boot { kernel: kernel.clone(), arguments: Vec::new(), memory: draft.memory() };
        let error = |action| move |source| Error::Vm { action, source };
        let mut vm = driver.boot(&machine, &boot).await.map_err(error("starting the template's VM"))?;
        let guard = KillOnDrop(vm.process().clone());
        let address = match slot.guest_address() {
            Some(address) => SocketAddr::new(address, DAEMON_PORT),
            None => {
                let port = vm.forward(DAEMON_PORT).await.map_err(error("reaching the template's VM"))?;
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
            }
        };
        let dial = Box::new(move || -> std::pin::Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> {
            Box::pin(TcpStream::connect(address))
        });
        let client = Client::new(dial, &address.to_string(), HeaderMap::new());
        Ok(Self { vm, client, _guard: guard })
    }

    /// Waits for the guest daemon and initializes it; returns its version. Cancel safe.
    pub(super) async fn initialize(&mut self, init: &Init, limit: Duration) -> Result<String, Error> {
        let action = "waiting for the guest daemon";
        let result = tokio::select! {
            () = self.vm.exited() => None,
            result = self.client.init(init, ATTEMPT, limit) => Some(result),
        };
        match result {
            Some(Ok(version)) => Ok(version),
            Some(Err(source)) => Err(Error::Guest { action, console: self.vm.console().await, source }),
            None => Err(self.exit_error(action).await),
        }
    }

    /// Writes the ids of template and build to `/.e2b`, for programs in the guest.
    pub(super) async fn write_ids(&mut self, template_id: &str, build_id: &str) -> Result<(), Error> {
        let text = format!("ENV_ID={template_id}\\nTEMPLATE_ID={template_id}\\nBUILD_ID={build_id}\\n");
        self.execute("marking the template", &format!("printf '{text}' | sudo tee /.e2b > /dev/null")).await
    }

    /// Runs a command and fails if it exits with an error. Cancel safe: the command then continues in the guest.
    pub(super) async fn run(&mut self, command: &str) -> Result<(), Error> {
        self.execute(command, command).await
    }

    /// Waits until a URL answers in the guest. Cancel safe.
    pub(super) async fn wait_until_ready(&mut self, url: &str) -> Result<(), Error> {
        // One process that retries: starting one is slow in an emulated guest.
        let command = format!(
            "curl --silent --fail --output /dev/null --max-time 60 --retry 1000000 --retry-delay 1 --retry-all-errors '{url}'"
        );
        match self.execute_within(READY_LIMIT, "waiting for the template's services", &command).await {
            Err(Error::Command { .. } | Error::Guest { source: hearth_envd_api::Error::NoReply { .. }, .. }) => {
                let console = self.vm.console().await;
                Err(Error::NotReady { url: url.to_owned(), limit: READY_LIMIT, console })
            }
            result => result,
        }
    }

    async fn execute(&mut self, name: &str, command: &str) -> Result<(), Error> {
        self.execute_within(COMMAND_LIMIT, name, command).await
    }

    async fn execute_within(&mut self, limit: Duration, name: &str, command: &str) -> Result<(), Error> {
        let action = "running a command";
        let output = tokio::select! {
            () = self.vm.exited() => None,
            output = tokio::time::timeout(limit, self.client.run(command)) => Some(output),
        };
        let output = match output {
            Some(Ok(Ok(output))) => output,
            Some(Ok(Err(source))) => {
                return Err(Error::Guest { action, console: self.vm.console().await, source });
            }
            Some(Err(_)) => {
                let source = hearth_envd_api::Error::NoReply { budget: limit };
                return Err(Error::Guest { action, console: self.vm.console().await, source });
            }
            None => return Err(self.exit_error(action).await),
        };
        if output.exit_code == 0 {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let skipped = text.chars().count().saturating_sub(OUTPUT_CHARS);
        Err(Error::Command {
            command: name.to_owned(),
            exit_code: output.exit_code,
            output: text.chars().skip(skipped).collect(),
        })
    }

    async fn exit_error(&mut self, action: &'static str) -> Error {
        Error::VmExited { action, console: self.vm.console().await }
    }

    /// Stops the VM, writes its state and kills it. Its memory file is then the memory image.
    pub(super) async fn save(self, state: &Path) -> Result<(), Error> {
        let mut paused = match self.vm.pause().await {
            Ok(paused) => paused,
            Err((vm, source)) => {
                vm.kill().await;
                return Err(Error::Vm { action: "stopping the template's VM", source });
            }
        };
        let saved = paused.save_state(state).await;
        paused.kill().await;
        saved.map_err(|source| Error::Vm { action: "saving the template's VM", source })
    }

    /// Kills the VMM and waits until it has exited.
    pub(super) async fn kill(self) {
        self.vm.kill().await;
    }
}
