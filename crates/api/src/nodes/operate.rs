//! `/nodes`: status of the nodes, and the operators' intent for each.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use hearth_api_types::node::{DiskMetrics, Node, NodeChange, NodeMachine, NodeMetrics, NodeStatus, NodesQuery};
use hearth_cluster_api::{Daemon, Sandboxes};
use hearth_store::{DesiredNode, NodeIntent};
use hearth_types::{Disk, HugePages, Load, Machine};
use http::StatusCode;

use super::Member;
use super::view::{Condition, NodeView};
use crate::control::Control;
use crate::failure::Failure;
use crate::http::auth::Operator;
use crate::http::body;
use crate::http::document::tag;
use crate::http::path::NodePath;
use crate::live::expiry::now;

/// Id of the only cluster. E2B uses this id for its built-in cluster.
const CLUSTER_ID: &str = "00000000-0000-0000-0000-000000000000";

/// List nodes
///
/// Returns the nodes of a cluster, by id. There is one cluster, whose id is all zeros; for other ids the list is empty.
#[utoipa::path(
    get, path = "/nodes", tag = tag::OPERATORS, operation_id = "listNodes",
    params(NodesQuery),
    responses((status = 200, description = "All nodes with their status and load.", body = Vec<Node>))
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Node>>, Failure> {
    if !is_own_cluster(cluster(query.as_deref())?.as_deref())? {
        return Ok(Json(Vec::new()));
    }
    let describe = |member: &Arc<Member>| {
        let view = member.view();
        let starting = view.last().map_or(0, |status| status.sandboxes.starting);
        Node { sandbox_starting_count: Some(starting), ..describe(member, &view) }
    };
    Ok(Json(control.nodes.all().map(describe).collect()))
}

/// Read the status and load of a node
///
/// Returns the latest values that the node sent; after the node is lost, these are the last ones before.
#[utoipa::path(
    get, path = "/nodes/{nodeID}", tag = tag::OPERATORS, operation_id = "getNode",
    params(NodePath, NodesQuery),
    responses(
        (status = 200, description = "Status and load of the node.", body = Node),
        (status = 404, description = "The node does not exist."),
    )
)]
pub(crate) async fn get(
    State(control): State<Arc<Control>>,
    Operator: Operator,
    NodePath(id): NodePath,
    RawQuery(query): RawQuery,
) -> Result<Json<Node>, Failure> {
    let member = find(&control, &id, cluster(query.as_deref())?.as_deref())?;
    let view = member.view();
    Ok(Json(describe(&member, &view)))
}

/// Set whether a node takes new sandboxes
///
/// A node with the status `ready` takes new sandboxes. With `draining` or `standby` it takes no new ones, and its running
/// sandboxes continue. The setting persists over restarts of the server.
#[utoipa::path(
    post, path = "/nodes/{nodeID}", tag = tag::OPERATORS, operation_id = "changeNode",
    params(NodePath), request_body = NodeChange,
    responses(
        (status = 204, description = "The status is set."),
        (status = 404, description = "The node does not exist."),
        (status = 409, description = "The status cannot be set: only the server assigns `connecting` and `unhealthy`."),
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
                "a node enters this status by itself: set ready, draining or standby",
            ));
        }
    };
    let change = DesiredNode { node_id: member.id.clone(), intent, changed_at: now() };
    let stored = control.store.set_desired_node(&change).await;
    stored.map_err(|error| Failure::internal("storing the intent for a node", &error))?;
    member.view().set_intent(intent, change.changed_at);
    tracing::info!(node = %member.id, intent = intent.as_str(), "node intent changed by operator");
    Ok(StatusCode::NO_CONTENT)
}

fn find(control: &Control, id: &str, cluster_id: Option<&str>) -> Result<Arc<Member>, Failure> {
    let found = match is_own_cluster(cluster_id)? {
        // A text that is not a node id names no node.
        true => id.parse().ok().and_then(|id| control.nodes.find(&id)),
        false => None,
    };
    found.ok_or_else(|| Failure::not_found("node not found"))
}

/// Returns the cluster id of a query, if it has one.
fn cluster(query: Option<&str>) -> Result<Option<String>, Failure> {
    let NodesQuery { cluster_id } = NodesQuery::parse(query.unwrap_or_default()).map_err(Failure::invalid)?;
    Ok(cluster_id)
}

/// Returns true if the id is absent or that of the only cluster.
fn is_own_cluster(cluster_id: Option<&str>) -> Result<bool, Failure> {
    let Some(text) = cluster_id else { return Ok(true) };
    let id: uuid::Uuid = text.parse().map_err(|_| Failure::bad_request("invalid cluster ID"))?;
    Ok(id.is_nil())
}

fn describe(member: &Member, view: &NodeView) -> Node {
    let (condition, since) = view.condition();
    let status = match condition {
        Condition::Reachable(NodeIntent::Ready) => NodeStatus::Ready,
        Condition::Reachable(NodeIntent::Draining) => NodeStatus::Draining,
        Condition::Reachable(NodeIntent::Standby) => NodeStatus::Standby,
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
    let Some(last) = view.last() else { return unknown };
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
