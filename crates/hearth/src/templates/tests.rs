//! Templates in the background, with a maker that needs no VM.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use hearth_api::{Preparation, Preparations};
use hearth_artifact::{ArtifactSet, ArtifactStore, Manifest};
use hearth_builder::{BuiltTemplate, Progress, Unit};
use hearth_stdx::TaskSet;
use hearth_store::{Limits, NewTeam, Store, Team};
use hearth_types::{BuildId, Platform, Resources, TemplateId};
use tokio::sync::mpsc;

use super::plan::Candidate;
use super::*;

/// Step of a maker in a test.
enum Step {
    /// Reports half of the installation.
    Advance,
    Fail,
    Succeed(Vec<BuildId>),
}

/// Maker whose steps come from the test.
struct FakeMaker {
    artifacts: ArtifactStore,
    template_id: TemplateId,
    steps: Mutex<mpsc::Receiver<Step>>,
    made: Mutex<VecDeque<&'static str>>,
}

impl Maker for FakeMaker {
    async fn make(&self, name: &'static str, progress: &dyn Progress) -> Result<BuiltTemplate> {
        self.made.lock().expect("unpoisoned").push_back(name);
        loop {
            let step = std::future::poll_fn(|context| self.steps.lock().expect("unpoisoned").poll_recv(context)).await;
            match step {
                Some(Step::Advance) => {
                    progress.phase("package download", Unit::Steps, Some(2));
                    progress.advance(1, 2);
                }
                Some(Step::Fail) => bail!("the mirror is away"),
                Some(Step::Succeed(superseded)) => {
                    let set = artifact_set(&self.artifacts, &self.template_id, platform());
                    progress.finished();
                    return Ok(BuiltTemplate { set, template_id: self.template_id.clone(), superseded, costs: None });
                }
                None => std::future::pending().await,
            }
        }
    }
}

fn platform() -> Platform {
    Platform {
        driver: "qemu".to_owned(),
        vmm_version: "10".to_owned(),
        machine: "microvm/1".to_owned(),
        cpu_model: "max".to_owned(),
        accelerator: "tcg".to_owned(),
        nic: "tap".to_owned(),
    }
}

fn artifact_set(artifacts: &ArtifactStore, template_id: &TemplateId, platform: Platform) -> ArtifactSet {
    let manifest = Manifest {
        build_id: BuildId::generate(),
        template_id: template_id.clone(),
        content_key: "key".to_owned(),
        resources: Resources { vcpus: 2, memory_mib: 2048, disk_mib: 8192 },
        platform,
        kernel_version: "6.12".to_owned(),
        envd_version: "0.6.13".to_owned(),
        created_at: jiff::Timestamp::now(),
    };
    let draft = artifacts.create_draft(manifest.build_id).expect("creates");
    for path in [draft.rootfs(), draft.memory(), draft.state()] {
        fs::write(path, "x").expect("writes");
    }
    draft.commit(manifest).expect("commits")
}

/// A daemon's parts around the background task.
struct World {
    folder: tempfile::TempDir,
    store: Store,
    team: Team,
    artifacts: ArtifactStore,
    template_id: TemplateId,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = hearth_store::Config::sqlite(&folder.path().join("hearth.db")).expect("UTF-8");
        let store = Store::open(&config).await.expect("opens");
        let new = NewTeam { slug: "team".to_owned(), name: "team".to_owned(), limits: Limits::STANDARD };
        let team = store.create_team(new).await.expect("created");
        let artifacts = ArtifactStore::open(folder.path().join("artifacts")).expect("opens");
        Self { folder, store, team, artifacts, template_id: TemplateId::generate() }
    }

    fn candidate(&self, is_selected: bool, sets: Vec<ArtifactSet>) -> Candidate {
        let _ = self;
        Candidate { name: "tools", alias: "tools".to_owned(), is_selected, sets }
    }

    async fn plan(&self, candidate: Candidate) -> Plan {
        Plan::new(vec![candidate], &platform(), &self.store).await.expect("plans")
    }

    /// Returns the build that the alias refers to.
    async fn resolve(&self) -> Option<BuildId> {
        let reference = "tools".parse().expect("a reference");
        self.store.resolve(&reference, &self.team).await.ok().map(|resolved| resolved.build.id)
    }

    fn states_file(&self) -> std::path::PathBuf {
        self.folder.path().join("templates.json")
    }

    /// Starts to make the templates of a plan.
    fn start(&self, plan: Plan) -> Running {
        let (steps, receiver) = mpsc::channel(8);
        let states = States::publish(self.states_file(), plan.states);
        let tasks = TaskSet::new();
        let maker = Arc::new(FakeMaker {
            artifacts: self.artifacts.clone(),
            template_id: self.template_id.clone(),
            steps: Mutex::new(receiver),
            made: Mutex::default(),
        });
        let background = Background {
            maker: Arc::clone(&maker),
            store: self.store.clone(),
            artifacts: self.artifacts.clone(),
            states: states.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn("templates", background.run(plan.jobs, tasks.token()));
        Running { steps, states, tasks, maker }
    }
}

