//! Lists of sandboxes: filters, order, pages and headers.

use serde_json::{Value, json};

use crate::world::{LIMITS, World};

fn ids(list: &Value) -> Vec<String> {
    let items = list.as_array().expect("a bare array");
    items.iter().map(|item| item["sandboxID"].as_str().expect("an id").to_owned()).collect()
}

async fn create(world: &World, body: Value) -> String {
    world.create(&body.to_string()).await.assert_status(201).text_of("sandboxID")
}

#[tokio::test]
async fn an_item_has_all_members_that_clients_use() {
    let world = World::start().await;
    let id = create(&world, json!({"templateID": "base", "metadata": {"a": "b"}})).await;
    for path in ["/v2/sandboxes", "/sandboxes"] {
        let list = world.client.get(path).await.assert_status(200).json();
        let expected = json!([{
            "sandboxID": id, "templateID": world.base.as_str(), "alias": "base", "clientID": "6532622b",
            "envdVersion": "0.6.4", "state": "running", "startedAt": list[0]["startedAt"], "endAt": list[0]["endAt"],
            "cpuCount": 2, "memoryMB": 512, "diskSizeMB": 1024, "metadata": {"a": "b"}, "volumeMounts": [],
        }]);
        assert_eq!(list, expected, "{path}");
        assert!(list[0]["startedAt"].as_str().is_some_and(|time| time.ends_with('Z')));
    }
}

#[tokio::test]
async fn filters_select_the_matching_sandboxes() {
    let world = World::start().await;
    let own = world.template(&world.team, false, "own", "0.6.4").await;
    let plain = create(&world, json!({"templateID": "base"})).await;
    let tagged = create(&world, json!({"templateID": "own", "metadata": {"a b": "c&d=é", "x": "1"}})).await;
    let started = |list: &Value, id: &str| {
        let item = list.as_array().expect("an array").iter().find(|item| item["sandboxID"] == id).expect("listed");
        item["startedAt"].as_str().expect("a time").to_owned()
    };
    let all = world.client.get("/v2/sandboxes").await.json();
    let from = started(&all, &tagged);
    let both: &[&str] = &[&tagged, &plain];
    let (only_plain, only_tagged, nothing): (&[&str], &[&str], &[&str]) = (&[&plain], &[&tagged], &[]);
    for (query, expected) in [
        (String::new(), both),
        ("?".to_owned(), both),
        ("?state=running,paused".to_owned(), both),
        ("?state=running%2Cpaused".to_owned(), both),
        ("?state=running".to_owned(), both),
        ("?state=paused".to_owned(), nothing),
        ("?unknown=x".to_owned(), both),
        ("?metadata=a%252520b%3Dc%252526d%25253D%2525C3%2525A9".to_owned(), only_tagged),
        ("?metadata=x%3D1".to_owned(), only_tagged),
        ("?metadata=x=1".to_owned(), only_tagged),
        ("?metadata=x%3D2".to_owned(), nothing),
        ("?metadata=x%3D1%26y%3D2".to_owned(), nothing),
        ("?template=own".to_owned(), only_tagged),
        ("?template=first%2Fown".to_owned(), only_tagged),
        (format!("?template={own}"), only_tagged),
        ("?template=base".to_owned(), only_plain),
        ("?template=nothing".to_owned(), nothing),
        ("?template=other%2Fsecret".to_owned(), nothing),
        (format!("?startedAfter={from}"), only_tagged),
        ("?startedAfter=2999-01-01T00:00:00Z".to_owned(), nothing),
        ("?startedAfter=2000-01-01T00:00:00%2B01:00".to_owned(), both),
        ("?order=desc".to_owned(), both),
        ("?order=asc".to_owned(), &[&plain, &tagged]),
    ] {
        let reply = world.client.get(&format!("/v2/sandboxes{query}")).await.assert_status(200);
        assert_eq!(ids(&reply.json()), expected, "{query}");
        let total = (!query.contains("state=paused")).then(|| expected.len().to_string());
        assert_eq!(reply.header("x-total-running"), total.as_deref(), "{query}");
        assert_eq!(reply.header("x-next-token"), None, "{query}");
    }
    for (query, expected) in [("", both), ("?metadata=x%3D1", only_tagged), ("?state=paused", both)] {
        let reply = world.client.get(&format!("/sandboxes{query}")).await.assert_status(200);
        assert_eq!(ids(&reply.json()), expected, "{query}");
    }
}

#[tokio::test]
async fn invalid_queries_are_rejected() {
    let world = World::start().await;
    let foreign = "MjAyNi0wMS0wMlQwMzowNDowNVpfX2kxX19hc2M=";
    for query in [
        "state=x",
        "state=killing",
        "limit=0",
        "limit=101",
        "limit=1.5",
        "order=up",
        "template=base:v1",
        "template=base%3Av1",
        "template=a%2Fb%2Fc",
        "startedAfter=now",
        "metadata=x",
        "metadata=x%3D%2525",
        "x=%zz",
        "nextToken=x",
        &format!("nextToken={foreign}"),
    ] {
        world.client.get(&format!("/v2/sandboxes?{query}")).await.assert_error(400, "validation error: ");
    }
    world.client.get("/sandboxes?metadata=x").await.assert_error(400, "validation error: ");
}

#[tokio::test]
async fn pages_cover_everything_once_in_order() {
    let world = World::start().await;
    let mut created = Vec::new();
    for _ in 0..7 {
        created.push(world.running().await.to_string());
    }
    for (order, limit) in [("asc", 3), ("desc", 3), ("desc", 1), ("asc", 7), ("desc", 100)] {
        let mut found = Vec::new();
        let mut token = String::new();
        let mut pages = 0;
        loop {
            let path = format!("/v2/sandboxes?order={order}&limit={limit}&nextToken={token}");
            let reply = world.client.get(&path).await.assert_status(200);
            assert_eq!(reply.header("x-total-running"), Some("7"), "the total counts all pages");
            let page = ids(&reply.json());
            assert!(page.len() <= limit && !page.is_empty(), "{page:?}");
            found.extend(page);
            pages += 1;
            match reply.header("x-next-token") {
                Some(next) => next.clone_into(&mut token),
                None => break,
            }
        }
        assert_eq!(pages, 7_usize.div_ceil(limit), "{order} {limit}");
        if order == "desc" {
            found.reverse();
        }
        assert_eq!(found, created, "{order} {limit}");
    }
}

#[tokio::test]
async fn the_first_generation_has_no_pages() {
    let world = World::start().await;
    let limits = hearth_store::Limits { sandboxes_max: 120, ..LIMITS };
    let (_, client) = world.other_team("many", limits).await;
    let creates = (0..105).map(|_| client.post("/v2/sandboxes", r#"{"templateID":"base"}"#));
    for reply in futures::future::join_all(creates).await {
        reply.assert_status(201);
    }
    let list = client.get("/sandboxes").await.assert_status(200).json();
    assert_eq!(list.as_array().map(Vec::len), Some(105));
    let first = client.get("/v2/sandboxes").await.assert_status(200);
    assert_eq!(first.json().as_array().map(Vec::len), Some(100));
    assert_eq!(first.header("x-total-running"), Some("105"));
    assert!(first.header("x-next-token").is_some());
}
