//! Queries for lines: windows, filters and paging.

use hearth_analytics::{Direction, Level, LogLine, Query, StoredLine};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::{Fixture, ago, everything, line, messages, source, texts};

/// Executes a query on a list in memory.
fn model(population: &[LogLine], query: &Query) -> Vec<String> {
    let Query { from, until, direction, limit, level_min, search } = query;
    let mut lines: Vec<&LogLine> = population.iter().collect();
    lines.sort_by_key(|line| line.at);
    lines.retain(|line| from.is_none_or(|from| line.at >= from) && until.is_none_or(|until| line.at < until));
    lines.retain(|line| level_min.is_none_or(|min| line.level >= min));
    lines.retain(|line| search.as_ref().is_none_or(|text| line.message.contains(text)));
    if *direction == Direction::Backward {
        lines.reverse();
    }
    lines.into_iter().take(*limit as usize).map(|line| line.message.clone()).collect()
}

/// Lines and queries. There are few times, so many lines share one; windows begin and end at them and between them.
fn cases(start: Timestamp) -> impl Strategy<Value = (Vec<LogLine>, Query)> {
    let time = move |nanos: i64| start + jiff::SignedDuration::from_nanos(nanos);
    let lines = prop::collection::vec((0i64..5, prop::sample::select(&Level::ALL[..]), "[ab]"), 0..20);
    let lines = lines.prop_map(move |lines| {
        let numbered = lines.into_iter().enumerate();
        numbered
            .map(|(number, (at, level, text))| LogLine {
                at: time(at * 1000),
                level,
                ..line(&format!("{text}{number}"))
            })
            .collect()
    });
    let edge = || prop::option::of((-500i64..5500).prop_map(time));
    let direction = prop_oneof![Just(Direction::Forward), Just(Direction::Backward)];
    let level_min = prop::option::of(prop::sample::select(&Level::ALL[..]));
    let search = prop::option::of("[ab]1?");
    let query = (edge(), edge(), direction, 0u32..25, level_min, search);
    let query = query.prop_map(|(from, until, direction, limit, level_min, search)| Query {
        from,
        until,
        direction,
        limit,
        level_min,
        search,
    });
    (lines, query)
}

pub(crate) async fn windows_agree_with_a_model(fixture: &Fixture) {
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    block_in_place(|| {
        let run = runner.run(&cases(ago(60_000_000)), |(lines, query)| {
            let source = source();
            let found = Handle::current().block_on(async {
                fixture.append(&source, &lines).await;
                fixture.query(&source, &query).await
            });
            prop_assert_eq!(messages(&found), model(&lines, &query));
            // Pages that begin where the previous one ended return all lines.
            let all = Query { limit: 1000, ..query.clone() };
            let walked = Handle::current().block_on(walk(fixture, &source, &all));
            prop_assert_eq!(walked, model(&lines, &all));
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// Reads all pages as a client that only knows times.
///
/// Each page starts at the time of the previous page's last line, and lines that were seen before are skipped.
async fn walk(fixture: &Fixture, source: &hearth_analytics::Source, query: &Query) -> Vec<String> {
    let mut query = Query { limit: 20, ..query.clone() };
    let mut walked: Vec<String> = Vec::new();
    loop {
        let page: Vec<StoredLine> = fixture.query(source, &query).await;
        let fresh: Vec<String> =
            page.iter().map(|stored| stored.line.message.clone()).filter(|message| !walked.contains(message)).collect();
        let Some(last) = page.last().filter(|_| !fresh.is_empty()) else { return walked };
        walked.extend(fresh);
        match query.direction {
            Direction::Forward => query.from = Some(last.line.at),
            Direction::Backward => query.until = Some(last.line.at + jiff::SignedDuration::from_micros(1)),
        }
    }
}

pub(crate) async fn the_bounds_of_a_window_are_exact(fixture: &Fixture) {
    let source = source();
    let at = ago(1_000_000);
    fixture.append(&source, &[LogLine { at, ..line("x") }]).await;
    let nano = jiff::SignedDuration::from_nanos(1);
    for (from, until, is_found) in [
        (Some(at), None, true),
        (Some(at + nano), None, false),
        (Some(at - nano), None, true),
        (None, Some(at), false),
        (None, Some(at + nano), true),
        (Some(at), Some(at), false),
        (Some(Timestamp::MIN), Some(Timestamp::MAX), true),
        (Some(Timestamp::MAX), Some(Timestamp::MIN), false),
    ] {
        let found = fixture.query(&source, &Query { from, until, ..everything() }).await;
        assert_eq!(!found.is_empty(), is_found, "{from:?} {until:?}");
    }
}

pub(crate) async fn search_texts_are_literal(fixture: &Fixture) {
    let source = source();
    let mut appended: Vec<LogLine> =
        ["Process started", "100% done_", "früh ÜBER", "zero\0byte", "quote's \"end\""].map(line).to_vec();
    appended.push(LogLine { fields: texts([("command", "Echo hello")]), ..line("ran") });
    fixture.append(&source, &appended).await;
    for (search, expected) in [
        ("process", Some("Process started")),
        ("STARTED", Some("Process started")),
        ("0%", Some("100% done_")),
        ("%", Some("100% done_")),
        ("_", Some("100% done_")),
        ("über", Some("früh ÜBER")),
        ("FRÜH", Some("früh ÜBER")),
        ("byte", Some("zero\0byte")),
        ("\0", Some("zero\0byte")),
        ("'s \"", Some("quote's \"end\"")),
        ("echo H", Some("ran")),
        ("command", None),
        ("p%d", None),
        (".*", None),
        ("process  started", None),
    ] {
        let found = fixture.query(&source, &Query { search: Some(search.to_owned()), ..everything() }).await;
        assert_eq!(messages(&found), expected.into_iter().collect::<Vec<_>>(), "{search:?}");
    }
    let found = fixture.query(&source, &Query { search: Some(String::new()), ..everything() }).await;
    assert_eq!(found.len(), appended.len(), "every text contains the empty text");
}
