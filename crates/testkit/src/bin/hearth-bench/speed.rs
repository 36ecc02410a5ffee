//! How fast: creates, commands, transfers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use hearth_sdk::{Client, NewSandbox, Sandbox};
use hearth_testkit::Instance;
use hearth_types::Secret;

use crate::Rounds;
use crate::bare::Bare;
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

/// Creates that begin together, as the goal says.
const AT_ONCE: usize = 20;
/// Creates in flight in the other series.
const IN_FLIGHT: usize = 10;

async fn create(client: &Client) -> Result<(Sandbox, Duration)> {
    let start = Instant::now();
    let sandbox = client.create(&NewSandbox::of("base")).await?;
    run(&sandbox, "true").await?;
    Ok((sandbox, start.elapsed()))
}

async fn run(sandbox: &Sandbox, command: &str) -> Result<()> {
    let output = sandbox.run(command).await?;
    ensure!(output.exit_code == 0, "{command} ended with {}", output.exit_code);
    Ok(())
}

/// From request to the first `true`, against restore to the first `true` with the bare driver.
pub(crate) async fn creates(report: &mut Report, bare: &Bare, instance: &Instance, rounds: Rounds) -> Result<()> {
    let client = instance.client();
    let (mut ours, mut answers, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..rounds.creates {
        bare.settled().await;
        let start = Instant::now();
        let (vm, answered) = bare.restore(number).await?;
        vm.run("true").await?;
        bounds.push(start.elapsed());
        answers.push(answered);
        bare.discard(vm).await;
        let (sandbox, took) = create(&client).await?;
        ours.push(took);
        sandbox.kill().await?;
    }
    let (ours, bounds, answers) = (Percentiles::of(ours), Percentiles::of(bounds), Percentiles::of(answers));
    let goal = Some(Goal::TimesBound(1.3));
    report.plain("bare restore to first answer, p50", "ms", milliseconds(answers.p50), None);
    for (name, ours, bound, goal) in [
        ("create to first `true`, one at a time, p50", ours.p50, bounds.p50, goal),
        ("create to first `true`, one at a time, p95", ours.p95, bounds.p95, None),
        ("create to first `true`, one at a time, p99", ours.p99, bounds.p99, None),
    ] {
        report.bounded(name, "ms", milliseconds(ours), milliseconds(bound), goal);
    }
    in_flight(report, &client, rounds).await?;
    at_once(report, bare, &client).await
}

async fn in_flight(report: &mut Report, client: &Client, rounds: Rounds) -> Result<()> {
    let mut series = Vec::new();
    for _ in 0..rounds.creates.div_ceil(IN_FLIGHT) {
        let made = try_join_all((0..IN_FLIGHT).map(|_| create(client))).await?;
        let (sandboxes, took): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        series.extend(took);
        try_join_all(sandboxes.into_iter().map(Sandbox::kill)).await?;
    }
    let series = Percentiles::of(series);
    for (name, value) in [("p50", series.p50), ("p95", series.p95), ("p99", series.p99)] {
        report.plain(&format!("create to first `true`, 10 at once, {name}"), "ms", milliseconds(value), None);
    }
    Ok(())
}

async fn at_once(report: &mut Report, bare: &Bare, client: &Client) -> Result<()> {
    bare.settled().await;
    let start = Instant::now();
    let vms = try_join_all((0..AT_ONCE).map(|number| async move {
        let (vm, _) = bare.restore(1000 + number).await?;
        vm.run("true").await?;
        anyhow::Ok(vm)
    }))
    .await?;
    let bound = start.elapsed();
    for vm in vms {
        bare.discard(vm).await;
    }
    let start = Instant::now();
    let made = try_join_all((0..AT_ONCE).map(|_| create(client))).await?;
    let ours = start.elapsed();
    try_join_all(made.into_iter().map(|(sandbox, _)| sandbox.kill())).await?;
    let goal = Some(Goal::TimesBound(1.5));
    report.bounded("20 creates at once, all done", "ms", milliseconds(ours), milliseconds(bound), goal);
    Ok(())
}

/// A trivial command in a sandbox that is there, against the same straight to a guest.
pub(crate) async fn commands(report: &mut Report, bare: &Bare, instance: &Instance, rounds: Rounds) -> Result<()> {
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    let (vm, _) = bare.restore(2000).await?;
    let (mut ours, mut bounds) = (Vec::new(), Vec::new());
    for _ in 0..rounds.commands {
        let start = Instant::now();
        vm.run("true").await?;
        bounds.push(start.elapsed());
        let start = Instant::now();
        run(&sandbox, "true").await?;
        ours.push(start.elapsed());
    }
    bare.discard(vm).await;
    sandbox.kill().await?;
    let (ours, bounds) = (Percentiles::of(ours), Percentiles::of(bounds));
    for (name, ours, bound) in [("p50", ours.p50, bounds.p50), ("p95", ours.p95, bounds.p95)] {
        let name = format!("command `true`, {name}");
        report.bounded(&name, "ms", milliseconds(ours), milliseconds(bound), None);
    }
    Ok(())
}

/// File contents up and down, against the same straight to a guest.
pub(crate) async fn transfers(report: &mut Report, bare: &Bare, instance: &Instance) -> Result<()> {
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    let (vm, _) = bare.restore(3000).await?;
    // The SDK's own transfer code, pointed straight at the guest.
    let direct = Client::new(&vm.url(), &vm.url(), Secret::new(""))?.attach("direct", None);
    for (name, bytes, rounds) in [("1 KiB", 1 << 10, 20), ("1 MiB", 1 << 20, 5), ("100 MiB", 100 << 20, 1)] {
        let content = Bytes::from(vec![b'x'; bytes]);
        let bound = transfer(&direct, &content, rounds).await?;
        let ours = transfer(&sandbox, &content, rounds).await?;
        let rate =
            |took: Duration| f64::from(u32::try_from(bytes * rounds).unwrap_or(u32::MAX)) / 1e6 / took.as_secs_f64();
        report.bounded(&format!("upload of {name}"), "MB/s", rate(ours.0), rate(bound.0), None);
        report.bounded(&format!("download of {name}"), "MB/s", rate(ours.1), rate(bound.1), None);
    }
    bare.discard(vm).await;
    sandbox.kill().await?;
    Ok(())
}

async fn transfer(sandbox: &Sandbox, content: &Bytes, rounds: usize) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    for _ in 0..rounds {
        sandbox.write("/tmp/bench", content.clone()).await?;
    }
    let up = start.elapsed();
    let start = Instant::now();
    for _ in 0..rounds {
        let read = sandbox.read("/tmp/bench", content.len()).await?;
        ensure!(read == content, "the file came back changed");
    }
    Ok((up, start.elapsed()))
}
