//! Latency of reads at a steady rate, while a thousand sandboxes are running.
//!
//! The control role is the real one, on SQLite. A thousand microVMs do not fit on a small machine, so a fake node only
//! reports that it runs them. The bound is the latency of the same server at the same rate for `/health`, which reads
//! nothing.

mod node;
mod timers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use hearth_analytics::Embedded;
use hearth_api::{Analytics, Api};
use hearth_catalog::Catalog;
use hearth_proxy::serve;
use hearth_store::{Alias, KeySecret, Limits, NewBuild, NewTeam, Store};
use hearth_types::{BuildId, Resources, Secret, Tag, TemplateId};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};

/// Goal for the latency, in milliseconds.
const P99_MS_MAX: f64 = 5.0;
const REQUESTS_PER_SECOND: u32 = 500;
/// Concurrent creates.
const CREATING_MAX: usize = 32;

/// Number and size of the measurements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) sandboxes: usize,
    pub(crate) seconds: u32,
    /// Running sandboxes during the measurement of timers.
    pub(crate) timers: usize,
    /// Sandboxes of those that expire.
    pub(crate) expiring: usize,
}

/// Control role with many sandboxes.
struct Control {
    api: Api,
    store: Store,
    analytics: Arc<Embedded>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<usize>,
    address: SocketAddr,
    key: String,
    http: Client<HttpConnector, Full<Bytes>>,
    node: node::FakeNode,
    _folder: TempDir,
}

impl Control {
    async fn start(sandboxes_max: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let sqlite = hearth_store::Config::sqlite(&folder.path().join("hearth.db")).context("the path is not UTF-8")?;
        let store = Store::open(&sqlite).await?;
        let limits = Limits { sandboxes_max, sandbox_length_max: Duration::from_secs(24 * 3600), ..Limits::STANDARD };
        let new = NewTeam { slug: "bench".to_owned(), name: "bench".to_owned(), limits };
        let team = store.create_team(new).await?;
        let key = KeySecret::generate();
        store.create_api_key(team.id, "bench", &key).await?;
        store.register_build(base()).await?;
        let analytics = hearth_analytics::Config::new(folder.path().join("analytics.db"));
        let analytics = Arc::new(Embedded::open(analytics).await?);
        let config = hearth_api::Config::new(Secret::new("bench"), None);
        let fake = node::FakeNode::default();
        let node = fake.serve(&folder.path().join("node.sock"))?;
        let recorded = Analytics::new(Arc::clone(&analytics));
        let (_, preparations) = tokio::sync::watch::channel(hearth_api::Preparations::new());
        let api = Api::start(config, store.clone(), Catalog::in_memory(), recorded, vec![node], preparations).await?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let bounds = serve::Config {
            connections_max: 4096,
            idle_timeout: serve::IDLE_TIMEOUT,
            drain_timeout: Duration::from_secs(1),
        };
        let served = tokio::spawn(serve::serve(listener, api.router(), bounds, stop.clone()));
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).build(connector);
        let key = key.expose().to_owned();
        Ok(Self { api, store, analytics, stop, served, address, key, http, node: fake, _folder: folder })
    }

    /// Sends a request and returns the body of a successful reply.
    async fn request(&self, method: Method, path: &str, body: &'static str) -> Result<Bytes> {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::builder().method(method).uri(uri).header("x-api-key", &self.key).body(body.into())?;
        let response = self.http.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    async fn create(&self) -> Result<String> {
        let body = r#"{"templateID":"base","timeout":36000,"metadata":{"purpose":"benchmark","user":"u-1"}}"#;
        let created: Value = serde_json::from_slice(&self.request(Method::POST, "/v2/sandboxes", body).await?)?;
        Ok(created["sandboxID"].as_str().context("no sandboxID in the reply")?.to_owned())
    }

    async fn create_many(&self, count: usize) -> Result<Vec<String>> {
        let created = stream::iter(0..count).map(|_| self.create()).buffer_unordered(CREATING_MAX);
        created.try_collect().await.context("creating sandboxes")
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.served.await?;
        self.api.shutdown().await;
        self.analytics.close().await;
        self.store.close().await;
        Ok(())
    }
}

fn base() -> NewBuild {
    let now = jiff::Timestamp::now();
    NewBuild {
        template_id: TemplateId::generate(),
        team_id: None,
        public: true,
        alias: Alias { namespace: None, name: "base".to_owned() },
        tag: Tag::default(),
        build_id: BuildId::generate(),
        resources: Resources { vcpus: 2, memory_mib: 512, disk_mib: 1024 },
        envd_version: "0.6.4".to_owned(),
        kernel_version: "6.12".to_owned(),
        created_at: now,
        finished_at: now,
    }
}

pub(crate) async fn measure(report: &mut Report, workload: Workload) -> Result<()> {
    let Workload { sandboxes, seconds, timers, expiring } = workload;
    let control = Arc::new(Control::start(u32::try_from(timers.max(sandboxes))?).await?);
    let since = Instant::now();
    let ids = control.create_many(sandboxes).await?;
    let rate = sandboxes as f64 / since.elapsed().as_secs_f64();
    report.plain("creates of the control role alone (fake node)", "per s", rate, None);
    let series = [
        ("GET /health", vec!["/health".to_owned()]),
        ("GET /v2/sandboxes", vec!["/v2/sandboxes".to_owned()]),
        ("GET /sandboxes/{id}", ids.iter().map(|id| format!("/sandboxes/{id}")).collect()),
    ];
    let mut bound = None;
    for (name, paths) in series {
        let times = at_steady_rate(&control, &paths, seconds).await.context(name)?;
        let Percentiles { p50, p99, .. } = Percentiles::of(times);
        for (percentile, time, of) in [("p50", p50, 0), ("p99", p99, 1)] {
            let name = format!("{name}, {sandboxes} sandboxes, {REQUESTS_PER_SECOND} per s, {percentile}");
            let time = milliseconds(time);
            match bound {
                None => report.plain(&name, "ms", time, None),
                Some(bounds) => {
                    let goal = (of == 1).then_some(Goal::AtMost(P99_MS_MAX));
                    report.bounded(&name, "ms", time, <[f64; 2]>::from(bounds)[of], goal);
                }
            }
        }
        bound = bound.or(Some((milliseconds(p50), milliseconds(p99))));
    }
    control.create_many(timers.saturating_sub(sandboxes)).await?;
    timers::measure(report, &control, &ids[..expiring.min(ids.len())], timers).await?;
    Arc::into_inner(control).context("a request is still running")?.stop().await
}

/// Sends requests at a steady rate, even if earlier ones have no reply yet, and returns their latencies.
///
/// Each latency counts from the time at which the request was due, so that a stalled server does not reduce the load.
async fn at_steady_rate(control: &Arc<Control>, paths: &[String], seconds: u32) -> Result<Vec<Duration>> {
    let mut clock = tokio::time::interval(Duration::from_secs(1) / REQUESTS_PER_SECOND);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    for number in 0..REQUESTS_PER_SECOND * seconds {
        let due = clock.tick().await;
        let (control, path) = (Arc::clone(control), paths[number as usize % paths.len()].clone());
        requests.spawn(async move {
            control.request(Method::GET, &path, "").await?;
            anyhow::Ok(due.elapsed())
        });
    }
    let mut times = Vec::new();
    while let Some(time) = requests.join_next().await {
        times.push(time??);
    }
    Ok(times)
}
