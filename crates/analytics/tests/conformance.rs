//! Conformance suite for all backends of [`Logs`], [`Samples`] and [`Usages`], each case on an empty backend.

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

use hearth_analytics::{Config, Direction, Embedded, Level, LogLine, Logs, Query, Samples, Source, StoredLine, Usages};
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
        self.logs.append(source, lines.to_vec()).await.expect("the lines are stored");
    }

    async fn query(&self, source: &Source, query: &Query) -> Vec<StoredLine> {
        self.logs.query(source.team_id, &source.sandbox_id, query).await.expect("the lines are read")
    }

    async fn all(&self, source: &Source) -> Vec<StoredLine> {
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

/// Query for all lines, oldest first.
fn everything() -> Query {
    Query { from: None, until: None, direction: Direction::Forward, limit: 1000, level_min: None, search: None }
}

/// A line from a minute ago, identified by its message.
fn line(message: &str) -> LogLine {
    LogLine {
        at: ago(60_000_000),
        level: Level::Info,
        logger: "process".to_owned(),
        message: message.to_owned(),
        fields: BTreeMap::new(),
    }
}

/// A past time in whole microseconds, like stored times.
fn ago(micros: u64) -> Timestamp {
    let time = Timestamp::now() - Duration::from_micros(micros);
    Timestamp::from_microsecond(time.as_microsecond()).expect("a time")
}

fn messages(stored: &[StoredLine]) -> Vec<&str> {
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
    lines::a_line_is_returned_as_appended,
    lines::any_text_is_returned_as_appended,
    lines::no_lines_are_no_error,
    lines::lines_of_one_microsecond_stay_in_order,
    lines::a_log_spans_executions,
    lines::other_teams_and_sandboxes_are_isolated,
    lines::implausible_times_become_the_time_of_arrival,
    lines::parallel_appends_lose_no_line,
    lines::dropped_appends_store_complete_lines,
    windows::windows_agree_with_a_model,
    windows::the_bounds_of_a_window_are_exact,
    windows::search_texts_are_literal,
    bounds::long_lines_are_truncated_and_marked,
    bounds::the_lines_of_a_reply_are_bounded,
    bounds::the_bytes_of_a_reply_are_bounded,
    samples::a_sample_is_returned_as_recorded,
    samples::windows_of_samples_agree_with_a_model,
    samples::implausible_samples_are_limited_to_bounds,
    samples::samples_of_other_teams_and_sandboxes_are_isolated,
    samples::latest_returns_the_newest_sample_of_each_sandbox,
    samples::the_default_step_depends_on_the_length,
    usages::usages_are_returned_in_windows_and_steps,
    usages::no_usages_are_no_error,
}
