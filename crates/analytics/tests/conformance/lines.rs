//! Lines are returned as they were appended, and only to their owner.

use std::collections::BTreeSet;
use std::time::Duration;

use hearth_analytics::{Level, LogLine, Source, StoredLine};
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;

use crate::{Fixture, ago, everything, line, messages, source, texts};

pub(crate) async fn a_line_is_returned_as_appended(fixture: &Fixture) {
    for template_id in [source().template_id, None] {
        let source = Source { template_id, ..source() };
        let appended: Vec<LogLine> = Level::ALL
            .into_iter()
            .zip(1..)
            .map(|(level, number)| LogLine {
                at: ago(1_000_000 - number),
                level,
                logger: format!("logger-{number}"),
                message: format!("message {number}"),
                fields: texts([("pid", "7"), ("event_type", "process_start")]),
            })
            .collect();
        fixture.append(&source, &appended).await;
        let expected: Vec<StoredLine> =
            appended.into_iter().map(|line| StoredLine { source: source.clone(), line, is_cut: false }).collect();
        assert_eq!(fixture.all(&source).await, expected);
    }
}

pub(crate) async fn any_text_is_returned_as_appended(fixture: &Fixture) {
    let every_control: String = (0u8..=0x9f).map(char::from).collect();
    for text in [
        "",
        "\0",
        "before\0after",
        "\u{1b}[2J\u{1b}]0;title\u{7}",
        "two\r\nlines\n",
        "\u{202e}backwards\u{2066}",
        "\u{feff}\u{fffd}\u{ffff}\u{10ffff}",
        "👩‍👩‍👧 naïve e\u{301}",
        r#"'; DROP TABLE line; -- " \ \u0000 %s {} ${x} <script>"#,
        "NULL",
        "12.50",
        &every_control,
    ] {
        let source = source();
        let mut appended = line(text);
        text.clone_into(&mut appended.logger);
        appended.fields = texts([("name", text), (text.get(..100).unwrap_or(text), "value")]);
        fixture.append(&source, std::slice::from_ref(&appended)).await;
        let found = fixture.all(&source).await;
        let is_cut = text.len() > 128;
        assert_eq!((found.len(), found[0].is_cut), (1, is_cut), "{text:?}");
        let found = &found[0].line;
        assert_eq!((&found.message, &found.fields), (&appended.message, &appended.fields), "{text:?}");
        assert!(is_cut || found.logger == text, "{text:?}");
    }
}

pub(crate) async fn no_lines_are_no_error(fixture: &Fixture) {
    let source = source();
    assert_eq!(fixture.all(&source).await, []);
    fixture.append(&source, &[]).await;
    assert_eq!(fixture.all(&source).await, []);
}

pub(crate) async fn lines_of_one_microsecond_stay_in_order(fixture: &Fixture) {
    let source = source();
    let at = ago(5);
    let appended: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    for part in appended.chunks(7) {
        let lines: Vec<LogLine> = part.iter().map(|message| LogLine { at, ..line(message) }).collect();
        fixture.append(&source, &lines).await;
    }
    assert_eq!(messages(&fixture.all(&source).await), appended);
}

pub(crate) async fn a_log_spans_executions(fixture: &Fixture) {
    let first = source();
    let second = Source { execution_id: ExecutionId::generate(), ..first.clone() };
    let (old, new) = (line("old"), LogLine { at: ago(1), ..line("new") });
    fixture.append(&second, &[new]).await;
    fixture.append(&first, &[old]).await;
    let found = fixture.all(&first).await;
    assert_eq!(messages(&found), ["old", "new"]);
    assert_eq!((&found[0].source, &found[1].source), (&first, &second));
}

pub(crate) async fn other_teams_and_sandboxes_are_isolated(fixture: &Fixture) {
    let own = source();
    let same_team = Source { sandbox_id: SandboxId::generate(), ..own.clone() };
    let same_id = Source { team_id: TeamId::generate(), ..own.clone() };
    for (source, message) in [(&own, "own"), (&same_team, "same team"), (&same_id, "same id")] {
        fixture.append(source, &[line(message)]).await;
    }
    for (source, message) in [(&own, "own"), (&same_team, "same team"), (&same_id, "same id")] {
        assert_eq!(messages(&fixture.all(source).await), [message]);
    }
    let stranger = Source { team_id: TeamId::generate(), ..own };
    assert_eq!(fixture.all(&stranger).await, []);
}

pub(crate) async fn implausible_times_become_the_time_of_arrival(fixture: &Fixture) {
    let week = 7 * 24 * 3600 * 1_000_000;
    for at in [Timestamp::MIN, Timestamp::MAX, Timestamp::UNIX_EPOCH, ago(week + 60_000_000)] {
        let source = source();
        let before = Timestamp::now() - Duration::from_micros(1);
        fixture.append(&source, &[LogLine { at, ..line("x") }]).await;
        let found = fixture.all(&source).await[0].line.at;
        assert!(found >= before && found <= Timestamp::now(), "{at} became {found}");
    }
    let source = source();
    let at = ago(week - 60_000_000);
    fixture.append(&source, &[LogLine { at, ..line("x") }]).await;
    assert_eq!(fixture.all(&source).await[0].line.at, at);
}

pub(crate) async fn parallel_appends_lose_no_line(fixture: &Fixture) {
    let sources: Vec<Source> = (0..4).map(|_| source()).collect();
    let mut appends = Vec::new();
    for round in 0..16 {
        for source in &sources {
            let lines: Vec<LogLine> = (0..5).map(|number| line(&format!("{round} {number}"))).collect();
            appends.push(async move { fixture.append(source, &lines).await });
        }
    }
    futures::future::join_all(appends).await;
    for source in &sources {
        let found = fixture.all(source).await;
        assert_eq!((found.len(), messages(&found).into_iter().collect::<BTreeSet<_>>().len()), (80, 80));
    }
}

pub(crate) async fn dropped_appends_store_complete_lines(fixture: &Fixture) {
    let source = source();
    let messages_appended: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let lines: Vec<LogLine> =
        messages_appended.iter().map(|message| LogLine { at: ago(1_000_000), ..line(message) }).collect();
    let lines: Vec<LogLine> = lines.iter().map(|line| LogLine { at: lines[0].at, ..line.clone() }).collect();
    for polls in 0..40 {
        let append = fixture.logs.append(&source, lines.clone());
        // Drops the call after some polls, as if the caller disconnected.
        let mut polls_left = polls;
        let mut append = std::pin::pin!(append);
        std::future::poll_fn(|context| {
            if polls_left == 0 {
                return std::task::Poll::Ready(());
            }
            polls_left -= 1;
            append.as_mut().poll(context).map(|_| ())
        })
        .await;
    }
    fixture.append(&source, &[LogLine { at: ago(1), ..line("last") }]).await;
    let found = fixture.query(&source, &everything()).await;
    let found = messages(&found);
    let complete = found.strip_suffix(&["last"]).unwrap_or(&found);
    assert!(complete.chunks(200).all(|part| part == messages_appended), "{found:?}");
}
