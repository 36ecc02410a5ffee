//! Bounds of stored lines and of replies.

use hearth_analytics::{
    CUT_MARK, Direction, FIELDS_BYTES_MAX, LOGGER_BYTES_MAX, LogLine, MESSAGE_BYTES_MAX, QUERY_BYTES_MAX,
    QUERY_LINES_MAX, Query,
};

use crate::{Fixture, ago, everything, line, messages, source, texts};

pub(crate) async fn long_lines_are_truncated_and_marked(fixture: &Fixture) {
    let source = source();
    let exact = LogLine {
        at: ago(3),
        logger: "l".repeat(LOGGER_BYTES_MAX),
        fields: texts([("f", "v".repeat(FIELDS_BYTES_MAX - 1).as_str())]),
        ..line(&"m".repeat(MESSAGE_BYTES_MAX))
    };
    let long = LogLine { at: ago(2), ..line(&"ä".repeat(MESSAGE_BYTES_MAX)) };
    let huge = LogLine { at: ago(1), ..line(&"x".repeat(20 * 1024 * 1024)) };
    fixture.append(&source, &[exact.clone(), long, huge]).await;
    let found = fixture.all(&source).await;
    assert_eq!(found.iter().map(|stored| stored.is_cut).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(found[0].line, exact);
    for stored in &found[1..] {
        let message = &stored.line.message;
        assert!(message.ends_with(CUT_MARK) && message.len() > MESSAGE_BYTES_MAX - 4, "{}", message.len());
        assert!(message.len() <= MESSAGE_BYTES_MAX, "{}", message.len());
    }
}

pub(crate) async fn the_lines_of_a_reply_are_bounded(fixture: &Fixture) {
    let source = source();
    let at = ago(1_000_000);
    let max = QUERY_LINES_MAX as usize;
    let appended: Vec<LogLine> = (0..max + 5).map(|number| LogLine { at, ..line(&number.to_string()) }).collect();
    fixture.append(&source, &appended).await;
    for (limit, expected) in [(0, 0), (1, 1), (QUERY_LINES_MAX, max), (QUERY_LINES_MAX + 1, max), (u32::MAX, max)] {
        for (direction, first) in [(Direction::Forward, "0"), (Direction::Backward, "1004")] {
            let found = fixture.query(&source, &Query { limit, direction, ..everything() }).await;
            assert_eq!((found.len(), messages(&found).first().copied()), (expected, (limit > 0).then_some(first)));
        }
    }
}

pub(crate) async fn the_bytes_of_a_reply_are_bounded(fixture: &Fixture) {
    let source = source();
    let lines_max = QUERY_BYTES_MAX / MESSAGE_BYTES_MAX;
    let appended = vec![LogLine { logger: String::new(), ..line(&"\0".repeat(MESSAGE_BYTES_MAX)) }; lines_max + 5];
    fixture.append(&source, &appended).await;
    assert_eq!(fixture.all(&source).await.len(), lines_max);
    assert_eq!(fixture.query(&source, &Query { search: Some("\0".to_owned()), ..everything() }).await.len(), lines_max);
}
