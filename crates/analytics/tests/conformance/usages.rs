//! What teams used.

use std::time::Duration;

use hearth_analytics::Usage;
use hearth_types::TeamId;
use jiff::Timestamp;

use crate::Fixture;

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) async fn usages_come_back_in_windows_and_steps(fixture: &Fixture) {
    let (ours, theirs) = (TeamId::generate(), TeamId::generate());
    let hour = Timestamp::from_second((Timestamp::now().as_second() / 3600 - 2) * 3600).expect("a time");
    let usage =
        |minute: u32, sandboxes_max, starts| Usage { at: hour + MINUTE * minute, span: MINUTE, sandboxes_max, starts };
    let kept = [usage(0, 1, 1), usage(1, 7, 6), usage(4, 3, 0), usage(5, 2, 9)];
    for usage in kept {
        fixture.usages.keep_usages(vec![(ours, usage), (theirs, Usage { starts: 99, ..usage })]).await.expect("kept");
    }
    let read = async |from: u32, until: u32, step: Duration| {
        let (from, until) = (hour + MINUTE * from, hour + MINUTE * until);
        fixture.usages.usages(ours, from, until, step).await.expect("read")
    };
    assert_eq!(read(0, 6, MINUTE).await, kept);
    assert_eq!(read(1, 5, MINUTE).await, kept[1..3], "from a time on, and before another");
    assert_eq!(read(5, 1, MINUTE).await, []);
    let merged = Usage { span: 3 * MINUTE, ..usage(4, 7, 7) };
    assert_eq!(read(0, 6, 5 * MINUTE).await, [merged, kept[3]]);
    let rates = read(0, 6, 5 * MINUTE).await;
    assert!((rates[1].start_rate() - 0.15).abs() < 1e-9, "{rates:?}");
}

pub(crate) async fn no_usage_is_nothing(fixture: &Fixture) {
    fixture.usages.keep_usages(Vec::new()).await.expect("kept");
    let found = fixture.usages.usages(TeamId::generate(), Timestamp::MIN, Timestamp::MAX, MINUTE).await;
    assert_eq!(found.expect("read"), []);
}
