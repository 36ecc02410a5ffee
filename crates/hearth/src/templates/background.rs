//! The task that makes templates, one after another.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hearth_api::Preparation;
use hearth_artifact::ArtifactStore;
use hearth_builder::{BuiltTemplate, Progress};
use hearth_stdx::{Backoff, TaskSet};
use hearth_store::Store;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::percent::PercentReporter;
use super::states::States;
use super::{Weight, low_priority, register, superseded};
use crate::progress::{ProgressDisplay, print_line};

/// Pause after the first failure of a template. Failures of mirrors and networks often end within a minute.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(60);
/// Longest pause between two attempts. An attempt that always fails costs minutes of processor time.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// Makes templates. Tests replace it, so that they need no VM.
pub(crate) trait Maker: Send + Sync + 'static {
    /// Makes a template unless a current build exists. Cancel safe.
    fn make(&self, name: &'static str, progress: &dyn Progress) -> impl Future<Output = Result<BuiltTemplate>>;
}

/// A template to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) alias: String,
    /// Set if an earlier build is registered, and this host can restore it.
    pub(crate) has_earlier_build: bool,
}

/// The parts of the daemon that making templates needs.
pub(crate) struct Background<M> {
    pub(crate) maker: Arc<M>,
    pub(crate) store: Store,
    pub(crate) artifacts: ArtifactStore,
    pub(crate) states: States,
    /// Tasks that remove superseded builds.
    pub(crate) tasks: TaskSet,
}

/// Job with the time of its next attempt.
struct Attempt {
    job: Job,
    due: Instant,
    backoff: Backoff,
}

impl<M: Maker> Background<M> {
    /// Makes all templates. A failed one is retried after a pause, until it succeeds or `stop`.
    pub(crate) async fn run(self, jobs: Vec<Job>, stop: CancellationToken) {
        let first = Instant::now();
        let backoff = Backoff::new(RETRY_PAUSE_MIN, RETRY_PAUSE_MAX);
        let mut attempts: Vec<Attempt> =
            jobs.into_iter().map(|job| Attempt { job, due: first, backoff: backoff.clone() }).collect();
        // The sort is stable, so that the first attempts have the order of the jobs.
        while !attempts.is_empty() {
            attempts.sort_by_key(|attempt| attempt.due);
            let mut attempt = attempts.remove(0);
            if stop.run_until_cancelled(tokio::time::sleep_until(attempt.due)).await.is_none() {
                return;
            }
            match self.attempt(&attempt.job, &stop).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let pause = attempt.backoff.advance();
                    self.report_failure(&attempt.job, &error, pause);
                    attempts.push(Attempt { due: Instant::now() + pause, ..attempt });
                }
            }
        }
    }

    /// Makes and registers a template; returns false at `stop`.
    async fn attempt(&self, job: &Job, stop: &CancellationToken) -> Result<bool> {
        let Job { name, alias, has_earlier_build } = job.clone();
        let start = Instant::now();
        let (maker, states, reported) = (Arc::clone(&self.maker), self.states.clone(), alias.clone());
        states.set(&alias, Preparation::Preparing { percent: 0, has_earlier_build });
        let work = move || async move {
            let report = |percent| states.set(&reported, Preparation::Preparing { percent, has_earlier_build });
            maker.make(name, &PercentReporter::new(ProgressDisplay::in_background(name), report)).await
        };
        let Some(built) = low_priority::run(work, stop.clone()).await? else { return Ok(false) };
        let BuiltTemplate { set, superseded, .. } = built?;
        register(&self.store, &alias, &set).await?;
        self.states.set(&alias, Preparation::Ready);
        let (build_id, weight) = (set.manifest().build_id, Weight::of(&set));
        let Weight { disk_bytes, memory_bytes } = weight;
        let seconds = start.elapsed().as_secs();
        tracing::info!(template = name, %build_id, seconds, disk_bytes, memory_bytes, "template ready");
        print_line(&format!(
            "Template {name} is ready after {:.1} min: {weight}.",
            start.elapsed().as_secs_f64() / 60.0
        ));
        if !superseded.is_empty() {
            let (store, artifacts) = (self.store.clone(), self.artifacts.clone());
            let removal = superseded::remove(superseded, store, artifacts, self.tasks.token());
            self.tasks.spawn("superseded builds", removal);
        }
        Ok(true)
    }

    fn report_failure(&self, job: &Job, error: &anyhow::Error, pause: Duration) {
        let Job { name, alias, has_earlier_build } = job;
        self.states.set(alias, Preparation::Failed { has_earlier_build: *has_earlier_build });
        tracing::error!(
            template = name,
            error = format!("{error:#}"),
            retry_seconds = pause.as_secs(),
            advice = format!("`hearth doctor` checks this host; --templates without {name} disables it"),
            "template not prepared"
        );
    }
}
