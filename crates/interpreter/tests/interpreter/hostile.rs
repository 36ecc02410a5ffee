//! Messages that no sound kernel sends: they are skipped or repaired, and every stream ends.

use serde_json::{Value, json};

use crate::server::{Server, errors, output, text};

/// Runs a script between the messages of a sound execution.
async fn sound(server: &Server, script: &str) -> Vec<Value> {
    server.fake(&format!("busy(); accept()\n{script}\nfinish()")).await
}

#[tokio::test]
async fn malformed_messages_are_skipped() {
    let Some(server) = Server::start().await else { return };
    for script in [
        "publish('stream', {'name': 'stdout', 'text': 'forged'}, signed=False)",
        "publish('stream', b'{\"name\":')",
        "publish('stream', b'')",
        "publish('stream', b'[]')",
        "publish('stream', {'name': 'stdout'})",
        "publish('stream', {'text': 5, 'name': []})",
        "publish('stream', {'name': 'stdout', 'text': 'x'}, header=b'\\xff')",
        "publish('stream', {'name': 'stdout', 'text': 'x'}, parent=b'{}')",
        "publish('execute_result', {'data': []})",
        "publish('display_data', {})",
        "publish('error', b'\\x00')",
        "publish('status', {'execution_state': 5})",
        "publish('execute_input', {})",
        "publish('update_display_data', {'data': {'text/plain': 'x'}}); publish('clear_output', {'wait': False})",
        "raw(b'')",
        "raw(b'<IDS|MSG>')",
        "raw(*[b'x'] * 200)",
        "raw(b'<IDS|MSG>', b'', b'', b'', b'', b'')",
        "reply({'status': 'ok'}, signed=False)",
        "reply(b'\\xff\\xfe')",
    ] {
        let events =
            sound(&server, &format!("{script}\npublish('stream', {{'name': 'stdout', 'text': 'after'}})")).await;
        let expected = json!([{ "type": "number_of_executions", "execution_count": 1 }]);
        assert_eq!(json!([events[0]]), expected, "{script}");
        assert_eq!(output(&events, "stdout"), "after", "{script}");
        assert_eq!(events.len(), 2, "{script}: {events:?}");
    }
}

#[tokio::test]
async fn odd_values_are_repaired() {
    let Some(server) = Server::start().await else { return };
    let events = sound(
        &server,
        "publish('execute_result', b'{\"data\":{\"application/json\":[NaN,-Infinity,1],\"text/plain\":\"\\\\ud800\"}}')",
    )
    .await;
    assert_eq!(events[1]["json"], json!([null, null, 1]));
    assert_eq!(events[1]["text"], "\u{fffd}");
    let events = sound(&server, "publish('stream', b'{\"name\":\"stdout\",\"text\":\"a\\xffb\"}')").await;
    assert_eq!(output(&events, "stdout"), "a\u{fffd}b");
    let events = sound(&server, "publish('display_data', {'data': {'text/html': 5, 'x': {'deep': [1]}}})").await;
    assert_eq!((&events[1]["html"], &events[1]["extra"]), (&json!("5"), &json!({ "x": { "deep": [1] } })));
    let script = "publish('display_data', {'data': {'m/%d' % i: i for i in range(2000)}})";
    assert_eq!(sound(&server, script).await[1]["extra"].as_object().expect("an object").len(), 2000);
    let events = sound(&server, "publish('error', {}); publish('error', {'ename': 'Second'})").await;
    assert_eq!(errors(&events), [("", "")], "at most one error");
}

#[tokio::test]
async fn lost_and_misplaced_messages_end_the_stream() {
    let Some(server) = Server::start().await else { return };
    // Idle before the input was accepted, and output after it.
    let script =
        "idle(); busy(); accept()\npublish('stream', {'name': 'stdout', 'text': 'late'})\nreply({'status': 'ok'})";
    assert!(output(&server.fake(script).await, "stdout").len() <= 4);
    for script in ["busy(); accept(); idle()", "busy(); accept(); reply({'status': 'ok'})", "reply({'status': 'ok'})"] {
        let begun = std::time::Instant::now();
        server.fake(script).await;
        assert!(begun.elapsed().as_secs() < 20, "{script}");
    }
    let script = "busy(); accept()\nreply({'status': 'error', 'ename': 'E', 'evalue': 'v', 'traceback': []}); idle()";
    assert_eq!(errors(&server.fake(script).await), [("E", "v")], "an error only in the reply");
    let events = server.fake("busy(); accept(); sys.exit(1)").await;
    assert_eq!(errors(&events), [("ContextRestarting", "Context was restarted")]);
    assert!(errors(&server.fake("busy(); accept(); finish()").await).is_empty());
    let events = server.fake("busy(); accept(); iopub.close(0); import time; time.sleep(300)").await;
    assert_eq!(
        errors(&events).iter().map(|error| error.0).collect::<Vec<_>>(),
        ["WebSocketError", "UnexpectedEndOfExecution"]
    );
}

#[tokio::test]
async fn aborted_code_is_sent_again() {
    let Some(server) = Server::start().await else { return };
    let script = "runs = globals().get('runs', 0) + 1\nbusy()\nif runs < 3:\n    reply({'status': 'aborted'}); idle()\n\
                  else:\n    accept(runs); finish()";
    let events = server.fake(script).await;
    assert_eq!(json!(events), json!([{ "type": "number_of_executions", "execution_count": 3 }]));
    let events = server.fake("busy(); reply({'status': 'abort'}); idle()").await;
    assert_eq!(errors(&events), [("ExecutionAborted", "Execution was aborted")]);
    assert!(errors(&server.fake("busy(); accept(); finish()").await).is_empty());
}

#[tokio::test]
async fn a_huge_message_is_dropped_and_named() {
    let Some(server) = Server::start().await else { return };
    let before = server.memory_kib();
    let script = "publish('display_data', {'data': {'text/plain': 'x' * (200 << 20)}})";
    let events = sound(&server, script).await;
    let text = output(&events, "stderr");
    assert!(text.contains("a result of 2097") && text.contains("limit"), "{text}");
    let after = server.memory_kib();
    assert!(after < before + (20 << 10), "{before} KiB before, {after} KiB after");
    let events =
        server.fake("busy(); accept(2); publish('stream', {'name': 'stdout', 'text': 'next'}); finish()").await;
    assert_eq!(output(&events, "stdout"), "next");
}

#[tokio::test]
async fn objects_with_hostile_representations_are_reported() {
    let Some(server) = Server::start().await else { return };
    let raising = "class A:\n    def __repr__(self): raise ValueError('no')\nA()";
    assert_eq!(server.python(raising).await.len(), 2, "a result or an error");
    assert_eq!(
        text(&server.python("class B:\n    def __repr__(self): return 'x' * 10_000_000\nB()").await).len(),
        10_000_000
    );
    assert_eq!(text(&server.python("1+1").await), "2");
}
