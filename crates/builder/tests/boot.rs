//! The real kernel with the real PID 1, on small disks. The kernel is fetched once per target folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hearth_builder::{Config, Error, GuestPrograms, NAMESERVER, RESOURCES, SUITE, Silent, ensure_kernel};
use hearth_types::Resources;
use hearth_vmm::{AcceleratorChoice, Boot, Driver, Kernel, Machine, Nic, Running};

/// An emulated guest on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

fn config(folder: &Path, mirror: Option<&str>) -> Config {
    let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/hearth-init");
    assert!(init.exists(), "run `cargo xtask guest` first: {} is missing", init.display());
    Config {
        folder: folder.to_owned(),
        // PID 1 as its own daemon: started as anything else, it says so and ends.
        guest: GuestPrograms { init: init.clone(), envd: init },
        suite: SUITE.to_owned(),
        mirror: mirror.map(str::to_owned),
        nameserver: NAMESERVER,
        resources: RESOURCES,
    }
}

async fn kernel() -> Kernel {
    let config = config(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("builder"), None);
    loop {
        match ensure_kernel(&config, &Silent).await {
            Ok(kernel) => return kernel,
            // Another test fetches it.
            Err(Error::Busy(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{}", hearth_stdx::chain(&error)),
        }
    }
}

/// Boots from `disk`; the VM and its folder.
async fn boot(folder: &Path, disk: PathBuf) -> Running {
    let kernel = kernel().await;
    let driver_config = hearth_vmm::Config {
        qemu_program: "qemu-system-x86_64".into(),
        accelerator: AcceleratorChoice::Tcg,
        verdict_file: folder.join("verdict"),
    };
    let driver = Driver::open(&driver_config, &kernel).await.expect("QEMU is installed");
    let machine = Machine {
        folder: folder.to_owned(),
        resources: Resources { vcpus: 1, memory_mib: 256, disk_mib: 64 },
        base: disk,
        overlay: None,
        nic: Nic::User { forwards: Vec::new() },
        namespace: None,
        cgroup: None,
    };
    let boot = Boot { kernel, arguments: Vec::new(), memory: folder.join("memory") };
    driver.boot(&machine, &boot).await.expect("starts")
}

/// Waits until the console's end contains `text`.
async fn says(vm: &mut Running, text: &str) {
    let start = Instant::now();
    loop {
        let console = vm.console().await;
        if console.contains(text) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the console never said `{text}`: {console}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_bare_disk_becomes_the_root_and_its_daemon_is_started_again() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("usr/bin")).expect("creates");
    let disk = folder.path().join("disk");
    let image = Command::new("mkfs.ext4").args(["-q", "-d"]).arg(&tree).arg(&disk).arg("64M").status();
    assert!(image.expect("mkfs.ext4 is installed").success());
    let mut vm = boot(folder.path(), disk).await;
    says(&mut vm, "envd ended (exit status 2), starting it again").await;
    let console = vm.console().await;
    for trouble in ["could not", "cannot go on", "panic"] {
        assert!(!console.contains(trouble), "{console}");
    }
    // The tree has no daemon: the one that ran came with the initramfs.
    vm.kill().await;
}

#[tokio::test]
async fn a_disk_without_a_file_system_ends_in_words_and_power_off() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("writes");
    let mut vm = boot(folder.path(), disk).await;
    tokio::time::timeout(PATIENCE, vm.ended()).await.expect("powers off");
    let console = vm.console().await;
    assert!(console.contains("cannot go on: mounting the root disk /dev/vda"), "{console}");
    vm.kill().await;
}

#[tokio::test]
async fn an_unreachable_mirror_is_told_with_apt_s_words_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = config(folder.path(), Some("http://127.0.0.1:1/nothing"));
    let error = ensure_kernel(&config, &Silent).await.expect_err("nobody listens there");
    assert!(matches!(error, Error::Tool { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("fetching Debian's package lists: apt-get ended") && text.contains("127.0.0.1"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path().join("kernel")).expect("lists").count(), 0);
}
