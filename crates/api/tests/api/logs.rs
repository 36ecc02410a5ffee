//! Logs of sandboxes, in both generations of the route.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_analytics::{Cause, Error, Level, LogLine, Logs, Query, Source, StoredLine};
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::world::{LIMITS, World};

/// Returns the start of the second 60 seconds ago, and its Unix milliseconds.
fn start() -> (Timestamp, i64) {
    let second = Timestamp::now().as_second() - 60;
    (Timestamp::from_second(second).expect("a time"), second * 1000)
}

fn line(at: Timestamp, level: Level, message: &str) -> LogLine {
    let fields = BTreeMap::from([("pid".to_owned(), "7".to_owned())]);
    LogLine { at, level, logger: "process".to_owned(), message: message.to_owned(), fields }
}

/// Appends lines to the store, as a node would.
async fn append(world: &World, team_id: TeamId, sandbox_id: &SandboxId, lines: Vec<LogLine>) {
    let (template_id, execution_id) = (Some(world.base.clone()), ExecutionId::generate());
    let source = Source { team_id, sandbox_id: sandbox_id.clone(), template_id, execution_id };
    world.logs.append(&source, lines).await.expect("stored");
}

/// Appends the lines `m0` to `m9`, one every half millisecond, with all levels in turn.
async fn ten_lines(world: &World) -> (SandboxId, i64) {
    let (sandbox_id, (start, millis)) = (SandboxId::generate(), start());
    let lines = (0..10u32).map(|number| {
        let level = Level::ALL[number as usize % 4];
        line(start + Duration::from_micros(500) * number, level, &format!("m{number}"))
    });
    append(world, world.team.id, &sandbox_id, lines.collect()).await;
    (sandbox_id, millis)
}

fn messages(entries: &Value) -> Vec<&str> {
    let entries = entries.as_array().expect("an array");
    entries.iter().map(|entry| entry["message"].as_str().expect("a message")).collect()
}

