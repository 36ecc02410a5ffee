//! `/nodes`: how nodes are, and what operators want of them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use hearth_api_types::node::{DiskMetrics, Node, NodeChange, NodeMachine, NodeMetrics, NodeStatus, NodesQuery};
use hearth_cluster_api::{Daemon, Sandboxes};
use hearth_store::{NodeIntent, WantedNode};
use hearth_types::{Disk, HugePages, Load, Machine};
use http::StatusCode;

use super::Member;
use super::sight::{Condition, Sight};
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Operator;
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::NodePath;
use crate::live::expiry::now;

/// The cluster that all nodes belong to. E2B calls the one that is built in so.
const CLUSTER_ID: &str = "00000000-0000-0000-0000-000000000000";

/// List nodes, by name
///
/// Those of a cluster; there is one.
#[utoipa::path(
    get, path = "/nodes", tag = tag::OPERATORS, operation_id = "listNodes",
    params(NodesQuery),
    responses((status = 200, description = "All of them, and how they are.", body = Vec<Node>))
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Node>>, Failure> {
    if !is_ours(cluster(query.as_deref())?.as_deref())? {
        return Ok(Json(Vec::new()));
    }
    let describe = |member: &Arc<Member>| {
        let sight = member.sight();
        let starting = sight.last().map_or(0, |status| status.sandboxes.starting);
        Node { sandbox_starting_count: Some(starting), ..describe(member, &sight) }
    };
    Ok(Json(control.nodes.all().map(describe).collect()))
}

/// Read how a node is
#[utoipa::path(
    get, path = "/nodes/{nodeID}", tag = tag::OPERATORS, operation_id = "getNode",
    params(NodePath, NodesQuery),
    responses(
        (status = 200, description = "As it said last.", body = Node),
        (status = 404, description = "There is no such node."),
    )
)]
pub(crate) async fn get(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    NodePath(id): NodePath,
    RawQuery(query): RawQuery,
) -> Result<Json<Node>, Failure> {
    let member = find(&control, &id, cluster(query.as_deref())?.as_deref())?;
    let sight = member.sight();
    Ok(Json(describe(&member, &sight)))
}

/// Say what a node is to do
///
/// From now on, over restarts: take new sandboxes (`ready`), or keep those it has and take no new ones (`draining`, `standby`).
#[utoipa::path(
    post, path = "/nodes/{nodeID}", tag = tag::OPERATORS, operation_id = "changeNode",
    params(NodePath), request_body = NodeChange,
    responses(
        (status = 204, description = "It does so."),
        (status = 404, description = "There is no such node."),
        (status = 409, description = "A node gets into that status by itself."),
    )
)]
pub(crate) async fn change(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    NodePath(id): NodePath,
    body: Body,
) -> Result<StatusCode, Failure> {
    let NodeChange { status, cluster_id } = body::required(&control.config, body).await?;
    let member = find(&control, &id, cluster_id.as_deref())?;
    let intent = match status {
        NodeStatus::Ready => NodeIntent::Ready,
        NodeStatus::Draining => NodeIntent::Draining,
        NodeStatus::Standby => NodeIntent::Standby,
        NodeStatus::Connecting | NodeStatus::Unhealthy => {
            return Err(Failure::new(
                StatusCode::CONFLICT,
                "a node gets into that status by itself: set ready, draining or standby",
            ));
        }
    };
    let wanted = WantedNode { node_id: member.id.clone(), intent, changed_at: now() };
    let kept = control.store.want_node(&wanted).await;
    kept.map_err(|error| Failure::internal("keeping what is wanted of a node", &error))?;
    member.sight().want(intent, wanted.changed_at);
    tracing::info!(node = %member.id, intent = intent.as_str(), "an operator changed what a node is to do");
    Ok(StatusCode::NO_CONTENT)
}

fn find(control: &Control, id: &str, cluster_id: Option<&str>) -> Result<Arc<Member>, Failure> {
    let found = match is_ours(cluster_id)? {
        // What cannot be a name is none of a node.
        true => id.parse().ok().and_then(|id| control.nodes.find(&id)),
        false => None,
    };
    found.ok_or_else(|| Failure::not_found("there is no such node"))
}

/// The cluster that a query names.
fn cluster(query: Option<&str>) -> Result<Option<String>, Failure> {
    let NodesQuery { cluster_id } = NodesQuery::parse(query.unwrap_or_default()).map_err(Failure::invalid)?;
    Ok(cluster_id)
}

fn is_ours(cluster_id: Option<&str>) -> Result<bool, Failure> {
    let Some(text) = cluster_id else { return Ok(true) };
    let id: uuid::Uuid = text.parse().map_err(|_| Failure::bad_request("invalid cluster ID"))?;
    Ok(id.is_nil())
}

fn describe(member: &Member, sight: &Sight) -> Node {
    let (condition, since) = sight.condition();
    let status = match condition {
        Condition::Does(NodeIntent::Ready) => NodeStatus::Ready,
        Condition::Does(NodeIntent::Draining) => NodeStatus::Draining,
        Condition::Does(NodeIntent::Standby) => NodeStatus::Standby,
        Condition::Connecting => NodeStatus::Connecting,
        Condition::Unhealthy => NodeStatus::Unhealthy,
    };
    let unknown = Node {
        id: member.id.to_string(),
        service_instance_id: String::new(),
        cluster_id: CLUSTER_ID.to_owned(),
        version: String::new(),
        commit: String::new(),
        status,
        status_changed_at: since,
        sandbox_count: 0,
        sandbox_starting_count: None,
        create_successes: 0,
        create_fails: 0,
        machine_info: NodeMachine::default(),
        metrics: NodeMetrics::default(),
    };
    let Some(last) = sight.last() else { return unknown };
    let Daemon { instance_id, version, commit } = last.daemon.clone();
    let Sandboxes { running, creates_succeeded, creates_failed, .. } = last.sandboxes;
    let Machine { cpu_family, cpu_model, cpu_model_name, cpu_architecture } = last.machine.clone();
    Node {
        service_instance_id: instance_id,
        version,
        commit,
        sandbox_count: running,
        create_successes: creates_succeeded,
        create_fails: creates_failed,
        machine_info: NodeMachine { cpu_family, cpu_model, cpu_model_name, cpu_architecture },
        metrics: metrics(last.sandboxes, last.load.clone()),
        ..unknown
    }
}

fn metrics(sandboxes: Sandboxes, load: Option<Load>) -> NodeMetrics {
    let allocated = NodeMetrics {
        allocated_cpu: sandboxes.vcpus_allocated,
        allocated_memory_bytes: sandboxes.memory_allocated_bytes,
        ..NodeMetrics::default()
    };
    let Some(load) = load else { return allocated };
    let Load { cpu_count, cpu_percent, memory_total_bytes, memory_used_bytes, huge_pages, disks } = load;
    let HugePages { total, used, reserved, page_bytes } = huge_pages;
    NodeMetrics {
        cpu_percent,
        cpu_count,
        memory_used_bytes,
        memory_total_bytes,
        huge_pages_total: total,
        huge_pages_used: used,
        huge_pages_reserved: reserved,
        huge_page_size_bytes: page_bytes,
        disks: disks.into_iter().map(disk).collect(),
        ..allocated
    }
}

fn disk(disk: Disk) -> DiskMetrics {
    let Disk { mount_point, device, filesystem_type, used_bytes, total_bytes } = disk;
    DiskMetrics { mount_point, device, filesystem_type, used_bytes, total_bytes }
}
