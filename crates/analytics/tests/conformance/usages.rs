//! Usages of teams.

use std::time::Duration;

use hearth_analytics::Usage;
use hearth_types::TeamId;
use jiff::Timestamp;

use crate::Fixture;

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) async fn usages_are_returned_in_windows_and_steps(fixture: &Fixture) {
    let (own, other) = (TeamId::generate(), TeamId::generate());
    let hour = Timestamp::from_second((Timestamp::now().as_second() / 3600 - 2) * 3600).expect("a time");
    let usage =
        |minute: u32, sandboxes_max, starts| Usage { at: hour + MINUTE * minute, span: MINUTE, sandboxes_max, starts };
    let recorded = [usage(0, 1, 1), usage(1, 7, 6), usage(4, 3, 0), usage(5, 2, 9)];
    for usage in recorded {
        fixture
            .usages
            .record_usages(vec![(own, usage), (other, Usage { starts: 99, ..usage })])
            .await
            .expect("a write");
    }
    let read = async |from: u32, until: u32, step: Duration| {
        let (from, until) = (hour + MINUTE * from, hour + MINUTE * until);
        fixture.usages.usages(own, from, until, step).await.expect("a read")
    };
    assert_eq!(read(0, 6, MINUTE).await, recorded);
    assert_eq!(read(1, 5, MINUTE).await, recorded[1..3], "the start is included, the end is not");
    assert_eq!(read(5, 1, MINUTE).await, []);
    let merged = Usage { span: 3 * MINUTE, ..usage(4, 7, 7) };
    assert_eq!(read(0, 6, 5 * MINUTE).await, [merged, recorded[3]]);
    let rates = read(0, 6, 5 * MINUTE).await;
    assert!((rates[1].start_rate() - 0.15).abs() < 1e-9, "{rates:?}");
}

pub(crate) async fn no_usages_are_no_error(fixture: &Fixture) {
    fixture.usages.record_usages(Vec::new()).await.expect("a write");
    let found = fixture.usages.usages(TeamId::generate(), Timestamp::MIN, Timestamp::MAX, MINUTE).await;
    assert_eq!(found.expect("a read"), []);
}
