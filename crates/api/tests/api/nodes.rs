//! Routes for operators to read and change nodes.

use serde_json::{Value, json};

use crate::client::Reply;
use crate::world::{ADMIN_TOKEN, World, config};

const CLUSTER: &str = "00000000-0000-0000-0000-000000000000";
const BASE: &str = r#"{"templateID":"base"}"#;

impl World {
    async fn as_operator(&self, method: &str, path: &str, body: &str) -> Reply {
        self.client.send(method, path, &[("x-admin-token", ADMIN_TOKEN)], body.to_owned()).await
    }

    async fn set_status(&self, node: &str, status: &str) -> Reply {
        self.as_operator("POST", &format!("/nodes/{node}"), &json!({"status": status}).to_string()).await
    }

    async fn node(&self, node: &str) -> Value {
        self.as_operator("GET", &format!("/nodes/{node}"), "").await.assert_status(200).json()
    }

    /// Waits until a node has a status.
    async fn wait_for_status(&self, node: &str, status: &str) -> Value {
        self.eventually(status, async || {
            let current = self.node(node).await;
            if current["status"] == status { Ok(()) } else { Err(current.to_string()) }
        })
        .await;
        self.node(node).await
    }
}

#[tokio::test]
async fn a_node_is_described_as_reported() {
    let world = World::start().await;
    let mut node = world.wait_for_status("node-1", "ready").await;
    let since = node["statusChangedAt"].take();
    assert!(since.as_str().is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()), "{since}");
    let expected = json!({
        "id": "node-1", "serviceInstanceID": "instance-1", "clusterID": CLUSTER, "version": "1.2.3", "commit": "",
        "status": "ready", "statusChangedAt": null, "sandboxCount": 3, "createSuccesses": 9, "createFails": 0,
        "machineInfo": {"cpuFamily": "", "cpuModel": "", "cpuModelName": "", "cpuArchitecture": "x86_64"},
        "metrics": {
            "allocatedCPU": 6, "cpuPercent": 50, "cpuCount": 8, "allocatedMemoryBytes": 0, "memoryUsedBytes": 0,
            "memoryTotalBytes": 0, "hugePagesTotal": 0, "hugePagesUsed": 0, "hugePagesReserved": 0,
            "hugePageSizeBytes": 0,
            "disks": [{"mountPoint": "/", "device": "", "filesystemType": "", "usedBytes": 1, "totalBytes": 2}],
        },
    });
    assert_eq!(node, expected);
    let listed = world.as_operator("GET", "/nodes", "").await.assert_status(200).json();
    let mut expected = expected;
    expected["sandboxStartingCount"] = json!(1);
    expected["statusChangedAt"] = since;
    assert_eq!(listed, json!([expected]));
}

#[tokio::test]
async fn only_existing_nodes_can_be_read_and_changed() {
    let world = World::start().await;
    world.wait_for_status("node-1", "ready").await;
    let other = "11111111-1111-1111-1111-111111111111";
    let ready = r#"{"status":"ready"}"#;
    let of_other = json!({"status": "ready", "clusterID": other}).to_string();
    for (method, path, body, status) in [
        ("GET", format!("/nodes?clusterID={CLUSTER}"), "", 200),
        ("GET", "/nodes?clusterID=x".to_owned(), "", 400),
        ("GET", "/nodes?clusterID=%f".to_owned(), "", 400),
        ("GET", format!("/nodes/node-1?clusterID={CLUSTER}"), "", 200),
        ("GET", format!("/nodes/node-1?clusterID={other}"), "", 404),
        ("GET", "/nodes/node-1?clusterID=x".to_owned(), "", 400),
        ("GET", "/nodes/node-2".to_owned(), "", 404),
        ("GET", "/nodes/%2F".to_owned(), "", 404),
        ("POST", "/nodes/node-1".to_owned(), ready, 204),
        ("POST", "/nodes/node-1".to_owned(), "", 400),
        ("POST", "/nodes/node-1".to_owned(), r#"{"status":"gone"}"#, 400),
        ("POST", "/nodes/node-1".to_owned(), r#"{"status":"connecting"}"#, 409),
        ("POST", "/nodes/node-1".to_owned(), r#"{"status":"unhealthy"}"#, 409),
        ("POST", "/nodes/node-1".to_owned(), &of_other, 404),
        ("POST", "/nodes/node-2".to_owned(), ready, 404),
    ] {
        let reply = world.as_operator(method, &path, body).await;
        if status < 300 {
            reply.assert_status(status)
        } else {
            reply.assert_error(status, "")
        };
    }
    let elsewhere = world.as_operator("GET", &format!("/nodes?clusterID={other}"), "").await;
    assert_eq!(elsewhere.assert_status(200).json(), json!([]));
}

#[tokio::test]
async fn a_draining_node_retains_its_sandboxes_and_gets_no_new_ones() {
    let mut world = World::with_nodes(config(), &["node-1", "node-2"]).await;
    let id = world.running().await;
    assert_eq!(world.node.state().creates.len(), 1, "the first of two equal nodes is selected");
    world.set_status("node-1", "draining").await.assert_status(204);
    let draining = world.node("node-1").await;
    for _ in 0..3 {
        world.client.post("/v2/sandboxes", BASE).await.assert_status(201);
    }
    assert_eq!(world.node.state().creates.len(), 1);
    world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200);
    world.set_status("node-2", "standby").await.assert_status(204);
    let full = world.client.post("/v2/sandboxes", BASE).await.assert_error(503, "");
    assert_eq!(full.text_of("error_code"), "sandbox_capacity_unavailable");
    // The desired state survives a restart of the control role.
    world.restart().await;
    world.wait_for_status("node-1", "draining").await;
    world.wait_for_status("node-2", "standby").await;
    world.client.post("/v2/sandboxes", BASE).await.assert_error(503, "");
    world.set_status("node-1", "ready").await.assert_status(204);
    let ready = world.node("node-1").await;
    assert!(ready["statusChangedAt"].as_str() > draining["statusChangedAt"].as_str(), "{ready} {draining}");
    world.client.post("/v2/sandboxes", BASE).await.assert_status(201);
    assert_eq!(world.node.state().creates.len(), 2);
}

#[tokio::test]
async fn an_unreachable_node_is_unhealthy() {
    let world = World::with_nodes(config(), &["node-1", "node-2"]).await;
    world.wait_for_status("node-1", "ready").await;
    world.node.crash().await;
    let lost = world.wait_for_status("node-1", "unhealthy").await;
    assert_eq!(lost["version"], "1.2.3", "the last report is shown");
    world.set_status("node-1", "draining").await.assert_status(204);
    world.wait_for_status("node-1", "unhealthy").await;
    world.node.listen();
    world.wait_for_status("node-1", "draining").await;
}
