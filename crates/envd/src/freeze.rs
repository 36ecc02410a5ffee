//! Freezes the guest's programs before a snapshot and thaws them after it.
//!
//! ```text
//!   running ──freeze──> frozen (a window) ──unfreeze, /init, or ten minutes──> running
//! ```
//!
//! Control groups are frozen: the two of the daemon's children, or with `mode=hierarchy` also the groups beside the
//! daemon's own. Groups that the guest itself had frozen (a paused container) are recorded when the window opens and
//! remain frozen. One lock covers every operation. Nothing here accesses the disk, because the root file system may be
//! frozen too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Extract};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::failure::Failure;
use crate::state::State;

mod tree;

use tree::Sweep;

/// Default and largest number of groups frozen in hierarchy mode; the caller's `maxCgroups` is capped to the latter.
const GROUPS_DEFAULT: usize = 512;
const GROUPS_MAX: usize = 8192;
/// Interval of checks whether groups are frozen.
const POLL: Duration = Duration::from_millis(2);
/// Longest window. After it the caller is assumed to have failed, and everything is thawed.
const WINDOW_MAX: Duration = Duration::from_secs(600);
/// Interval of retries if a thaw was incomplete.
const RETRY: Duration = Duration::from_secs(1);

/// State of the freeze window. The lock is held during a freeze or a thaw.
#[derive(Debug, Default)]
pub(crate) struct Freezer {
    window: Arc<Mutex<Window>>,
}

#[derive(Debug, Default)]
struct Window {
    /// Count of windows opened and closed; odd while one is open. A watchdog recognizes its window by it.
    generation: u64,
    /// Groups that the guest had frozen before the window opened.
    frozen_by_guest: BTreeSet<PathBuf>,
    /// Groups that the last sweep over the hierarchy froze.
    hierarchy: Option<BTreeSet<PathBuf>>,
}

impl Window {
    fn is_open(&self) -> bool {
        self.generation % 2 == 1
    }
}

/// Set of groups to freeze, reported in the reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Legacy,
    Hierarchy,
}

/// Query parameters. Numbers are parsed later, so that an error can name the parameter.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Parameters {
    max_wait_ms: Option<String>,
    mode: Option<String>,
    max_cgroups: Option<String>,
}

/// Parses a number of the query. A missing one, zero and a negative one all return `None`.
fn positive(name: &'static str, text: Option<&str>) -> Result<Option<u64>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let number: i64 = text.parse().map_err(|_| Failure::parameter(name, format_args!("`{text}` is not a number")))?;
    Ok(u64::try_from(number).ok().filter(|number| *number > 0))
}

/// Result of a freeze; the names are the contract's.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct FreezeReport {
    mode: Mode,
    visited: usize,
    allowlisted: usize,
    truncated: bool,
    pre_frozen: usize,
    requested: usize,
    frozen: usize,
    not_frozen: usize,
    failed: usize,
    unobservable: bool,
    sweep_ms: u64,
    wait_ms: u64,
}

/// State of a frozen hierarchy at the thaw; the names are the contract's.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Audit {
    visited: usize,
    frozen: usize,
    /// Groups that should be frozen and are not: created since, or thawed by another program.
    escaped: usize,
    /// Escaped groups that were thawed.
    violations: usize,
    truncated: bool,
}

pub(crate) async fn freeze(
    Extract(state): Extract<Arc<State>>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(parameters) = query.map_err(|error| Failure::parameter("mode", error.body_text()))?;
    let hierarchy = parameters.mode.as_deref() == Some("hierarchy");
    let wait = positive("maxWaitMs", parameters.max_wait_ms.as_deref())?;
    let bound = positive("maxCgroups", parameters.max_cgroups.as_deref())?;
    let bound = bound.and_then(|bound| usize::try_from(bound).ok()).unwrap_or(GROUPS_DEFAULT).min(GROUPS_MAX);
    let window = state.freezer.lock().await;
    // In a task of its own: a client that disconnects must not leave an incomplete freeze behind.
    let frozen = tokio::spawn(async move { freeze_now(&state, window, hierarchy, bound, wait).await });
    let frozen = frozen.await.map_err(|error| Failure::internal(format!("freezing: {error}")))?;
    if wait.is_none() {
        return Ok((StatusCode::NO_CONTENT, NO_STORE).into_response());
    }
    Ok((NO_STORE, Json(frozen)).into_response())
}

const NO_STORE: [(header::HeaderName, HeaderValue); 1] =
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

