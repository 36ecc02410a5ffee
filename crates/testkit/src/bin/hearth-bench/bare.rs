//! The lower bound: VMs restored by the driver alone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_artifact::{ArtifactSet, ArtifactStore, create_overlay};
use hearth_envd_api::{Client, Init, Output};
use hearth_network::{Attachment, Config, Mode, Pool, Slot};
use hearth_testkit::PreparedDataDir;
use hearth_types::guest::DAEMON_PORT;
use hearth_vmm::{AcceleratorChoice, Driver, Kernel, Machine, Nic, Running, Snapshot};
use http::HeaderMap;
use tokio::net::TcpStream;

/// Slots prepared in advance, enough for all concurrent restores. The instance prepares slots as well.
const SLOTS: usize = 20;
const ATTEMPT: Duration = Duration::from_secs(2);
const BUDGET: Duration = Duration::from_secs(60);

/// The parts that a restore needs: driver, network slots and artifacts.
pub(crate) struct BareDriver {
    driver: Driver,
    pool: Pool,
    set: ArtifactSet,
    folder: tempfile::TempDir,
}

/// Restored VM.
pub(crate) struct Vm {
    running: Running,
    slot: Slot,
    folder: PathBuf,
    address: IpAddr,
}

impl BareDriver {
    /// Opens the driver for the newest build of a template.
    pub(crate) async fn open(prepared: &PreparedDataDir, template: &str) -> Result<Self> {
        let file = prepared.folder().join(format!("guest/{template}-template"));
        let id = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let cache = ArtifactStore::open_read_only(prepared.folder().join("artifacts"));
        let set = cache
            .list()?
            .into_iter()
            .filter(|set| set.manifest().template_id.as_str() == id.trim())
            .max_by_key(|set| set.manifest().created_at)
            .with_context(|| format!("the template {template} is missing"))?;
        let folder = tempfile::Builder::new().prefix("hearth-bench-").tempdir()?;
        let config = hearth_vmm::Config {
            qemu_program: "qemu-system-x86_64".into(),
            accelerator: match set.manifest().platform.accelerator.as_str() {
                "kvm" => AcceleratorChoice::Kvm,
                _ => AcceleratorChoice::Tcg,
            },
            verdict_file: folder.path().join("accelerator.json"),
        };
        // Nothing is booted, so the kernel has no files. The accelerator is the one that the template was built with.
        let kernel =
            Kernel { version: set.manifest().kernel_version.clone(), image: PathBuf::new(), initramfs: PathBuf::new() };
        let driver = Driver::open(&config, &kernel).await?;
        let pool = Pool::open(Config {
            mode: Mode::Namespaces,
            owner: folder.path().display().to_string(),
            block: Ipv4Addr::new(10, 11, 0, 0),
            prepared_target: SLOTS,
            guests_max: SLOTS,
            egress_denied: Vec::new(),
        })
        .await?;
        Ok(Self { driver, pool, set, folder })
    }

    /// Waits until all slots are prepared, so that their preparation is not measured.
    pub(crate) async fn wait_for_slots(&self) {
        while self.pool.ready() < SLOTS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Restores a VM and returns it with the time until its first reply. `number` must be unique.
    pub(crate) async fn restore(&self, number: usize) -> Result<(Vm, Duration)> {
        let start = Instant::now();
        let folder = self.folder.path().join(number.to_string());
        std::fs::create_dir(&folder)?;
        let slot = self.pool.acquire(true).await?;
        let address = slot.guest_address().context("the slot has no address")?;
        let overlay = folder.join("overlay.qcow2");
        let resources = self.set.manifest().resources;
        create_overlay(&overlay, u64::from(resources.disk_mib) << 20)?;
        let Attachment::Tap { name } = slot.attachment() else {
            unreachable!("the pool is in the mode for namespaces")
        };
        let machine = Machine {
            folder: folder.clone(),
            resources,
            base: self.set.rootfs(),
            overlay: Some(overlay),
            nic: Nic::Tap { name: name.to_owned() },
            namespace: slot.namespace().map(Path::to_owned),
            cgroup: None,
        };
        let saved = Snapshot { memory: self.set.memory(), state: self.set.state() };
        let paused = self.driver.restore(&machine, &saved).await?;
        let running = paused.resume().await.map_err(|(_, error)| error)?;
        let vm = Vm { running, slot, folder, address };
        vm.client().init(&Init::default(), ATTEMPT, BUDGET).await?;
        Ok((vm, start.elapsed()))
    }

    /// Kills a VM and releases its slot and its folder.
    pub(crate) async fn discard(&self, vm: Vm) {
        vm.running.kill().await;
        self.pool.release(vm.slot).await;
        let _ = std::fs::remove_dir_all(vm.folder);
    }

    pub(crate) async fn close(self) {
        self.pool.shutdown().await;
    }
}

impl Vm {
    fn client(&self) -> Client {
        let address = SocketAddr::new(self.address, DAEMON_PORT);
        let dial = move || -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> {
            Box::pin(async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            })
        };
        Client::new(Box::new(dial), "localhost", HeaderMap::new())
    }

    /// Runs a command and waits for its exit.
    ///
    /// # Errors
    /// Fails if the exit code is not zero.
    pub(crate) async fn run(&self, command: &str) -> Result<()> {
        self.output(command).await.map(drop)
    }

    /// Runs a command and returns its standard output.
    ///
    /// # Errors
    /// Fails if the exit code is not zero.
    pub(crate) async fn output(&self, command: &str) -> Result<String> {
        let Output { stdout, stderr, exit_code } = self.client().run(command).await?;
        ensure!(exit_code == 0, "{command} exited with {exit_code}: {}", String::from_utf8_lossy(&stderr));
        Ok(String::from_utf8(stdout)?)
    }

    /// Returns the address of the guest, for all of its ports.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the URL of the guest daemon, for transfers.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, DAEMON_PORT))
    }
}
