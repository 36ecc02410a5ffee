//! Lists: filters, order, pages.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use hearth_store::{
    Alias, Build, ListedSandbox, NewBuild, Order, PAGE_MAX, Sandbox, SandboxCursor, SandboxQuery, SandboxState, Store,
    Team,
};
use hearth_types::TeamId;

use crate::{Fixture, at, base, sandbox, texts};

fn all(team_id: TeamId) -> SandboxQuery {
    SandboxQuery {
        team_id,
        states: vec![SandboxState::Running],
        template_id: None,
        started_from: None,
        metadata: BTreeMap::new(),
        order: Order::NewestFirst,
        after: None,
        limit: PAGE_MAX,
    }
}

/// Returns all pages of a query. Checks that their sizes and totals agree.
async fn walk(store: &Store, query: &SandboxQuery) -> (Vec<ListedSandbox>, Option<u64>) {
    let mut query = query.clone();
    let mut listed = Vec::new();
    loop {
        let page = store.list_sandboxes(&query).await.expect("a read");
        let limit = query.limit.clamp(1, PAGE_MAX) as usize;
        assert!(page.sandboxes.len() == limit || page.next.is_none(), "only the last page may be short");
        let is_last = page.next.is_none();
        if let (Some(next), Some(last)) = (&page.next, page.sandboxes.last()) {
            let cursor = SandboxCursor { started_at: last.started_at, sandbox_id: last.sandbox_id.clone() };
            assert_eq!(next, &cursor);
        }
        listed.extend(page.sandboxes);
        if is_last {
            return (listed, page.running_total);
        }
        assert!(listed.len() < 10_000, "too many pages");
        query.after = page.next;
    }
}

/// Executes a query on a list in memory.
fn model(population: &[Sandbox], query: &SandboxQuery) -> (Vec<ListedSandbox>, Option<u64>) {
    let mut matching: Vec<ListedSandbox> = population
        .iter()
        .filter(|sandbox| sandbox.team_id == query.team_id)
        .filter(|sandbox| query.template_id.as_ref().is_none_or(|id| *id == sandbox.template_id))
        .filter(|sandbox| query.started_from.is_none_or(|from| sandbox.started_at >= from))
        .filter(|sandbox| query.metadata.iter().all(|(key, value)| sandbox.metadata.get(key) == Some(value)))
        .cloned()
        .map(ListedSandbox::from)
        .collect();
    let running = matching.iter().filter(|sandbox| sandbox.state == SandboxState::Running).count() as u64;
    let running = query.states.contains(&SandboxState::Running).then_some(running);
    matching.retain(|sandbox| query.states.contains(&sandbox.state));
    matching.sort_by_key(|sandbox| sandbox.sandbox_id.clone());
    match query.order {
        Order::OldestFirst => matching.sort_by_key(|sandbox| sandbox.started_at),
        Order::NewestFirst => matching.sort_by_key(|sandbox| Reverse(sandbox.started_at)),
    }
    (matching, running)
}

/// Inserts sandboxes of two teams, two templates and three states. There are few start times, so many share one.
async fn populate(fixture: &Fixture) -> (Vec<Sandbox>, [Team; 2], [Build; 2]) {
    let teams = [fixture.team("first").await, fixture.team("second").await];
    let other = NewBuild { alias: Alias { namespace: None, name: "other".to_owned() }, ..base() };
    let builds = [fixture.base().await, fixture.store.register_build(other).await.expect("no alias is in use")];
    fixture.tamper("UPDATE team SET sandboxes_max = 1000").await;
    let mut population = Vec::new();
    for number in 0..140usize {
        let mut metadata = texts([("parity", ["even", "odd"][number % 2])]);
        if number % 3 == 0 {
            metadata.insert("third".to_owned(), "yes".to_owned());
        }
        let sandbox = Sandbox {
            state: SandboxState::ALL[(number / 2) % 3],
            metadata,
            started_at: at(i64::try_from(number % 7).expect("small")),
            ..sandbox(&teams[usize::from(number % 10 == 0)], &builds[usize::from(number % 4 == 0)])
        };
        fixture.store.insert_sandbox(&sandbox).await.expect("the limit is not reached");
        population.push(sandbox);
    }
    (population, teams, builds)
}

pub(crate) async fn all_sandboxes_of_all_teams_are_listed(fixture: &Fixture) {
    assert_eq!(fixture.store.sandboxes().await.expect("a read"), []);
    let (mut population, ..) = populate(fixture).await;
    population.sort_by_key(|sandbox| (sandbox.started_at, sandbox.sandbox_id.clone()));
    assert_eq!(fixture.store.sandboxes().await.expect("a read"), population);
}

