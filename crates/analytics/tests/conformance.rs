//! What every backend of [`Logs`], [`Samples`] and [`Usages`] does, as one suite over an empty one.

#[path = "conformance/bounds.rs"]
mod bounds;
#[path = "conformance/lines.rs"]
mod lines;
#[path = "conformance/samples.rs"]
mod samples;
#[path = "conformance/usages.rs"]
mod usages;
#[path = "conformance/windows.rs"]
mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{Config, Direction, Embedded, Level, LogLine, Logs, Query, Samples, Source, Stored, Usages};
use hearth_types::{ExecutionId, SandboxId, TeamId, TemplateId};
use jiff::Timestamp;
use tempfile::TempDir;

/// An empty backend.
struct Fixture {
    logs: Arc<dyn Logs>,
    samples: Arc<dyn Samples>,
    usages: Arc<dyn Usages>,
    _folder: TempDir,
}

impl Fixture {
    async fn embedded() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::new(folder.path().join("analytics.db"));
        let embedded = Arc::new(Embedded::open(config).await.expect("an empty file"));
        Self { logs: embedded.clone(), samples: embedded.clone(), usages: embedded, _folder: folder }
    }

    async fn append(&self, source: &Source, lines: &[LogLine]) {
        self.logs.append(source, lines.to_vec()).await.expect("the lines are kept");
    }

    async fn query(&self, source: &Source, query: &Query) -> Vec<Stored> {
        self.logs.query(source.team_id, &source.sandbox_id, query).await.expect("the lines are read")
    }

    async fn all(&self, source: &Source) -> Vec<Stored> {
        self.query(source, &everything()).await
    }
}

fn source() -> Source {
    Source {
        team_id: TeamId::generate(),
        sandbox_id: SandboxId::generate(),
        template_id: Some(TemplateId::generate()),
        execution_id: ExecutionId::generate(),
    }
}

/// All lines, oldest first.
fn everything() -> Query {
    Query { from: None, until: None, direction: Direction::Forward, limit: 1000, level_min: None, search: None }
}

/// A line that was said a while ago, and cannot be confused with others.
fn line(message: &str) -> LogLine {
    LogLine {
        at: ago(60_000_000),
        level: Level::Info,
        logger: "process".to_owned(),
        message: message.to_owned(),
        fields: BTreeMap::new(),
    }
}

/// A time as exact as it is kept.
fn ago(micros: u64) -> Timestamp {
    let time = Timestamp::now() - Duration::from_micros(micros);
    Timestamp::from_microsecond(time.as_microsecond()).expect("a time")
}

fn messages(stored: &[Stored]) -> Vec<&str> {
    stored.iter().map(|stored| stored.line.message.as_str()).collect()
}

fn texts<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

macro_rules! conformance {
    ($backend:ident: $($module:ident::$case:ident,)*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$module::$case(&super::Fixture::$backend().await).await;
                }
            )*
        }
    };
}

conformance! {
    embedded:
    lines::a_line_comes_back_as_it_was_said,
    lines::any_text_comes_back_as_it_was_said,
    lines::nothing_is_nothing,
    lines::lines_of_one_moment_stay_in_order,
    lines::a_log_goes_on_over_executions,
    lines::other_teams_and_sandboxes_see_nothing,
    lines::times_that_cannot_be_true_are_those_of_arrival,
    lines::appends_at_once_lose_nothing,
    lines::dropped_appends_leave_whole_lines,
    windows::windows_agree_with_a_model,
    windows::the_edges_of_a_window_are_exact,
    windows::searching_takes_texts_literally,
    bounds::long_lines_are_cut_and_say_so,
    bounds::an_answer_has_so_many_lines,
    bounds::an_answer_has_so_many_bytes,
    samples::a_sample_comes_back_as_it_was_taken,
    samples::windows_of_samples_agree_with_a_model,
    samples::samples_that_cannot_be_true_are_brought_within_bounds,
    samples::other_teams_and_sandboxes_have_other_samples,
    samples::the_latest_are_those_of_the_sandboxes_that_have_one,
    samples::without_a_step_the_length_decides,
    usages::usages_come_back_in_windows_and_steps,
    usages::no_usage_is_nothing,
}