#[tokio::test]
async fn a_line_has_all_members_that_clients_use() {
    let world = World::start().await;
    let id = world.running().await;
    let (at, _) = start();
    append(&world, world.team.id, &id, vec![line(at, Level::Warn, "odd")]).await;
    let entry = json!({
        "timestamp": at.to_string(), "level": "warn", "message": "odd", "fields": {"logger": "process", "pid": "7"},
    });
    let reply = world.client.get(&format!("/sandboxes/{id}/logs")).await.assert_status(200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let logs = reply.json();
    let text = logs["logs"][0]["line"].as_str().expect("a text");
    let expected = json!({
        "timestamp": at.to_string(), "level": "warn", "message": "odd", "logger": "process", "pid": "7",
    });
    assert_eq!(serde_json::from_str::<Value>(text).expect("an object"), expected);
    let expected = json!({"logs": [{"timestamp": at.to_string(), "line": text}], "logEntries": [entry]});
    assert_eq!(logs, expected);
    let page = world.client.get(&format!("/v2/sandboxes/{id}-6532622b/logs")).await.assert_status(200).json();
    assert_eq!(page, json!({"logs": [entry]}));
    // Logs outlive their sandbox.
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
    world.assert_no_leftovers().await;
    assert_eq!(world.client.get(&format!("/sandboxes/{id}/logs")).await.assert_status(200).json(), logs);
}

#[tokio::test]
async fn the_first_generation_lists_forward_from_a_time() {
    let world = World::start().await;
    let (id, millis) = ten_lines(&world).await;
    for (query, expected) in [
        (String::new(), (0..10).collect::<Vec<_>>()),
        ("?limit=3".to_owned(), vec![0, 1, 2]),
        ("?limit=0".to_owned(), vec![]),
        ("?limit=5000".to_owned(), (0..10).collect()),
        (format!("?start={millis}&limit=2"), vec![0, 1]),
        (format!("?start={}", millis + 3), vec![6, 7, 8, 9]),
        (format!("?start={}&limit=1", millis + 3), vec![6]),
        (format!("?start={}", millis + 5), vec![]),
        ("?start=0&limit=1".to_owned(), vec![0]),
    ] {
        let logs = world.client.get(&format!("/sandboxes/{id}/logs{query}")).await.assert_status(200).json();
        let expected: Vec<String> = expected.into_iter().map(|number| format!("m{number}")).collect();
        assert_eq!(messages(&logs["logEntries"]), expected, "{query}");
        assert_eq!(logs["logs"].as_array().map(Vec::len), Some(expected.len()), "{query}");
    }
}

#[tokio::test]
async fn the_second_generation_lists_forward_and_backward() {
    let world = World::start().await;
    let (id, millis) = ten_lines(&world).await;
    for (query, expected) in [
        (String::new(), vec![9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("?limit=3".to_owned(), vec![9, 8, 7]),
        ("?limit=0".to_owned(), vec![]),
        ("?direction=forward&limit=3".to_owned(), vec![0, 1, 2]),
        // A forward page includes lines at the cursor, a backward page does not.
        (format!("?cursor={}&limit=3", millis + 2), vec![3, 2, 1]),
        (format!("?cursor={}&limit=3&direction=forward", millis + 2), vec![4, 5, 6]),
        (format!("?cursor={millis}"), vec![]),
        (format!("?cursor={}&direction=forward", millis + 5), vec![]),
        ("?level=debug&limit=2".to_owned(), vec![9, 8]),
        ("?level=warn".to_owned(), vec![7, 6, 3, 2]),
        ("?level=error&direction=forward".to_owned(), vec![3, 7]),
        ("?search=M7".to_owned(), vec![7]),
        ("?search=m&level=error&limit=1".to_owned(), vec![7]),
        ("?search=%25".to_owned(), vec![]),
    ] {
        let page = world.client.get(&format!("/v2/sandboxes/{id}/logs{query}")).await.assert_status(200).json();
        let expected: Vec<String> = expected.into_iter().map(|number| format!("m{number}")).collect();
        assert_eq!(messages(&page["logs"]), expected, "{query}");
    }
}

#[tokio::test]
async fn invalid_queries_are_rejected_with_the_parameter_s_name() {
    let world = World::start().await;
    let long = format!("search={}", "x".repeat(257));
    for (generation, query, name) in [
        ("", "start=-1", "start"),
        ("", "start=yesterday", "start"),
        ("", "start=99999999999999999999", "start"),
        ("", "limit=-1", "limit"),
        ("", "limit=many", "limit"),
        ("", "start=%zz", "query is malformed"),
        ("/v2", "cursor=1.5", "cursor"),
        ("/v2", "limit=1001", "limit must be an integer from 0 to 1000"),
        ("/v2", "direction=up", "direction"),
        ("/v2", "level=INFO", "level"),
        ("/v2", "search=%ff", "query is malformed"),
        ("/v2", long.as_str(), "search"),
    ] {
        // Queries are checked for unknown sandboxes too.
        let reply = world.client.get(&format!("{generation}/sandboxes/i1/logs?{query}")).await;
        reply.assert_error(400, &format!("validation error: {name}"));
    }
}

#[tokio::test]
async fn other_teams_and_unknown_sandboxes_have_empty_logs() {
    let world = World::start().await;
    let id = world.running().await;
    let (at, _) = start();
    append(&world, world.team.id, &id, vec![line(at, Level::Info, "first")]).await;
    let (team, stranger) = world.other_team("stranger", LIMITS).await;
    for (client, id) in [(&stranger, id.as_str()), (&world.client, "i0unknown")] {
        let logs = client.get(&format!("/sandboxes/{id}/logs")).await.assert_status(200).json();
        assert_eq!(logs, json!({"logs": [], "logEntries": []}));
        let page = client.get(&format!("/v2/sandboxes/{id}/logs")).await.assert_status(200).json();
        assert_eq!(page, json!({"logs": []}));
    }
    // A sandbox ID gives no access: each team sees only the lines that were stored for it.
    append(&world, team.id, &id, vec![line(at, Level::Info, "second")]).await;
    for (client, message) in [(&stranger, "second"), (&world.client, "first")] {
        let page = client.get(&format!("/v2/sandboxes/{id}/logs")).await.assert_status(200).json();
        assert_eq!(messages(&page["logs"]), [message]);
    }
}

#[tokio::test]
async fn hostile_lines_are_escaped() {
    let world = World::start().await;
    let (id, (at, _)) = (SandboxId::generate(), start());
    let hostile = "\0\u{1b}[2J\r\n\"}],\"level\":\"x\u{2028}</script>\u{7f}é\u{202e}";
    let fields = ["level", "message", "timestamp", "logger", "cut", hostile];
    let fields: BTreeMap<_, _> = fields.iter().map(|name| ((*name).to_owned(), hostile.to_owned())).collect();
    let line = LogLine { at, level: Level::Info, logger: hostile.to_owned(), message: hostile.to_owned(), fields };
    let long = LogLine { at: at + Duration::from_secs(1), message: "x".repeat(100_000), ..line.clone() };
    append(&world, world.team.id, &id, vec![line, long]).await;
    let reply = world.client.get(&format!("/sandboxes/{id}/logs")).await.assert_status(200);
    assert!(!reply.text.bytes().any(|byte| byte < b' '), "control characters are escaped");
    let logs = reply.json();
    for (number, is_cut) in [(0, false), (1, true)] {
        let entry = &logs["logEntries"][number];
        let text = logs["logs"][number]["line"].as_str().expect("a text");
        let object: Value = serde_json::from_str(text).expect("an object");
        for fields in [&entry["fields"], &object] {
            assert_eq!((&fields["logger"], &fields[hostile]), (&json!(hostile), &json!(hostile)));
            assert_eq!(fields.get("cut"), is_cut.then_some(&json!("true")), "only the host sets `cut`");
        }
        assert_eq!((&object["level"], &object["timestamp"]), (&entry["level"], &entry["timestamp"]));
        assert_eq!((&object["message"], &entry["level"]), (&entry["message"], &json!("info")));
    }
    assert_eq!(logs["logEntries"][0]["message"], hostile);
    let cut = logs["logEntries"][1]["message"].as_str().expect("a text");
    assert!(cut.len() < 10_000 && cut.ends_with("x…"), "{}", cut.len());
}

/// Log store whose queries fail.
struct Broken(Arc<dyn Logs>);

#[async_trait::async_trait]
impl Logs for Broken {
    async fn append(&self, source: &Source, lines: Vec<LogLine>) -> Result<(), Error> {
        self.0.append(source, lines).await
    }

    async fn query(&self, _: TeamId, sandbox_id: &SandboxId, _: &Query) -> Result<Vec<StoredLine>, Error> {
        Err(Error::Query { sandbox_id: sandbox_id.clone(), source: Cause::new("rust") })
    }
}

#[tokio::test]
async fn a_failing_log_store_affects_only_logs() {
    let mut world = World::start().await;
    world.stop_server().await;
    world.logs = Arc::new(Broken(Arc::clone(&world.logs)));
    world.start_server().await;
    let id = world.running().await;
    for generation in ["", "/v2"] {
        let reply = world.client.get(&format!("{generation}/sandboxes/{id}/logs")).await;
        let reply = reply.assert_error(500, "internal error");
        assert!(!reply.text.contains("rust"), "{reply:?}");
    }
    world.client.get(&format!("/sandboxes/{id}")).await.assert_status(200);
    world.client.delete(&format!("/sandboxes/{id}")).await.assert_status(204);
}
