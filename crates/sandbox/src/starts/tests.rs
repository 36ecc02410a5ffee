use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_analytics::Embedded;
use hearth_artifact::{ArtifactSet, ArtifactStore, Manifest};
use hearth_host::cgroup::Groups;
use hearth_network::{Mode, Pool};
use hearth_stdx::TaskSet;
use hearth_types::{BuildId, ExecutionId, Platform, Resources, SandboxId, SandboxSpec, TemplateId};
use hearth_vmm::{AcceleratorChoice, Driver, Kernel};
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;
use crate::{
    Config, DiskConfig, DiskSpace, Error, GuestLogs, GuestSamples, Handle, Leftovers, NodeResources,
    State as SandboxState,
};

fn queue(starts_max: usize) -> StartQueue {
    StartQueue::new(NonZeroUsize::new(starts_max).expect("not zero"))
}

fn paused(test: impl Future) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(test);
}

fn assert_unused(queue: &StartQueue, starts_max: usize) {
    let state = queue.state();
    assert_eq!((state.free, state.held.len(), state.waiting.len()), (starts_max, 0, 0), "{state:?}");
}

#[derive(Debug, Clone)]
struct Start {
    team: usize,
    /// Milliseconds from the start of the simulation.
    arrives_ms: u64,
    lasts_ms: u64,
    /// Waiting time after which the client cancels the start.
    cancelled_after_ms: Option<u64>,
}

const START_MS_MAX: u64 = 100;

fn starts(teams: usize) -> impl Strategy<Value = Vec<Start>> {
    let start = (0..teams, 0..500u64, 1..=START_MS_MAX, prop::option::weighted(0.2, 0..300u64)).prop_map(
        |(team, arrives_ms, lasts_ms, cancelled_after_ms)| Start { team, arrives_ms, lasts_ms, cancelled_after_ms },
    );
    prop::collection::vec(start, 0..60)
}

/// Runs all starts. Returns the team and the waiting time of each, `None` if it was cancelled.
async fn simulate(queue: &StartQueue, starts_max: usize, starts: Vec<Start>) -> Vec<(usize, Option<u64>)> {
    let teams: Vec<TeamId> = (0..8).map(|_| TeamId::generate()).collect();
    let concurrent = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for Start { team, arrives_ms, lasts_ms, cancelled_after_ms } in starts {
        let (queue, concurrent, team_id) = (queue.clone(), Arc::clone(&concurrent), teams[team]);
        tasks.spawn(async move {
            sleep(Duration::from_millis(arrives_ms)).await;
            let since = Instant::now();
            let start = async {
                let permit = queue.acquire(team_id).await;
                let waited = since.elapsed();
                let work = async {
                    assert!(concurrent.fetch_add(1, Ordering::Relaxed) < starts_max, "too many concurrent starts");
                    sleep(Duration::from_millis(lasts_ms)).await;
                    concurrent.fetch_sub(1, Ordering::Relaxed);
                };
                (permit, waited, work)
            };
            // Only a waiting start is cancelled.
            let limit = cancelled_after_ms.map_or(Duration::MAX, Duration::from_millis);
            let Ok((permit, waited, work)) = timeout(limit, start).await else { return (team, None) };
            permit.run(work).await;
            (team, Some(u64::try_from(waited.as_millis()).expect("short")))
        });
    }
    tasks.join_all().await
}

proptest! {
    #[test]
    fn every_start_gets_a_permit_and_no_permit_is_lost(starts_max in 1..5usize, starts in starts(8)) {
        paused(async {
            let queue = queue(starts_max);
            let waits = simulate(&queue, starts_max, starts.clone()).await;
            let cancelled = waits.iter().filter(|(_, wait)| wait.is_none()).count();
            assert!(cancelled <= starts.iter().filter(|start| start.cancelled_after_ms.is_some()).count());
            assert_unused(&queue, starts_max);
        });
    }

    #[test]
    fn a_start_does_not_wait_for_the_queue_of_another_team(
        starts_max in 1..5usize, churn in starts(1), arrives_ms in 0..1000u64
    ) {
        paused(async {
            let lone = Start { team: 1, arrives_ms, lasts_ms: 1, cancelled_after_ms: None };
            let waits = simulate(&queue(starts_max), starts_max, [churn, vec![lone]].concat()).await;
            let (_, wait) = waits.into_iter().find(|(team, _)| *team == 1).expect("the lone one");
            // It waits only for starts that have a permit. A timer is up to a millisecond late.
            assert!(wait.expect("not cancelled") <= START_MS_MAX + 1, "{wait:?}");
        });
    }
}

#[test]
fn teams_take_turns_and_the_starts_of_a_team_stay_in_order() {
    paused(async {
        let queue = queue(1);
        let [a, b, c] = [(); 3].map(|()| TeamId::generate());
        let first = queue.acquire(a).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for (team, name) in [(a, "a1"), (a, "a2"), (b, "b1"), (a, "a3"), (b, "b2"), (c, "c1")] {
            let (queue, order) = (queue.clone(), Arc::clone(&order));
            tasks.spawn(async move {
                let _permit = queue.acquire(team).await;
                order.lock().expect("no panic").push(name);
            });
            tokio::task::yield_now().await;
        }
        drop(first);
        tasks.join_all().await;
        assert_eq!(*order.lock().expect("no panic"), ["b1", "c1", "a1", "b2", "a2", "a3"]);
        assert_unused(&queue, 1);
    });
}

