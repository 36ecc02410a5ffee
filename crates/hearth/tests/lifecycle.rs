//! Lifecycle of sandboxes of a real `hearth up` on real microVMs; every test checks that nothing is left on the host.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use hearth_sdk::{NewSandbox, Sandbox};
use hearth_testkit::{Instance, Leftovers, PreparedDataDir, until};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hearth"))
}

async fn output(sandbox: &Sandbox, command: &str) -> Result<String> {
    let output = sandbox.run(command).await?;
    ensure!(output.exit_code == 0, "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

async fn nothing_left_of_sandboxes(instance: &Instance) -> Result<()> {
    until("nothing left of sandboxes", || async {
        Ok((instance.leftovers().of_sandboxes() == Leftovers::default()).then_some(()))
    })
    .await
    .with_context(|| format!("left: {:?}", instance.leftovers().of_sandboxes()))
}

async fn stop(instance: Instance) -> Result<()> {
    let log = instance.log();
    let (status, folder) = instance.terminate().await?;
    ensure!(status.success(), "hearth failed: {status}: {log}");
    let left = Leftovers::of(folder.path());
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_are_isolated_machines() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let instance = Instance::start(&prepared, &[]).await?;
    let client = instance.client();
    let new = NewSandbox {
        env_vars: [("GREETING".to_owned(), "hello".to_owned())].into(),
        metadata: [("purpose".to_owned(), "test".to_owned())].into(),
        ..NewSandbox::of("base")
    };
    let (one, two) = (client.create(&new).await?, client.create(&NewSandbox::of("base")).await?);

    assert_eq!(
        output(&one, "id -un; pwd; echo $GREETING $E2B_SANDBOX_ID").await?,
        format!("user\n/home/user\nhello {}", one.id())
    );
    let boot = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | base64";
    assert_ne!(output(&one, boot).await?, output(&two, boot).await?, "two sandboxes draw the same random numbers");
    let drift = output(&one, "date +%s").await?.parse::<i64>()? - output(&two, "date +%s").await?.parse::<i64>()?;
    assert!(drift.abs() < 30, "the clocks are {drift} s apart");

    one.write("/home/user/secret", "mine".into()).await?;
    assert_eq!(one.read("/home/user/secret", 100).await?, "mine");
    assert!(two.read("/home/user/secret", 100).await.is_err(), "one sandbox sees the other's file");

    let info = client.info(one.id()).await?;
    assert_eq!((info.state.as_str(), info.metadata["purpose"].as_str()), ("running", "test"));
    assert_eq!(client.list().await?.len(), 2);

    let id = one.id().to_owned();
    one.kill().await?;
    assert!(client.kill(&id).await.expect_err("deleted").is_not_found());
    assert_eq!(client.list().await?.len(), 1);
    two.kill().await?;
    nothing_left_of_sandboxes(&instance).await?;
    stop(instance).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_deleted_after_its_guest_powers_off_or_its_vmm_dies() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let instance = Instance::start(&prepared, &[]).await?;
    let client = instance.client();
    let (powered_off, killed) =
        (client.create(&NewSandbox::of("base")).await?, client.create(&NewSandbox::of("base")).await?);
    // The first guest powers itself off; the VMM of the second is killed.
    let _ = powered_off.run("sudo kill -TERM 1").await;
    until("one VMM", || async { Ok((instance.leftovers().processes.len() == 1).then_some(())) }).await?;
    let pid = instance.leftovers().processes[0].split(' ').next().unwrap_or_default().parse()?;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).context("a pid")?,
        rustix::process::Signal::KILL,
    )?;
    until("an empty list", || async { Ok(client.list().await?.is_empty().then_some(())) }).await?;
    for sandbox in [powered_off, killed] {
        assert!(client.info(sandbox.id()).await.expect_err("deleted").is_not_found());
        assert!(sandbox.run("true").await.is_err());
    }
    nothing_left_of_sandboxes(&instance).await?;
    stop(instance).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_everything_in_time() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let instance = Instance::start(&prepared, &[]).await?;
    let client = instance.client();
    let new = NewSandbox::of("base");
    let sandboxes = try_join_all((0..6).map(|_| client.create(&new))).await?;
    // One runs a command, with an open stream.
    let busy = client.create(&new).await?;
    let stream = tokio::spawn(async move { busy.run("sleep 1000").await });
    until("the command runs", || async {
        Ok((output(&sandboxes[0], "true").await.is_ok() && !stream.is_finished()).then_some(()))
    })
    .await?;
    stop(instance).await?;
    assert!(stream.await?.is_err(), "a command outlived its sandbox");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_removes_what_a_killed_one_left() -> Result<()> {
    let prepared = PreparedDataDir::ensure(binary())?;
    let instance = Instance::start(&prepared, &[]).await?;
    let key = instance.key().clone();
    let client = instance.client();
    let new = NewSandbox::of("base");
    let ids: Vec<String> = try_join_all((0..3).map(|_| client.create(&new)))
        .await?
        .iter()
        .map(|sandbox| sandbox.id().to_owned())
        .collect();
    // The daemon is killed during more creates.
    let unfinished: Vec<_> = (0..4)
        .map(|_| {
            let client = instance.client();
            tokio::spawn(async move { client.create(&NewSandbox::of("base")).await })
        })
        .collect();
    until("a create in progress", || async { Ok((instance.leftovers().executions.len() > 3).then_some(())) }).await?;
    let folder = instance.kill().await?;
    for task in unfinished {
        let _ = task.await?;
    }
    let left = Leftovers::of(folder.path());
    ensure!(left.processes.len() >= 3, "the VMMs exited with their daemon: {left:?}");

    let instance = Instance::start_in(binary(), folder, &[]).await?;
    assert_eq!(instance.key(), &key, "the key changed");
    nothing_left_of_sandboxes(&instance).await?;
    let client = instance.client();
    until("no rows of killed sandboxes", || async { Ok(client.list().await?.is_empty().then_some(())) }).await?;
    for id in ids {
        assert!(client.info(&id).await.expect_err("deleted").is_not_found());
    }
    let sandbox = client.create(&new).await?;
    assert_eq!(output(&sandbox, "echo again").await?, "again");
    stop(instance).await
}
