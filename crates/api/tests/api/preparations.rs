//! Creates of templates that the host is still preparing.

use std::time::Duration;

use hearth_api::{Config, Preparation};
use serde_json::json;

use crate::client::Reply;
use crate::world::{World, config};

const TOOLS: &str = r#"{"templateID":"tools"}"#;
const MISSING: Preparation = Preparation::Preparing { percent: 62, has_earlier_build: false };

/// Starts a world whose creates wait for templates for `wait_max`.
async fn world(wait_max: Duration, state: Preparation) -> World {
    let world = World::with(Config { template_wait_max: wait_max, ..config() }).await;
    set(&world, state);
    world
}

fn set(world: &World, state: Preparation) {
    world.preparations.send_modify(|states| {
        states.insert("tools".to_owned(), state);
    });
}

fn advice(reply: &Reply) -> (Option<&str>, Option<&str>) {
    (reply.header("should-retry"), reply.header("retry-after"))
}

#[tokio::test]
async fn a_create_of_a_template_in_preparation_is_rejected_with_the_progress() {
    let world = world(Duration::from_millis(20), MISSING).await;
    for path in ["/sandboxes", "/v2/sandboxes"] {
        let reply = world.client.post(path, TOOLS).await.assert_status(503);
        // The SDKs must show the message: another attempt by them could only end in a timeout.
        assert_eq!(advice(&reply), (Some("false"), Some("60")));
        let message = "template tools is being prepared (62 %): try again in a few minutes";
        assert_eq!(reply.json(), json!({"code": 503, "message": message, "error_code": "template_not_ready"}));
    }
    // A reference with the default tag means the same; another template and another namespace do not.
    world.create(r#"{"templateID":"tools:default"}"#).await.assert_error(503, "62 %");
    world.create(r#"{"templateID":"others"}"#).await.assert_error(404, "not found");
    world.create(r#"{"templateID":"first/tools"}"#).await.assert_error(404, "not found");
    world.create(r#"{"templateID":"base"}"#).await.assert_status(201);
    // The alias is in use: a client must not build a template of its own.
    world.client.get("/templates/aliases/tools").await.assert_error(403, "another team");
}

#[tokio::test]
async fn a_create_waits_until_the_template_is_ready() {
    let world = world(Duration::from_secs(20), MISSING).await;
    let idempotent = async {
        let headers = [("idempotency-key", "a-1")];
        world.client.send("POST", "/v2/sandboxes", &headers, TOOLS.to_owned()).await
    };
    let ready = async {
        // The creates are waiting, or will find the template.
        let template_id = world.platform_template("tools").await;
        set(&world, Preparation::Preparing { percent: 99, has_earlier_build: false });
        set(&world, Preparation::Ready);
        template_id
    };
    let (first, second, template_id) = tokio::join!(world.create(TOOLS), idempotent, ready);
    for reply in [first, second] {
        let created = reply.assert_status(201).json();
        assert_eq!((&created["templateID"], &created["alias"]), (&json!(template_id.as_str()), &json!("tools")));
    }
    world.client.get("/templates/aliases/tools").await.assert_error(403, "another team");
}

#[tokio::test]
async fn an_earlier_build_is_used_meanwhile_but_not_one_that_cannot_be_restored() {
    let world = world(Duration::from_millis(20), MISSING).await;
    let template_id = world.platform_template("tools").await;
    for reference in ["tools", template_id.as_str()] {
        let body = json!({"templateID": reference}).to_string();
        set(&world, MISSING);
        world.create(&body).await.assert_error(503, "62 %");
        set(&world, Preparation::Preparing { percent: 62, has_earlier_build: true });
        world.create(&body).await.assert_status(201);
        set(&world, Preparation::Failed { has_earlier_build: true });
        world.create(&body).await.assert_status(201);
    }
}

#[tokio::test]
async fn failed_and_unselected_templates_have_their_own_errors() {
    let world = world(Duration::from_secs(20), Preparation::Failed { has_earlier_build: false }).await;
    let reply = world.create(TOOLS).await.assert_error(503, "template tools could not be prepared");
    assert_eq!(
        (advice(&reply), reply.text_of("error_code")),
        ((Some("false"), Some("300")), "template_not_ready".into())
    );
    set(&world, Preparation::NotSelected);
    let reply = world.create(TOOLS).await.assert_error(404, "`hearth setup --template tools`");
    assert!(reply.text_of("message").contains("template 'tools' not found"));
    world.client.get("/templates/aliases/tools").await.assert_error(404, "not found");
    // A preparation that fails ends the wait.
    set(&world, MISSING);
    let fails = async { set(&world, Preparation::Failed { has_earlier_build: false }) };
    let (reply, ()) = tokio::join!(world.create(TOOLS), fails);
    reply.assert_error(503, "could not be prepared");
}

#[tokio::test]
async fn a_teams_own_template_is_not_affected() {
    let world = world(Duration::from_secs(20), MISSING).await;
    let own = world.template(&world.team, false, "tools", "0.6.4").await;
    let created = world.create(TOOLS).await.assert_status(201);
    assert_eq!(created.text_of("templateID"), own.as_str());
    world.client.get("/templates/aliases/tools").await.assert_status(200);
}

#[tokio::test]
async fn waiting_creates_end_with_the_server_and_hold_no_permit() {
    let world = world(Duration::from_secs(60), MISSING).await;
    let send = || {
        let client = world.client.clone();
        Box::pin(
            async move { client.send("POST", "/v2/sandboxes", &[("idempotency-key", "a-1")], TOOLS.to_owned()).await },
        )
    };
    // Of two requests with one key, one waits for the template, and the other is rejected meanwhile.
    let (rejected, waiting) = futures::future::select(send(), send()).await.factor_first();
    rejected.assert_status(409);
    world.create(r#"{"templateID":"base"}"#).await.assert_status(201);
    let (reply, ()) = tokio::join!(waiting, world.shut_down());
    reply.assert_error(503, "shutting down");
}