pub(crate) async fn pages_agree_with_a_model(fixture: &Fixture) {
    let (population, teams, builds) = populate(fixture).await;
    let everything = all(teams[0].id);
    let mut sizes = Vec::new();
    for (limit, order) in
        [1, 2, 7, 99, 100].into_iter().zip([Order::NewestFirst, Order::OldestFirst].into_iter().cycle())
    {
        for query in [
            SandboxQuery { states: SandboxState::ALL.to_vec(), ..everything.clone() },
            SandboxQuery { states: vec![SandboxState::Killing, SandboxState::Creating], ..everything.clone() },
            SandboxQuery { states: vec![], ..everything.clone() },
            SandboxQuery { template_id: Some(builds[1].template_id.clone()), ..everything.clone() },
            SandboxQuery { started_from: Some(at(3)), ..everything.clone() },
            SandboxQuery { started_from: Some(at(1_000)), ..everything.clone() },
            SandboxQuery { metadata: texts([("parity", "odd")]), ..everything.clone() },
            SandboxQuery { metadata: texts([("parity", "odd"), ("third", "yes")]), ..everything.clone() },
            SandboxQuery { metadata: texts([("third", "no")]), ..everything.clone() },
            SandboxQuery { team_id: teams[1].id, ..everything.clone() },
            SandboxQuery { team_id: TeamId::generate(), ..everything.clone() },
            everything.clone(),
        ] {
            for order in [order, if order == Order::OldestFirst { Order::NewestFirst } else { Order::OldestFirst }] {
                let query = SandboxQuery { limit, order, ..query.clone() };
                let listed = walk(&fixture.store, &query).await;
                assert_eq!(listed, model(&population, &query), "{query:?}");
                sizes.push(listed.0.len());
            }
        }
    }
    assert!(
        sizes.iter().any(|size| *size > 100) && sizes.contains(&0),
        "the cases include long and empty lists: {sizes:?}"
    );
    for (limit, size) in [(0, 1), (u32::MAX, PAGE_MAX as usize)] {
        let query = SandboxQuery { states: SandboxState::ALL.to_vec(), limit, ..everything.clone() };
        assert_eq!(
            fixture.store.list_sandboxes(&query).await.expect("a read").sandboxes.len(),
            size,
            "the limit is clamped"
        );
    }
}

pub(crate) async fn a_cursor_outlives_its_sandbox(fixture: &Fixture) {
    let store = &fixture.store;
    let (population, teams, builds) = populate(fixture).await;
    let query = SandboxQuery { limit: 10, ..all(teams[0].id) };
    let page = store.list_sandboxes(&query).await.expect("a read");
    let last = page.sandboxes.last().expect("a full page");
    let last = population.iter().find(|sandbox| sandbox.sandbox_id == last.sandbox_id).expect("one of them");
    store.delete_sandbox(&last.sandbox_id, last.execution_id).await.expect("it exists");
    // One that is created meanwhile is newer than the cursor, and must not shift the sandboxes after it.
    let started_at = at(1_000_000);
    let newer = Sandbox { state: SandboxState::Running, started_at, ..sandbox(&teams[0], &builds[0]) };
    store.insert_sandbox(&newer).await.expect("the limit is not reached");
    let (remaining, total) = walk(store, &SandboxQuery { after: page.next, ..query.clone() }).await;
    let (expected, running) = model(&population, &query);
    assert_eq!(remaining, expected[10..]);
    assert_eq!(total, running, "one was deleted and one was created");
}

pub(crate) async fn metadata_is_compared_exactly(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, build) = (fixture.team("first").await, fixture.base().await);
    fixture.tamper("UPDATE team SET sandboxes_max = 1000").await;
    let strange = [
        "",
        " ",
        "a",
        "A",
        "a.b",
        "a b",
        "$",
        "$.a",
        "[0]",
        "a\"b",
        "a\\b",
        "a\\\"b",
        "'",
        "' OR 1=1 --",
        "\n",
        "\t",
        "\u{1}",
        "ä",
        "a\u{308}",
        "ключ",
        "🦀",
        "\\u0061",
        "%",
        "_",
        "?",
        "?1",
        ":a",
        "null",
        "true",
        "1",
        "1.0",
        "{\"a\":1}",
        "key",
        "value",
    ];
    let mut population = Vec::new();
    for key in strange {
        for value in ["same", key] {
            let metadata = texts([(key, value)]);
            let sandbox = Sandbox { state: SandboxState::Running, metadata, ..sandbox(&team, &build) };
            store.insert_sandbox(&sandbox).await.expect("the limit is not reached");
            population.push(sandbox);
        }
    }
    for pair in [("\0", "same"), ("a", "\0"), ("a\0", "same")] {
        let query = SandboxQuery { metadata: texts([pair]), ..all(team.id) };
        assert_eq!(walk(store, &query).await.0, [], "{pair:?}");
    }
    for key in strange {
        for value in ["same", key] {
            let query = SandboxQuery { metadata: texts([(key, value)]), ..all(team.id) };
            let listed = walk(store, &query).await;
            assert_eq!(listed.0.len(), 1, "{key:?}: {value:?}");
            assert_eq!(listed, model(&population, &query), "{key:?}: {value:?}");
        }
    }
}