async fn freeze_now(
    state: &Arc<State>,
    mut window: OwnedMutexGuard<Window>,
    hierarchy: bool,
    bound: usize,
    wait: Option<u64>,
) -> FreezeReport {
    let Some(groups) = state.groups() else {
        return FreezeReport { unobservable: true, ..FreezeReport::default() };
    };
    let root = groups.root();
    let since = Instant::now();
    if !window.is_open() {
        window.frozen_by_guest = tree::frozen_groups(root, GROUPS_MAX);
        window.generation += 1;
        watch(state, window.generation);
    }
    let own = hierarchy.then(|| tree::own_group(root)).flatten();
    let mode = if own.is_some() { Mode::Hierarchy } else { Mode::Legacy };
    let sweep = tree::freeze(root, own.as_deref(), bound, &window.frozen_by_guest);
    let sweep_time = since.elapsed();
    window.hierarchy = own.map(|_| sweep.requested.clone());
    let since = Instant::now();
    // The lock is held during the wait, so the wait is bounded by the longest window.
    let deadline = since + Duration::from_millis(wait.unwrap_or_default()).min(WINDOW_MAX);
    let frozen = wait_until_frozen(&sweep, deadline).await;
    let Sweep { visited, allowlisted, truncated, pre_frozen, requested, failed } = sweep;
    FreezeReport {
        mode,
        visited,
        allowlisted,
        truncated,
        pre_frozen,
        requested: requested.len(),
        frozen,
        not_frozen: requested.len() - frozen,
        failed,
        unobservable: false,
        sweep_ms: milliseconds(sweep_time),
        wait_ms: milliseconds(since.elapsed()),
    }
}

/// Waits until all groups of a sweep are frozen or the deadline has passed. Returns the number of frozen ones.
async fn wait_until_frozen(sweep: &Sweep, deadline: Instant) -> usize {
    loop {
        let frozen = sweep.requested.iter().filter(|group| tree::is_frozen(group)).count();
        if frozen == sweep.requested.len() || Instant::now() >= deadline {
            return frozen;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Starts the watchdog that thaws a window that stays open for too long.
fn watch(state: &Arc<State>, generation: u64) {
    let state = Arc::clone(state);
    tokio::spawn(async move {
        tokio::time::sleep(WINDOW_MAX).await;
        loop {
            let mut window = state.freezer.lock().await;
            if window.generation != generation {
                return;
            }
            state.log().warn("freezer", "freeze window expired");
            if thaw(&state, &mut window) {
                return;
            }
            drop(window);
            tokio::time::sleep(RETRY).await;
        }
    });
}

pub(crate) async fn unfreeze(Extract(state): Extract<Arc<State>>) -> Result<Response, Failure> {
    // The thaw never waits, so it cannot be cancelled.
    let mut window = state.freezer.lock().await;
    if !thaw(&state, &mut window) {
        return Err(Failure::internal("some control groups could not be thawed"));
    }
    Ok((StatusCode::NO_CONTENT, NO_STORE).into_response())
}

/// Thaws every group that the daemon froze, and always the two of its children. Returns true if all are thawed.
fn thaw(state: &State, window: &mut Window) -> bool {
    let Some(groups) = state.groups() else { return true };
    let complete = tree::thaw(groups.root(), window.is_open().then_some(&window.frozen_by_guest), GROUPS_MAX);
    if complete && window.is_open() {
        *window = Window { generation: window.generation + 1, ..Window::default() };
    }
    complete
}

impl Freezer {
    async fn lock(&self) -> OwnedMutexGuard<Window> {
        Arc::clone(&self.window).lock_owned().await
    }
}

impl State {
    /// Ends the freeze window, if one is open. Returns the audit of a frozen hierarchy. Fast if nothing is frozen.
    pub(crate) async fn end_freeze(&self) -> Option<Audit> {
        let mut window = self.freezer.lock().await;
        if !window.is_open() {
            return None;
        }
        let audit = self
            .groups()
            .zip(window.hierarchy.as_ref())
            .map(|(groups, requested)| audit(groups.root(), requested, &window.frozen_by_guest));
        if !thaw(self, &mut window) {
            self.log().warn("freezer", "some control groups could not be thawed");
        }
        audit
    }
}

fn audit(root: &Path, requested: &BTreeSet<PathBuf>, frozen_by_guest: &BTreeSet<PathBuf>) -> Audit {
    let Some(own) = tree::own_group(root) else { return Audit::default() };
    let now = tree::targets(root, Some(&own), GROUPS_MAX, frozen_by_guest);
    let frozen = now.requested.iter().filter(|group| tree::is_frozen(group)).count();
    let violations = requested.iter().filter(|group| group.exists() && !tree::is_freeze_requested(group)).count();
    Audit { visited: now.visited, frozen, escaped: now.requested.len() - frozen, violations, truncated: now.truncated }
}

/// `POST /fsfreeze`: freezes the root file system on the disk.
pub(crate) async fn fsfreeze() -> Result<Response, Failure> {
    on_root("freezing", crate::sys::freeze_file_system).await
}

/// `POST /fsthaw`.
pub(crate) async fn fsthaw() -> Result<Response, Failure> {
    on_root("thawing", crate::sys::thaw_file_system).await
}

async fn on_root(what: &'static str, act: fn(&std::fs::File) -> std::io::Result<()>) -> Result<Response, Failure> {
    // A freeze first writes dirty pages, which takes time.
    let done = tokio::task::spawn_blocking(move || std::fs::File::open("/").and_then(|root| act(&root))).await;
    let done = done.map_err(|error| Failure::internal(format!("{what} the root file system: {error}")))?;
    done.map_err(|error| Failure::internal(format!("{what} the root file system: {error}")))?;
    Ok((StatusCode::NO_CONTENT, NO_STORE).into_response())
}
