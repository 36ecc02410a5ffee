//! Failures of a real machine: each gives an error with a remedy, and leaves nothing behind.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use futures::future::join_all;
use hearth_sdk::{Error, NewSandbox};
use hearth_testkit::{Instance, Leftovers, PreparedDataDir, until};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hearth"))
}

/// Runs `hearth` with arguments that make it fail; returns its output and its standard error as text.
fn failing(arguments: &[&str]) -> Result<(Output, String)> {
    let output = Command::new(binary()).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "hearth {arguments:?} succeeded");
    Ok((output, text))
}

/// Options for free ports, because another instance may use the default ones.
const FREE_PORTS: [&str; 6] =
    ["--api-listen", "127.0.0.1:0", "--edge-listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0"];

/// Runs `hearth up` on free ports with arguments that make it fail; returns its standard error.
fn failing_up(arguments: &[&str]) -> Result<String> {
    let (_, text) = failing(&[&["up"], &FREE_PORTS[..], arguments].concat())?;
    Ok(text)
}

fn furnished(prepared: &PreparedDataDir) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("hearth-").tempdir()?;
    prepared.link_into(folder.path())?;
    Ok(folder)
}

fn check_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

fn check_nothing_left(folder: &Path) {
    let left = Leftovers::of(folder);
    assert!(left.is_empty(), "left: {left:?}");
}

#[test]
fn an_error_for_a_port_in_use_names_the_flag() -> Result<()> {
    let folder = furnished(&PreparedDataDir::ensure(binary())?)?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let data_dir = folder.path().to_string_lossy();
    for flag in ["--api-listen", "--edge-listen", "--tls-listen"] {
        let listen = ["--api-listen", "--edge-listen", "--tls-listen"]
            .map(|other| [other, if other == flag { address.as_str() } else { "127.0.0.1:0" }]);
        let arguments = [&["up", "--data-dir", data_dir.as_ref()][..], listen.as_flattened()].concat();
        let (_, text) = failing(&arguments)?;
        check_contains(&text, &[&address, flag]);
        check_nothing_left(folder.path());
    }
    Ok(())
}

#[test]
fn a_missing_qemu_is_reported() -> Result<()> {
    let folder = furnished(&PreparedDataDir::ensure(binary())?)?;
    let data_dir = folder.path().to_string_lossy();
    let text = failing_up(&["--data-dir", &data_dir, "--qemu", "/nonexistent/qemu"])?;
    check_contains(&text, &["/nonexistent/qemu", "qemu-system-x86"]);
    check_nothing_left(folder.path());

    let doctor = Command::new(binary())
        .args(["doctor", "--json", "--data-dir", &data_dir, "--qemu", "/nonexistent/qemu"])
        .output()?;
    assert!(!doctor.status.success(), "doctor reports success without QEMU");
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout)?;
    assert_eq!(report["sandboxes_can_run"], false);
    Ok(())
}

