//! The contract's recorded exchanges, and what each kind of output becomes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Server, errors, output, text};

/// Replaces the timestamp, which must have the contract's form.
fn without_time(mut event: Value) -> Value {
    if let Some(time) = event.get("timestamp") {
        let time = time.as_str().expect("a string");
        assert!(time.ends_with("+00:00") && time.contains('T') && time.is_ascii(), "{time}");
        event.as_object_mut().expect("an object").remove("timestamp");
    }
    event
}

async fn check(server: &Server, code: &str, expected: Value) {
    let events: Vec<_> = server.python(code).await.into_iter().map(without_time).collect();
    assert_eq!(Value::from(events), expected, "{code}");
}

#[tokio::test]
async fn recorded_exchanges_of_the_contract() {
    let Some(server) = Server::start().await else { return };
    let count = |count: u32| json!({ "type": "number_of_executions", "execution_count": count });
    let result = |text: &str| json!({ "type": "result", "text": text, "extra": {}, "is_main_result": true });
    check(&server, "x=1; x", json!([count(1), result("1")])).await;
    check(&server, "x += 1; x", json!([count(2), result("2")])).await;
    let streams = json!([count(3), { "type": "stdout", "text": "hi\n" }, { "type": "stderr", "text": "err\n" }]);
    check(&server, "print('hi'); import sys; print('err',file=sys.stderr)", streams).await;
    check(&server, "None", json!([count(4)])).await;
    check(&server, "1\n2\n3", json!([count(5), result("3")])).await;
    let display = json!({ "type": "result", "extra": { "text/foo": "bar" }, "is_main_result": false });
    check(&server, "display({'text/foo':'bar'}, raw=True)", json!([count(6), display])).await;
    check(&server, "'a\\nb'", json!([count(7), result("a\\nb")])).await;
    let events = server.python("1/0").await;
    assert_eq!(events[0], count(8));
    assert_eq!(errors(&events), [("ZeroDivisionError", "division by zero")]);
    let traceback = events[1]["traceback"].as_str().expect("a string");
    assert!(traceback.contains("Cell In[8], line 1\n----> 1 1/0\n") && !traceback.contains('\u{1b}'), "{traceback}");
    check(&server, "x", json!([count(9), result("2")])).await;
    let events = server.python("def f(:").await;
    assert_eq!(errors(&events)[0].0, "SyntaxError");
    let events = server.python("").await;
    assert!(errors(&events).is_empty() && output(&events, "stdout").is_empty());
    let events = server.python("import sys; sys.exit(3)").await;
    assert_eq!(errors(&events), [("SystemExit", "3")]);
    let events = server.python("input()").await;
    assert_eq!(errors(&events)[0].0, "StdinNotImplementedError");
    let home = server.folder.path().join("home").display().to_string();
    assert_eq!(output(&server.python("!pwd").await, "stdout"), format!("{home}\r\n"));
    assert_eq!(text(&server.python("await __import__('asyncio').sleep(0, 'done')").await), "done");
}

#[tokio::test]
async fn bash_reports_its_status_as_an_error() {
    let Some(server) = Server::start().await else { return };
    let body = json!({ "code": "echo $FOO; false", "language": "bash", "env_vars": { "FOO": "ba r" } });
    let events: Vec<_> = server.execute(body).await.into_iter().map(without_time).collect();
    let expected = json!([
        { "type": "number_of_executions", "execution_count": 1 },
        { "type": "stdout", "text": "ba r\n" },
        { "type": "error", "name": "", "value": "1", "traceback": "" },
    ]);
    assert_eq!(Value::from(events), expected);
    let bash = async |code: &str| output(&server.execute(json!({ "code": code, "language": "bash" })).await, "stdout");
    assert_eq!(bash("echo ${FOO-unset}").await, "unset\n");
    assert_eq!(bash("pwd").await, format!("{}\n", server.folder.path().join("home").display()));
    assert_eq!(bash("ls /nonexistent 2>&1 | wc -l").await.trim(), "1");
    bash("exit").await;
    assert_eq!(bash("echo again").await, "again\n");
}

// interpreter: F7
#[tokio::test]
async fn output_keeps_its_order_and_special_characters() {
    let Some(server) = Server::start().await else { return };
    let code =
        "import sys\nfor i in range(3):\n    print(i, flush=True); print(-i, file=sys.stderr, flush=True); display(i)";
    let events = server.python(code).await;
    let kinds: Vec<_> = events.iter().skip(1).map(|event| event["type"].as_str().expect("a type")).collect();
    assert_eq!(kinds, ["stdout", "stderr", "result"].repeat(3));
    let characters = "\u{0}\u{b}\u{85}\u{2028}\u{2029}é😀\"\\\u{7f}";
    let code = format!("print({})", json!(characters));
    assert_eq!(output(&server.python(&code.replace("\\u0000", "\\0")).await, "stdout"), format!("{characters}\n"));
    let events = server.python("a = 1 # \u{2028} 😀\na").await;
    assert_eq!(text(&events), "1");
    let events = server.python("1\0").await;
    assert_eq!(errors(&events).len(), 1, "{events:?}");
    let events = server.python("print('a\\ud800'); '\\udc80'").await;
    assert_eq!((output(&events, "stdout").as_str(), text(&events)), ("a\u{fffd}\n", "\\udc80"));
    let events = server.python("raise ValueError('b\\ud800')").await;
    assert_eq!(errors(&events), [("ValueError", "b\u{fffd}")]);
    assert_eq!(text(&server.python("1+1").await), "2");
}

#[tokio::test]
async fn a_silent_execution_has_keepalives_also_while_it_waits() {
    let Some(server) = Server::start().await else { return };
    let folder = server.folder.path().join("released");
    let wait =
        format!("import os, time\nwhile not os.path.exists({:?}): time.sleep(0.05)\n7", folder.display().to_string());
    let mut running = server.open(&json!({ "code": wait })).await;
    running.until("number_of_executions").await;
    let begun = std::time::Instant::now();
    let mut waiting = server.open(&json!({ "code": "8" })).await;
    assert_eq!(waiting.next().await, Some(json!({ "type": "keepalive" })));
    assert!(begun.elapsed() >= Duration::from_secs(4), "after silence only");
    running.until("keepalive").await;
    std::fs::write(&folder, "").expect("written");
    assert_eq!(text(&running.rest().await), "7");
    assert_eq!(text(&waiting.rest().await), "8");
}
