//! What goes in comes out, to whom it belongs.

use std::collections::BTreeSet;
use std::time::Duration;

use hearth_analytics::{Level, LogLine, Source, Stored};
use hearth_types::{ExecutionId, SandboxId, TeamId};
use jiff::Timestamp;

use crate::{Fixture, ago, everything, line, messages, source, texts};

pub(crate) async fn a_line_comes_back_as_it_was_said(fixture: &Fixture) {
    for template_id in [source().template_id, None] {
        let source = Source { template_id, ..source() };
        let said: Vec<LogLine> = Level::ALL
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
        fixture.append(&source, &said).await;
        let expected: Vec<Stored> =
            said.into_iter().map(|line| Stored { source: source.clone(), line, is_cut: false }).collect();
        assert_eq!(fixture.all(&source).await, expected);
    }
}

pub(crate) async fn any_text_comes_back_as_it_was_said(fixture: &Fixture) {
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
        let mut said = line(text);
        text.clone_into(&mut said.logger);
        said.fields = texts([("name", text), (text.get(..100).unwrap_or(text), "value")]);
        fixture.append(&source, std::slice::from_ref(&said)).await;
        let found = fixture.all(&source).await;
        let is_cut = text.len() > 128;
        assert_eq!((found.len(), found[0].is_cut), (1, is_cut), "{text:?}");
        let found = &found[0].line;
        assert_eq!((&found.message, &found.fields), (&said.message, &said.fields), "{text:?}");
        assert!(is_cut || found.logger == text, "{text:?}");
    }
}

pub(crate) async fn nothing_is_nothing(fixture: &Fixture) {
    let source = source();
    assert_eq!(fixture.all(&source).await, []);
    fixture.append(&source, &[]).await;
    assert_eq!(fixture.all(&source).await, []);
}

pub(crate) async fn lines_of_one_moment_stay_in_order(fixture: &Fixture) {
    let source = source();
    let at = ago(5);
    let said: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    for part in said.chunks(7) {
        let lines: Vec<LogLine> = part.iter().map(|message| LogLine { at, ..line(message) }).collect();
        fixture.append(&source, &lines).await;
    }
    assert_eq!(messages(&fixture.all(&source).await), said);
}

pub(crate) async fn a_log_goes_on_over_executions(fixture: &Fixture) {
    let first = source();
    let second = Source { execution_id: ExecutionId::generate(), ..first.clone() };
    let (old, new) = (line("old"), LogLine { at: ago(1), ..line("new") });
    fixture.append(&second, &[new]).await;
    fixture.append(&first, &[old]).await;
    let found = fixture.all(&first).await;
    assert_eq!(messages(&found), ["old", "new"]);
    assert_eq!((&found[0].source, &found[1].source), (&first, &second));
}

pub(crate) async fn other_teams_and_sandboxes_see_nothing(fixture: &Fixture) {
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

pub(crate) async fn times_that_cannot_be_true_are_those_of_arrival(fixture: &Fixture) {
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

pub(crate) async fn appends_at_once_lose_nothing(fixture: &Fixture) {
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

pub(crate) async fn dropped_appends_leave_whole_lines(fixture: &Fixture) {
    let source = source();
    let said: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let lines: Vec<LogLine> = said.iter().map(|message| LogLine { at: ago(1_000_000), ..line(message) }).collect();
    let lines: Vec<LogLine> = lines.iter().map(|line| LogLine { at: lines[0].at, ..line.clone() }).collect();
    for polls in 0..40 {
        let append = fixture.logs.append(&source, lines.clone());
        // As if the caller went away in the middle.
        let mut left = polls;
        let mut append = std::pin::pin!(append);
        std::future::poll_fn(|context| {
            if left == 0 {
                return std::task::Poll::Ready(());
            }
            left -= 1;
            append.as_mut().poll(context).map(|_| ())
        })
        .await;
    }
    fixture.append(&source, &[LogLine { at: ago(1), ..line("last") }]).await;
    let found = fixture.query(&source, &everything()).await;
    let found = messages(&found);
    let whole = found.strip_suffix(&["last"]).unwrap_or(&found);
    assert!(whole.chunks(200).all(|part| part == said), "{found:?}");
}