#[test]
fn a_guest_that_never_replies_releases_its_permit() {
    paused(async {
        let queue = queue(1);
        let stuck = queue.acquire(TeamId::generate()).await;
        let stuck = tokio::spawn(stuck.run(std::future::pending::<()>()));
        let since = Instant::now();
        let permit = queue.acquire(TeamId::generate()).await;
        assert_eq!(since.elapsed(), PERMIT_TIMEOUT);
        assert!(!stuck.is_finished());
        // The permit is not released a second time.
        stuck.abort();
        assert!(stuck.await.expect_err("aborted").is_cancelled());
        assert_eq!(queue.state().free, 0);
        drop(permit);
        assert_unused(&queue, 1);
    });
}

/// Creates an artifact set of another driver. It is rejected at the start, before a VM is created.
fn foreign_set(folder: &Path) -> ArtifactSet {
    let store = ArtifactStore::open(folder.join("artifacts")).expect("opens");
    let text = || "none".to_owned();
    let manifest = Manifest {
        build_id: BuildId::generate(),
        template_id: TemplateId::generate(),
        content_key: text(),
        resources: Resources { vcpus: 1, memory_mib: 1, disk_mib: 1 },
        platform: Platform {
            driver: text(),
            vmm_version: text(),
            machine: text(),
            cpu_model: text(),
            accelerator: text(),
            nic: text(),
        },
        kernel_version: text(),
        envd_version: text(),
        created_at: jiff::Timestamp::now(),
    };
    let draft = store.create_draft(manifest.build_id).expect("begins");
    for file in [draft.rootfs(), draft.memory(), draft.state()] {
        std::fs::write(file, "").expect("writes");
    }
    draft.commit(manifest).expect("commits")
}

async fn node(folder: &Path, starts: StartQueue) -> (Arc<Config>, NodeResources) {
    let analytics = hearth_analytics::Config::new(folder.join("analytics.db"));
    let analytics = Arc::new(Embedded::open(analytics).await.expect("opens"));
    let config = Config {
        folder: folder.join("executions"),
        init_attempt: Duration::from_secs(1),
        init_budget: Duration::from_secs(1),
        logs: GuestLogs { store: analytics.clone(), with_output: false },
        samples: GuestSamples(analytics),
    };
    std::fs::create_dir(&config.folder).expect("creates");
    let network = hearth_network::Config {
        mode: Mode::User,
        owner: "test".to_owned(),
        block: Ipv4Addr::new(10, 11, 0, 0),
        prepared_target: 0,
        guests_max: 1,
        egress_denied: Vec::new(),
    };
    let driver = hearth_vmm::Config {
        qemu_program: "qemu-system-x86_64".into(),
        accelerator: AcceleratorChoice::Tcg,
        verdict_file: folder.join("accelerator.json"),
    };
    let kernel =
        Kernel { version: "none".to_owned(), image: folder.join("kernel"), initramfs: folder.join("initramfs") };
    let disk = DiskConfig { folder: folder.to_owned(), reserve_bytes: 0, overcommit: 1 };
    let node = NodeResources {
        network: Pool::open(network).await.expect("needs nothing"),
        driver: Driver::open(&driver, &kernel).await.expect("QEMU is installed"),
        groups: Groups::open(&format!("test-starts-{}", std::process::id())),
        disk: DiskSpace::open(disk).expect("opens"),
        starts,
        leftovers: Leftovers::default(),
    };
    (Arc::new(config), node)
}

async fn failure(handle: &Handle) -> Arc<Error> {
    handle.started().await.expect_err("cannot start")
}

#[tokio::test]
async fn a_waiting_sandbox_holds_no_resources_and_can_be_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = queue(1);
    let (config, node) = node(folder.path(), queue.clone()).await;
    let set = foreign_set(folder.path());
    let tasks = TaskSet::new();
    let start = || {
        let spec = SandboxSpec {
            sandbox_id: SandboxId::generate(),
            execution_id: ExecutionId::generate(),
            team_id: TeamId::generate(),
            template_id: set.manifest().template_id.clone(),
            build_id: set.manifest().build_id,
            env_vars: std::collections::BTreeMap::new(),
            envd_access_token: None,
            internet_access: true,
        };
        crate::start(Arc::clone(&config), node.clone(), spec, set.clone(), &tasks)
    };
    let permit = queue.acquire(TeamId::generate()).await;
    let (first, killed) = (start(), start());
    let both_wait = async {
        while queue.state().waiting.len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), both_wait).await.expect("both wait");
    assert!(matches!(*first.state().borrow(), SandboxState::Assembling));
    assert_eq!(std::fs::read_dir(&config.folder).expect("lists").count(), 0);

    killed.kill().await;
    assert!(matches!(*failure(&killed).await, Error::Killed));
    drop(permit);
    let error = failure(&first).await;
    assert!(matches!(*error, Error::Platform { .. }), "{error:?}");
    assert_eq!(std::fs::read_dir(&config.folder).expect("lists").count(), 0);
    assert_unused(&queue, 1);
    assert_eq!(tasks.shutdown(Duration::from_secs(1)).await, Vec::<&str>::new());
    node.groups.close();
}
