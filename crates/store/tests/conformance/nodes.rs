//! Desired states of nodes.

use hearth_store::{DesiredNode, Error, NodeIntent};

use crate::{Fixture, at};

pub(crate) async fn the_last_write_wins(fixture: &Fixture) {
    let store = &fixture.store;
    assert_eq!(store.desired_nodes().await.expect("a read"), []);
    let desired =
        |name: &str, intent, time| DesiredNode { node_id: name.parse().expect("valid"), intent, changed_at: at(time) };
    for (name, intent, time) in [
        ("node-2", NodeIntent::Draining, 1),
        ("node-1", NodeIntent::Draining, 2),
        ("node-2", NodeIntent::Standby, 3),
        ("node-1", NodeIntent::Ready, 4),
    ] {
        store.set_desired_node(&desired(name, intent, time)).await.expect("a write");
    }
    let last = [desired("node-1", NodeIntent::Ready, 4), desired("node-2", NodeIntent::Standby, 3)];
    let again = fixture.open_again().await;
    assert_eq!(again.desired_nodes().await.expect("a read"), last);
    again.close().await;
    fixture.tamper("UPDATE node SET intent = 'lost'").await;
    let error = store.desired_nodes().await.expect_err("the value is unknown");
    assert!(matches!(error, Error::Damaged { table: "node", column: "intent", .. }), "{error:?}");
}
