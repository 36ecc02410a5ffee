//! What goes wrong on real machines ends in an error a person can act on, and nothing is left.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use futures::future::join_all;
use hearth_sdk::{Error, NewSandbox};
use hearth_testkit::{Instance, Leftovers, Prepared, until};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hearth"))
}

/// `hearth` with arguments that make it fail, to its end.
fn failing(arguments: &[&str]) -> Result<(Output, String)> {
    let output = Command::new(binary()).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "hearth {arguments:?} succeeded");
    Ok((output, text))
}

fn furnished(prepared: &Prepared) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("hearth-").tempdir()?;
    prepared.furnish(folder.path())?;
    Ok(folder)
}

fn check_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

fn check_nothing_left(folder: &Path) {
    let left = Leftovers::of(folder);
    assert!(left.is_empty(), "left: {left:?}");
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_changes_it() -> Result<()> {
    let folder = furnished(&Prepared::ensure(binary())?)?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let data_dir = folder.path().to_string_lossy();
    for flag in ["--api-listen", "--edge-listen", "--tls-listen"] {
        let listen = ["--api-listen", "--edge-listen", "--tls-listen"]
            .map(|other| [other, if other == flag { address.as_str() } else { "127.0.0.1:0" }]);
        let arguments = [&["up", "--data-dir", data_dir.as_ref()][..], listen.as_flattened()].concat();
        let (_, text) = failing(&arguments)?;
        check_says(&text, &[&address, flag]);
        check_nothing_left(folder.path());
    }
    Ok(())
}

#[test]
fn a_missing_qemu_is_called_missing() -> Result<()> {
    let folder = furnished(&Prepared::ensure(binary())?)?;
    let data_dir = folder.path().to_string_lossy();
    let (_, text) = failing(&["up", "--data-dir", &data_dir, "--qemu", "/nonexistent/qemu"])?;
    check_says(&text, &["/nonexistent/qemu", "qemu-system-x86"]);
    check_nothing_left(folder.path());

    let doctor = Command::new(binary())
        .args(["doctor", "--json", "--data-dir", &data_dir, "--qemu", "/nonexistent/qemu"])
        .output()?;
    assert!(!doctor.status.success(), "doctor calls a host without QEMU healthy");
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout)?;
    assert_eq!(report["sandboxes_can_run"], false);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_data_is_told_of_the_first() -> Result<()> {
    let instance = Instance::start(&Prepared::ensure(binary())?, &[]).await?;
    let data_dir = instance.folder().to_string_lossy().into_owned();
    let (_, text) = failing(&["up", "--data-dir", &data_dir])?;
    check_says(&text, &["hearth.lock", &instance.pid().unwrap_or_default().to_string()]);
    // The first goes on.
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    sandbox.kill().await?;
    instance.terminate().await?;
    Ok(())
}

/// A program in the place of QEMU that does what `body` says.
fn impostor(folder: &Path, body: &str) -> Result<PathBuf> {
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
    let prepared = Prepared::ensure(binary())?;
    let tools = tempfile::tempdir()?;
    // The guest runs, but its network leads nowhere: the VMM starts in the namespace of its slot.
    let deaf =
        impostor(tools.path(), "PATH=$PATH:/usr/sbin:/usr/bin:/sbin ip link set tap0 down\nexec \"$QEMU\" \"$@\"")?;
    let instance = Instance::start(&prepared, &["--qemu", &deaf.to_string_lossy(), "--ready-seconds", "2"]).await?;
    let error = instance.client().create(&NewSandbox::of("base")).await.err();
    assert!(matches!(error, Some(Error::Refused { status, .. }) if status.as_u16() == 500), "{error:?}");
    until("nothing left of the attempt", || async {
        Ok((instance.leftovers().of_sandboxes() == Leftovers::default()).then_some(()))
    })
    .await?;
    assert!(instance.client().list().await?.is_empty(), "a row is left");
    check_says(&instance.log(), &["did not become ready"]);
    let (status, folder) = instance.terminate().await?;
    assert!(status.success());
    check_nothing_left(folder.path());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_creates_and_kills_with_failures_leave_nothing() -> Result<()> {
    const CREATES: usize = 50;
    const AT_ONCE: usize = 5;
    let prepared = Prepared::ensure(binary())?;
    let tools = tempfile::tempdir()?;
    // Every third VMM refuses to start, every fifth dies while its guest comes up.
    let counter = tools.path().join("counter");
    let body = format!(
        "exec 9>>{counter}.lock; /usr/bin/flock 9; n=$(($(/bin/cat {counter} 2>/dev/null || echo 0) + 1)); echo $n > {counter}; exec 9>&-\n\
         if [ $((n % 3)) = 0 ]; then echo injected failure >&2; exit 1; fi\n\
         if [ $((n % 5)) = 0 ]; then (/bin/sleep 0.06; kill -9 $$) & fi\n\
         exec \"$QEMU\" \"$@\"",
        counter = counter.display()
    );
    let unreliable = impostor(tools.path(), &body)?;
    let instance = Instance::start(&prepared, &["--qemu", &unreliable.to_string_lossy()]).await?;
    let client = instance.client();
    let (mut created, mut failed) = (0, 0);
    for _ in 0..CREATES / AT_ONCE {
        let results = join_all((0..AT_ONCE).map(|_| async {
            match client.create(&NewSandbox::of("base")).await {
                Ok(sandbox) => {
                    let id = sandbox.id().to_owned();
                    // A VM that died in between may be gone from the list already.
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
async fn without_namespaces_the_vmm_s_own_network_serves() -> Result<()> {
    let options = ["--network-mode", "user"];
    let prepared = Prepared::ensure_with(binary(), &options)?;
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

/// Runs a test with a folder on which a file system of `mib` is mounted, that only its thread and what it starts see.
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

/// One sandbox fills the disk of all. It waits for room, the others do not; there is room for rows, and none for new sandboxes.
#[test]
fn a_sandbox_that_fills_the_disk_stops_nobody_else() -> Result<()> {
    if !hearth_host::requirement::is_root() {
        println!("skipped: only root mounts file systems");
        return Ok(());
    }
    let prepared = Prepared::ensure(binary())?;
    let folder = furnished(&prepared)?;
    let disk = folder.path().join("executions");
    // Of a disk of 8 GiB, 129 MiB are certain.
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
        let held = until("the hog to be held", || async {
            Ok(instance.log().contains("the sandbox waits for disk space").then_some(()))
        });
        tokio::select! {
            output = &mut hogging => panic!("the hog found room: {output:?}"),
            held = held => held?,
        }
        // Its clients' patience is longer than this part of the test.
        let command = write(60);
        let others = async {
            assert_eq!(modest.run(&command).await?.stdout, b"done\n");
            let refused = instance.client().create(&NewSandbox::of("base")).await.err();
            assert!(matches!(&refused, Some(Error::Refused { status, .. }) if status.as_u16() == 503), "{refused:?}");
            check_says(&instance.log(), &["MiB of disk", "--disk-overcommit"]);
            assert_eq!(modest.run("md5sum $HOME/file | wc -l").await?.stdout, b"1\n");
            mount(None::<&str>, &disk, None::<&str>, MsFlags::MS_REMOUNT, Some("size=1500m"))?;
            anyhow::Ok(())
        };
        tokio::select! {
            output = &mut hogging => panic!("the hog was not held: {output:?}"),
            others = others => others?,
        }
        assert_eq!(hogging.as_mut().await?.stdout, b"done\n");
        drop(hogging);
        check_says(&instance.log(), &["there is disk space again"]);
        hog.kill().await?;
        modest.kill().await?;
        let (status, folder) = instance.terminate().await?;
        assert!(status.success());
        check_nothing_left(folder.path());
        // Or the folder could not be removed.
        umount(&disk)?;
        Ok(())
    })
}