struct Running {
    steps: mpsc::Sender<Step>,
    states: States,
    tasks: TaskSet,
    maker: Arc<FakeMaker>,
}

impl Running {
    async fn step(&self, step: Step) {
        self.steps.send(step).await.expect("the maker lives");
    }

    async fn wait_for(&self, state: Preparation) {
        let mut states = self.states.subscribe();
        let reached = states.wait_for(|states| states.get("tools") == Some(&state));
        let limit = Duration::from_secs(20);
        assert!(tokio::time::timeout(limit, reached).await.is_ok(), "{state:?}: {:?}", states.borrow());
    }
}

const MISSING: Preparation = Preparation::Preparing { percent: 0, has_earlier_build: false };

fn published_state(path: &Path) -> Option<Published> {
    published(path).get("tools").copied()
}

#[tokio::test]
async fn a_missing_template_is_made_and_registered() {
    let world = World::new().await;
    let running = world.start(world.plan(world.candidate(true, Vec::new())).await);
    running.wait_for(MISSING).await;
    assert_eq!(world.resolve().await, None);
    running.step(Step::Advance).await;
    running.wait_for(Preparation::Preparing { percent: 11, has_earlier_build: false }).await;
    assert_eq!(published_state(&world.states_file()), Some(Published::Preparing { percent: 11 }));
    running.step(Step::Succeed(Vec::new())).await;
    running.wait_for(Preparation::Ready).await;
    let sets = world.artifacts.list().expect("lists");
    assert_eq!(world.resolve().await, Some(sets[0].manifest().build_id));
    assert_eq!(running.tasks.shutdown(Duration::from_secs(5)).await, Vec::<&str>::new());
    running.states.unpublish();
    assert_eq!(published_state(&world.states_file()), None);
}

#[tokio::test]
async fn an_earlier_build_is_used_until_the_new_one_is_ready() {
    let world = World::new().await;
    let earlier = artifact_set(&world.artifacts, &world.template_id, platform());
    let earlier_id = earlier.manifest().build_id;
    let plan = world.plan(world.candidate(true, vec![earlier])).await;
    assert_eq!(plan.states["tools"], Preparation::Preparing { percent: 0, has_earlier_build: true });
    assert_eq!(world.resolve().await, Some(earlier_id));
    let running = world.start(plan);
    running.step(Step::Succeed(vec![earlier_id])).await;
    running.wait_for(Preparation::Ready).await;
    assert!(world.resolve().await.is_some_and(|build_id| build_id != earlier_id));
    // Its artifacts stay for creates that have resolved it already.
    assert!(world.artifacts.get(earlier_id).is_ok());
    assert_eq!(running.tasks.shutdown(Duration::from_secs(5)).await, Vec::<&str>::new());
}

#[tokio::test]
async fn a_failure_is_reported_and_a_stop_ends_everything() {
    let world = World::new().await;
    let running = world.start(world.plan(world.candidate(true, Vec::new())).await);
    running.step(Step::Fail).await;
    running.wait_for(Preparation::Failed { has_earlier_build: false }).await;
    assert_eq!(published_state(&world.states_file()), Some(Published::Failed));
    // It waits for the next attempt.
    assert_eq!(running.tasks.shutdown(Duration::from_secs(5)).await, Vec::<&str>::new());
    assert_eq!(*running.maker.made.lock().expect("unpoisoned"), ["tools"]);

    let running = world.start(world.plan(world.candidate(true, Vec::new())).await);
    running.step(Step::Advance).await;
    running.wait_for(Preparation::Preparing { percent: 11, has_earlier_build: false }).await;
    // It is being made.
    assert_eq!(running.tasks.shutdown(Duration::from_secs(5)).await, Vec::<&str>::new());
    let Running { maker, .. } = running;
    assert!(Arc::into_inner(maker).is_some(), "the maker is still in use");
    assert!(world.artifacts.list().expect("lists").is_empty());
}

#[tokio::test]
async fn templates_that_are_not_selected_are_used_if_they_can_be_restored() {
    let world = World::new().await;
    let states = |state| Preparations::from([("tools".to_owned(), state)]);
    let plan = world.plan(world.candidate(false, Vec::new())).await;
    assert_eq!((plan.jobs.len(), plan.states), (0, states(Preparation::NotSelected)));
    let foreign = Platform { accelerator: "kvm".to_owned(), ..platform() };
    let foreign = artifact_set(&world.artifacts, &world.template_id, foreign);
    let plan = world.plan(world.candidate(true, vec![foreign.clone()])).await;
    assert_eq!((plan.jobs.len(), plan.states), (1, states(MISSING)));
    let plan = world.plan(world.candidate(false, vec![foreign.clone()])).await;
    assert_eq!((plan.jobs.len(), plan.states), (0, states(Preparation::NotSelected)));
    assert_eq!(world.resolve().await, None);
    let own = artifact_set(&world.artifacts, &world.template_id, platform());
    let plan = world.plan(world.candidate(false, vec![foreign, own.clone()])).await;
    assert_eq!((plan.jobs.len(), plan.states), (0, states(Preparation::Ready)));
    assert_eq!(world.resolve().await, Some(own.manifest().build_id));
}
