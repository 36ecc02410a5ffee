use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_analytics::Embedded;
use hearth_artifact::{ArtifactSet, Cache, Manifest};
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
    Config, DiskConfig, DiskRoom, Error, GuestLogs, GuestSamples, Handle, Parts, Remains, State as SandboxState,
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
    /// Milliseconds from the beginning.
    arrives: u64,
    lasts: u64,
    /// Given up by its client after so many milliseconds.
    patience: Option<u64>,
}

const LONGEST: u64 = 100;

fn starts(teams: usize) -> impl Strategy<Value = Vec<Start>> {
    let start = (0..teams, 0..500u64, 1..=LONGEST, prop::option::weighted(0.2, 0..300u64))
        .prop_map(|(team, arrives, lasts, patience)| Start { team, arrives, lasts, patience });
    prop::collection::vec(start, 0..60)
}

/// Runs all starts; returns how long each of them waited, unless it was given up.
async fn simulate(queue: &StartQueue, starts_max: usize, starts: Vec<Start>) -> Vec<(usize, Option<u64>)> {
    let teams: Vec<TeamId> = (0..8).map(|_| TeamId::generate()).collect();
    let at_once = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for Start { team, arrives, lasts, patience } in starts {
        let (queue, at_once, team_id) = (queue.clone(), Arc::clone(&at_once), teams[team]);
        tasks.spawn(async move {
            sleep(Duration::from_millis(arrives)).await;
            let since = Instant::now();
            let start = async {
                let permit = queue.acquire(team_id).await;
                let waited = since.elapsed();
                let work = async {
                    assert!(at_once.fetch_add(1, Ordering::Relaxed) < starts_max, "too many at once");
                    sleep(Duration::from_millis(lasts)).await;
                    at_once.fetch_sub(1, Ordering::Relaxed);
                };
                (permit, waited, work)
            };
            // A start under way goes on; only one that waits is given up.
            let patience = patience.map_or(Duration::MAX, Duration::from_millis);
            let Ok((permit, waited, work)) = timeout(patience, start).await else { return (team, None) };
            permit.run(work).await;
            (team, Some(u64::try_from(waited.as_millis()).expect("short")))
        });
    }
    tasks.join_all().await
}

proptest! {
    #[test]
    fn every_start_has_its_turn_and_no_permit_is_lost(starts_max in 1..5usize, starts in starts(8)) {
        paused(async {
            let queue = queue(starts_max);
            let waits = simulate(&queue, starts_max, starts.clone()).await;
            let given_up = waits.iter().filter(|(_, wait)| wait.is_none()).count();
            assert!(given_up <= starts.iter().filter(|start| start.patience.is_some()).count());
            assert_unused(&queue, starts_max);
        });
    }

    #[test]
    fn one_start_of_a_team_waits_for_no_queue_of_another(
        starts_max in 1..5usize, churn in starts(1), arrives in 0..1000u64
    ) {
        paused(async {
            let lone = Start { team: 1, arrives, lasts: 1, patience: None };
            let waits = simulate(&queue(starts_max), starts_max, [churn, vec![lone]].concat()).await;
            let (_, wait) = waits.into_iter().find(|(team, _)| *team == 1).expect("the lone one");
            // For none but those under way; a timer is late by up to a millisecond.
            assert!(wait.expect("not given up") <= LONGEST + 1, "{wait:?}");
        });
    }
}

#[test]
fn teams_take_turns_and_a_teams_starts_keep_their_order() {
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
fn a_guest_that_never_answers_holds_nobody_up_for_long() {
    paused(async {
        let queue = queue(1);
        let stuck = queue.acquire(TeamId::generate()).await;
        let stuck = tokio::spawn(stuck.run(std::future::pending::<()>()));
        let since = Instant::now();
        let permit = queue.acquire(TeamId::generate()).await;
        assert_eq!(since.elapsed(), PERMIT_LASTS);
        assert!(!stuck.is_finished());
        // Its permit is not released twice.
        stuck.abort();
        assert!(stuck.await.expect_err("aborted").is_cancelled());
        assert_eq!(queue.state().free, 0);
        drop(permit);
        assert_unused(&queue, 1);
    });
}

/// A build of another driver's: it is refused when its start begins, and before a VM is made.
fn foreign_set(folder: &Path) -> ArtifactSet {
    let cache = Cache::open(folder.join("artifacts")).expect("opens");
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
    let draft = cache.begin(manifest.build_id).expect("begins");
    for file in [draft.rootfs(), draft.memory(), draft.state()] {
        std::fs::write(file, "").expect("writes");
    }
    draft.commit(manifest).expect("commits")
}

async fn node(folder: &Path, starts: StartQueue) -> (Arc<Config>, Parts) {
    let analytics = hearth_analytics::Config::new(folder.join("analytics.db"));
    let analytics = Arc::new(Embedded::open(analytics).await.expect("opens"));
    let config = Config {
        folder: folder.join("executions"),
        init_attempt: Duration::from_secs(1),
        init_budget: Duration::from_secs(1),
        logs: GuestLogs { keeper: analytics.clone(), with_output: false },
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
    let parts = Parts {
        network: Pool::open(network).await.expect("needs nothing"),
        driver: Driver::open(&driver, &kernel).await.expect("QEMU is installed"),
        groups: Groups::open(&format!("test-starts-{}", std::process::id())),
        disk: DiskRoom::open(disk).expect("opens"),
        starts,
        remains: Remains::default(),
    };
    (Arc::new(config), parts)
}

async fn failure(handle: &Handle) -> Arc<Error> {
    handle.started().await.expect_err("cannot start")
}

#[tokio::test]
async fn a_sandbox_takes_nothing_before_its_turn_and_can_be_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = queue(1);
    let (config, parts) = node(folder.path(), queue.clone()).await;
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
        crate::start(Arc::clone(&config), parts.clone(), spec, set.clone(), &tasks)
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
    parts.groups.close();
}
