//! What operators want of nodes.

use hearth_store::{Error, NodeIntent, WantedNode};

use crate::{Fixture, at};

pub(crate) async fn the_last_wish_counts(fixture: &Fixture) {
    let store = &fixture.store;
    assert_eq!(store.wanted_nodes().await.expect("a read"), []);
    let wanted =
        |name: &str, intent, time| WantedNode { node_id: name.parse().expect("valid"), intent, changed_at: at(time) };
    for (name, intent, time) in [
        ("node-2", NodeIntent::Draining, 1),
        ("node-1", NodeIntent::Draining, 2),
        ("node-2", NodeIntent::Standby, 3),
        ("node-1", NodeIntent::Ready, 4),
    ] {
        store.want_node(&wanted(name, intent, time)).await.expect("a write");
    }
    let last = [wanted("node-1", NodeIntent::Ready, 4), wanted("node-2", NodeIntent::Standby, 3)];
    let again = fixture.open_again().await;
    assert_eq!(again.wanted_nodes().await.expect("a read"), last);
    again.close().await;
    fixture.tamper("UPDATE node SET intent = 'lost'").await;
    let error = store.wanted_nodes().await.expect_err("nobody writes such a word");
    assert!(matches!(error, Error::Damaged { table: "node", column: "intent", .. }), "{error:?}");
}
