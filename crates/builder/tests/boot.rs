//! Boots of the real kernel with the real PID 1, on small disks. The kernel is fetched once per target folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hearth_builder::{Config, Error, GuestPrograms, NAMESERVER, NoProgress, SUITE, ensure_kernel};
use hearth_types::Resources;
use hearth_vmm::{AcceleratorChoice, Boot, Driver, Kernel, Machine, Nic, Running};

/// An emulated guest on a busy machine is slow.
const LIMIT: Duration = Duration::from_secs(120);

fn config(folder: &Path, mirror: Option<&str>) -> Config {
    let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/hearth-init");
    assert!(init.exists(), "run `cargo xtask guest` first: {} is missing", init.display());
    Config {
        folder: folder.to_owned(),
        // PID 1 in place of the other programs: if it does not run as PID 1, it prints a message and exits.
        guest: GuestPrograms { init: init.clone(), envd: init.clone(), interpreter: Some(init) },
        suite: SUITE.to_owned(),
        mirror: mirror.map(str::to_owned),
        variables: Default::default(),
        nameserver: NAMESERVER,
    }
}

async fn kernel() -> Kernel {
    let config = config(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("builder"), None);
    loop {
        match ensure_kernel(&config, &NoProgress).await {
            Ok(kernel) => return kernel,
            // Another test is fetching it.
            Err(Error::Busy(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{}", hearth_stdx::chain(&error)),
        }
    }
}

/// Boots from `disk`.
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

/// Makes a disk whose tree declares services and is otherwise nearly empty.
fn disk(folder: &Path, services: &[(&str, &str)]) -> PathBuf {
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("usr/bin")).expect("creates");
    for (name, declaration) in services {
        let path = tree.join("etc/hearth/services").join(name);
        std::fs::create_dir_all(path.parent().expect("below the tree")).expect("creates");
        std::fs::write(path, declaration).expect("writes");
    }
    let disk = folder.join("disk");
    let image = Command::new("mkfs.ext4").args(["-q", "-d"]).arg(&tree).arg(&disk).arg("64M").status();
    assert!(image.expect("mkfs.ext4 is installed").success());
    disk
}

/// Waits until the console contained `text` at `count` different times.
async fn wait_for_console(vm: &mut Running, text: &str, count: usize) {
    let start = Instant::now();
    let mut seen = 0;
    let mut before = 0;
    loop {
        let console = vm.console().await;
        // Only the end of the console is returned, so old occurrences disappear.
        let now = console.matches(text).count();
        seen += now.saturating_sub(before);
        before = now;
        if seen >= count {
            return;
        }
        assert!(start.elapsed() < LIMIT, "the console contained `{text}` {seen} times: {console}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_nearly_empty_disk_becomes_the_root_and_the_daemon_is_restarted() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let disk = disk(folder.path(), &[]);
    let mut vm = boot(folder.path(), disk).await;
    wait_for_console(&mut vm, "envd ended (exit status 2), starting it again", 1).await;
    let console = vm.console().await;
    for trouble in ["could not", "cannot go on", "panic"] {
        assert!(!console.contains(trouble), "{console}");
    }
    // The tree contains no daemon: the one that ran is from the initramfs.
    vm.kill().await;
}

/// Services exit right away: one because its program is PID 1's, the other because its program does not exist.
#[tokio::test]
async fn services_are_restarted_and_a_missing_program_does_not_end_the_guest() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let services = [("interpreter", "/usr/bin/hearth-interpreter --option\n"), ("missing", "/usr/bin/missing\n")];
    let disk = disk(folder.path(), &services);
    let mut vm = boot(folder.path(), disk).await;
    // The tree contains no interpreter: the one that runs is from the initramfs.
    wait_for_console(&mut vm, "interpreter ended (exit status 2), starting it again", 2).await;
    wait_for_console(&mut vm, "missing ended (exit status 127), starting it again", 2).await;
    wait_for_console(&mut vm, "a service does not start: executing /usr/bin/missing: No such file", 2).await;
    let console = vm.console().await;
    for trouble in ["could not", "cannot go on", "panic", "power off"] {
        assert!(!console.contains(trouble), "{console}");
    }
    vm.kill().await;
}

#[tokio::test]
async fn a_disk_without_a_file_system_prints_an_error_and_powers_off() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("writes");
    let mut vm = boot(folder.path(), disk).await;
    tokio::time::timeout(LIMIT, vm.exited()).await.expect("powers off");
    let console = vm.console().await;
    assert!(console.contains("cannot go on: mounting the root disk /dev/vda"), "{console}");
    vm.kill().await;
}

#[tokio::test]
async fn an_unreachable_mirror_is_reported_with_apt_s_message_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = config(folder.path(), Some("http://127.0.0.1:1/nothing"));
    let error = ensure_kernel(&config, &NoProgress).await.expect_err("nobody listens there");
    assert!(matches!(error, Error::Tool { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("fetching Debian's package lists: apt-get ended") && text.contains("127.0.0.1"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path().join("kernel")).expect("lists").count(), 0);
}
