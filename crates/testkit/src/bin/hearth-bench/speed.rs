//! Durations of creates, commands and transfers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use hearth_sdk::{Client, NewSandbox, Sandbox};
use hearth_testkit::Instance;
use hearth_types::Secret;

use crate::Rounds;
use crate::bare::BareDriver;
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

/// Concurrent creates in the series that starts them all together. The number is part of the goal.
const AT_ONCE: usize = 20;
/// Creates in flight in the series before.
const IN_FLIGHT: usize = 10;

async fn create(client: &Client) -> Result<(Sandbox, Duration)> {
    let start = Instant::now();
    let sandbox = client.create(&NewSandbox::of("base")).await?;
    run(&sandbox, "true").await?;
    Ok((sandbox, start.elapsed()))
}

async fn run(sandbox: &Sandbox, command: &str) -> Result<()> {
    let output = sandbox.run(command).await?;
    ensure!(output.exit_code == 0, "{command} exited with {}", output.exit_code);
    Ok(())
}

/// Measures from the create request to the first `true`. The bound is a restore by the bare driver to the first `true`.
pub(crate) async fn creates(report: &mut Report, bare: &BareDriver, instance: &Instance, rounds: Rounds) -> Result<()> {
    let client = instance.client();
    let (mut measured, mut first_replies, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..rounds.creates {
        bare.wait_for_slots().await;
        let start = Instant::now();
        let (vm, first_reply) = bare.restore(number).await?;
        vm.run("true").await?;
        bounds.push(start.elapsed());
        first_replies.push(first_reply);
        bare.discard(vm).await;
        let (sandbox, took) = create(&client).await?;
        measured.push(took);
        sandbox.kill().await?;
    }
    let (measured, bounds, first_replies) =
        (Percentiles::of(measured), Percentiles::of(bounds), Percentiles::of(first_replies));
    let goal = Some(Goal::TimesBound(1.3));
    report.plain("bare restore to first reply, p50", "ms", milliseconds(first_replies.p50), None);
    for (name, measured, bound, goal) in [
        ("create to first `true`, one at a time, p50", measured.p50, bounds.p50, goal),
        ("create to first `true`, one at a time, p95", measured.p95, bounds.p95, None),
        ("create to first `true`, one at a time, p99", measured.p99, bounds.p99, None),
    ] {
        report.bounded(name, "ms", milliseconds(measured), milliseconds(bound), goal);
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

async fn at_once(report: &mut Report, bare: &BareDriver, client: &Client) -> Result<()> {
    bare.wait_for_slots().await;
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
    let measured = start.elapsed();
    try_join_all(made.into_iter().map(|(sandbox, _)| sandbox.kill())).await?;
    let goal = Some(Goal::TimesBound(1.5));
    report.bounded("20 creates at once, all done", "ms", milliseconds(measured), milliseconds(bound), goal);
    Ok(())
}

/// Measures a trivial command in an existing sandbox. The bound is the same command on a direct connection to a guest.
pub(crate) async fn commands(
    report: &mut Report,
    bare: &BareDriver,
    instance: &Instance,
    rounds: Rounds,
) -> Result<()> {
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    let (vm, _) = bare.restore(2000).await?;
    let (mut measured, mut bounds) = (Vec::new(), Vec::new());
    for _ in 0..rounds.commands {
        let start = Instant::now();
        vm.run("true").await?;
        bounds.push(start.elapsed());
        let start = Instant::now();
        run(&sandbox, "true").await?;
        measured.push(start.elapsed());
    }
    bare.discard(vm).await;
    sandbox.kill().await?;
    let (measured, bounds) = (Percentiles::of(measured), Percentiles::of(bounds));
    for (name, measured, bound) in [("p50", measured.p50, bounds.p50), ("p95", measured.p95, bounds.p95)] {
        let name = format!("command `true`, {name}");
        report.bounded(&name, "ms", milliseconds(measured), milliseconds(bound), None);
    }
    Ok(())
}

/// Measures uploads and downloads of files. The bound is the same on a direct connection to a guest.
pub(crate) async fn transfers(report: &mut Report, bare: &BareDriver, instance: &Instance) -> Result<()> {
    let sandbox = instance.client().create(&NewSandbox::of("base")).await?;
    let (vm, _) = bare.restore(3000).await?;
    // Uses the SDK's own transfer code, connected directly to the guest.
    let direct = Client::new(&vm.url(), &vm.url(), Secret::new(""))?.attach("direct", None);
    for (name, bytes, rounds) in [("1 KiB", 1 << 10, 20), ("1 MiB", 1 << 20, 5), ("100 MiB", 100 << 20, 1)] {
        let content = Bytes::from(vec![b'x'; bytes]);
        let bound = transfer(&direct, &content, rounds).await?;
        let measured = transfer(&sandbox, &content, rounds).await?;
        let rate =
            |took: Duration| f64::from(u32::try_from(bytes * rounds).unwrap_or(u32::MAX)) / 1e6 / took.as_secs_f64();
        report.bounded(&format!("upload of {name}"), "MB/s", rate(measured.0), rate(bound.0), None);
        report.bounded(&format!("download of {name}"), "MB/s", rate(measured.1), rate(bound.1), None);
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