#[test]
fn an_unknown_variable_is_only_a_warning() -> Result<()> {
    let mut config = Command::new(binary());
    config.arg("config").env("HEARTH_LGO", "debug").env("HEARTH_SERVICE_HOST", "10.0.0.1");
    let output = config.output()?;
    let warnings = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{warnings}");
    check_contains(&warnings, &["HEARTH_LGO", "did you mean HEARTH_LOG?", "HEARTH_SERVICE_HOST"]);
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_printed_to_a_supervisor() -> Result<()> {
    // A supervisor's journal gets both outputs, with the debug log.
    let instance = Instance::start(&PreparedDataDir::ensure(binary())?, &["--log", "debug"]).await?;
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    sandbox.kill().await?;
    // The banner is printed last.
    let log = until("the banner", || async {
        let log = instance.log();
        Ok(log.contains("Ctrl-C stops Hearth").then_some(log))
    })
    .await?;
    check_contains(&log, &["hearth env --data-dir"]);
    for file in ["api-key", "admin-token", "token-seed", "login-key"] {
        let secret = fs::read_to_string(instance.folder().join(file))?;
        assert!(!log.contains(secret.trim()), "{file} is in the log");
    }
    instance.terminate().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_data_directory_is_rejected() -> Result<()> {
    let instance = Instance::start(&PreparedDataDir::ensure(binary())?, &[]).await?;
    let data_dir = instance.folder().to_string_lossy().into_owned();
    let text = failing_up(&["--data-dir", &data_dir])?;
    check_contains(&text, &["hearth.lock", &instance.pid().unwrap_or_default().to_string()]);
    // The first still works.
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    sandbox.kill().await?;
    instance.terminate().await?;
    Ok(())
}

/// Writes a wrapper of QEMU that runs the shell commands in `body`.
fn qemu_wrapper(folder: &Path, body: &str) -> Result<PathBuf> {
    let path = folder.join("qemu");
    let script = format!(
        "#!/bin/bash\nQEMU=$(PATH=$PATH:/usr/bin:/usr/local/bin command -v qemu-system-x86_64)\n\
         [ \"$1\" = --version ] && exec \"$QEMU\" --version\n{body}\n"
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_becomes_ready_is_an_error_and_leaves_nothing() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let tools = tempfile::tempdir()?;
    // The guest runs without network: the wrapper, in the namespace of the slot, disables the link.
    let script = "PATH=$PATH:/usr/sbin:/usr/bin:/sbin ip link set tap0 down\nexec \"$QEMU\" \"$@\"";
    let qemu = qemu_wrapper(tools.path(), script)?;
    let instance = Instance::start(&prepared, &["--qemu", &qemu.to_string_lossy(), "--ready-seconds", "2"]).await?;
    let error = instance.client().create(&NewSandbox::of("base")).await.err();
    assert!(matches!(error, Some(Error::Rejected { status, .. }) if status.as_u16() == 500), "{error:?}");
    until("nothing left of the attempt", || async {
        Ok((instance.leftovers().of_sandboxes() == Leftovers::default()).then_some(()))
    })
    .await?;
    assert!(instance.client().list().await?.is_empty(), "a row is left");
    check_contains(&instance.log(), &["did not become ready"]);
    let (status, folder) = instance.terminate().await?;
    assert!(status.success());
    check_nothing_left(folder.path());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_creates_and_kills_with_failures_leave_nothing() -> Result<()> {
    const CREATES: usize = 50;
    const AT_ONCE: usize = 5;
    let prepared = PreparedDataDir::ensure(binary())?;
    let tools = tempfile::tempdir()?;
    // Every third VMM fails to start, every fifth is killed while its guest boots.
    let counter = tools.path().join("counter");
    let body = format!(
        "exec 9>>{counter}.lock; /usr/bin/flock 9; n=$(($(/bin/cat {counter} 2>/dev/null || echo 0) + 1)); echo $n > {counter}; exec 9>&-\n\
         if [ $((n % 3)) = 0 ]; then echo injected failure >&2; exit 1; fi\n\
         if [ $((n % 5)) = 0 ]; then (/bin/sleep 0.06; kill -9 $$) & fi\n\
         exec \"$QEMU\" \"$@\"",
        counter = counter.display()
    );
    let unreliable = qemu_wrapper(tools.path(), &body)?;
    let instance = Instance::start(&prepared, &["--qemu", &unreliable.to_string_lossy()]).await?;
    let client = instance.client();
    let (mut created, mut failed) = (0, 0);
    for _ in 0..CREATES / AT_ONCE {
        let results = join_all((0..AT_ONCE).map(|_| async {
            match client.create(&NewSandbox::of("base")).await {
                Ok(sandbox) => {
                    let id = sandbox.id().to_owned();
                    // The sandbox of a VMM that was killed in between may be deleted already.
                    match sandbox.kill().await {
                        Err(error) if !error.is_not_found() => panic!("killing {id}: {error}"),
                        _ => true,
                    }
                }
                Err(_) => false,
            }
        }))
        .await;
        created += results.iter().filter(|created| **created).count();
        failed += results.iter().filter(|created| !**created).count();
    }
    assert!(created > CREATES / 3 && failed >= CREATES / 4, "{created} created, {failed} failed");
    until("nothing left of any attempt", || async {
        Ok((instance.leftovers().of_sandboxes() == Leftovers::default() && client.list().await?.is_empty())
            .then_some(()))
    })
    .await?;
    let (status, folder) = instance.terminate().await?;
    assert!(status.success());
    check_nothing_left(folder.path());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_run_with_user_mode_network() -> Result<()> {
    let options = ["--network-mode", "user"];
    let prepared = PreparedDataDir::ensure_with(binary(), &options)?;
    let instance = Instance::start(&prepared, &options).await?;
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    let output = sandbox.run("echo hello").await?;
    assert_eq!(output.stdout, b"hello\n");
    assert_eq!(instance.leftovers().namespaces, Vec::<String>::new());
    sandbox.kill().await?;
    let (status, folder) = instance.terminate().await?;
    assert!(status.success());
    check_nothing_left(folder.path());
    Ok(())
}

/// Runs a test with a tmpfs of `mib` mounted on a folder.
///
/// Only the test's thread and its child processes see the mount.
fn on_small_disk<F: Future<Output = Result<()>>>(
    folder: &Path,
    mib: u32,
    test: impl FnOnce() -> F + Send,
) -> Result<()> {
    std::thread::scope(|scope| {
        let tested = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            fs::create_dir_all(folder)?;
            mount(Some("small"), folder, Some("tmpfs"), MsFlags::empty(), Some(format!("size={mib}m").as_str()))?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test())
        });
        tested.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// One sandbox fills the shared disk: it is paused, the others and the database are not, and new sandboxes are
/// rejected.
#[test]
fn a_sandbox_that_fills_the_disk_does_not_affect_others() -> Result<()> {
    if !hearth_host::requirement::is_root() {
        println!("skipped: only root can mount file systems");
        return Ok(());
    }
    let prepared = PreparedDataDir::ensure(binary())?;
    let folder = furnished(&prepared)?;
    let disk = folder.path().join("executions");
    // With this ratio, 129 MiB are reserved for a disk of 8 GiB.
    let options = ["--disk-overcommit", "64", "--disk-reserve-mib", "100"];
    on_small_disk(&disk.clone(), 560, || async {
        let instance = Instance::start_in(binary(), folder, &options).await?;
        let (hog, modest) = (
            instance.client().create(&NewSandbox::of("base")).await?,
            instance.client().create(&NewSandbox::of("base")).await?,
        );
        let write = |mib: u32| {
            format!("dd if=/dev/zero of=$HOME/file bs=1M count={mib} conv=fsync 2>/dev/null; sync; echo done")
        };
        let command = write(420);
        let mut hogging = Box::pin(hog.run(&command));
        let paused = until("the hog is paused", || async {
            Ok(instance.log().contains("the sandbox waits for disk space").then_some(()))
        });
        tokio::select! {
            output = &mut hogging => panic!("the hog found room: {output:?}"),
            paused = paused => paused?,
        }
        // The timeout of the hog's request is longer than this part of the test.
        let command = write(60);
        let others = async {
            assert_eq!(modest.run(&command).await?.stdout, b"done\n");
            let rejected = instance.client().create(&NewSandbox::of("base")).await.err();
            assert!(
                matches!(&rejected, Some(Error::Rejected { status, .. }) if status.as_u16() == 503),
                "{rejected:?}"
            );
            check_contains(&instance.log(), &["MiB of disk", "--disk-overcommit"]);
            assert_eq!(modest.run("md5sum $HOME/file | wc -l").await?.stdout, b"1\n");
            mount(None::<&str>, &disk, None::<&str>, MsFlags::MS_REMOUNT, Some("size=1500m"))?;
            anyhow::Ok(())
        };
        tokio::select! {
            output = &mut hogging => panic!("the hog was not paused: {output:?}"),
            others = others => others?,
        }
        assert_eq!(hogging.as_mut().await?.stdout, b"done\n");
        drop(hogging);
        check_contains(&instance.log(), &["the sandbox continues, disk space is available"]);
        hog.kill().await?;
        modest.kill().await?;
        let (status, folder) = instance.terminate().await?;
        assert!(status.success());
        check_nothing_left(folder.path());
        // Otherwise the folder could not be removed.
        umount(&disk)?;
        Ok(())
    })
}
