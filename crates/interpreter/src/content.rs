//! Contents of kernel messages, and the events that they become.
//!
//! Contents come from code that users run; any of them may be missing, of another type, or huge. A value of an unexpected
//! type is written as its JSON text where a client expects a string, because clients fail on other types.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{self, Line, StreamName};
use crate::lenient;

/// MIME types with a field of their own, in the order of the fields, and the form of the value.
const FIELDS: &[(&str, &str, Form)] = &[
    ("text/plain", "text", Form::UnquotedString),
    ("text/html", "html", Form::String),
    ("text/markdown", "markdown", Form::String),
    ("image/svg+xml", "svg", Form::String),
    ("image/png", "png", Form::String),
    ("image/jpeg", "jpeg", Form::String),
    ("application/pdf", "pdf", Form::String),
    ("text/latex", "latex", Form::String),
    ("application/json", "json", Form::Json),
    ("application/javascript", "javascript", Form::String),
    ("e2b/data", "data", Form::Json),
    ("e2b/chart", "chart", Form::Json),
];

/// Form of a field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    String,
    /// Without the quotes that a language's display form of a string has.
    UnquotedString,
    Json,
}

/// Kernel's report of its activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    Busy,
    Idle,
    Other,
}

/// Outcome of a request, from its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: ReplyStatus,
    /// The kernel exits after this request.
    pub(crate) asks_exit: bool,
}

/// Status in a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReplyStatus {
    Ok,
    /// With the event of the error.
    Error(Bytes),
    /// The kernel did not run the code.
    Aborted,
}

/// Parses a `status` message.
pub(crate) fn activity(content: &[u8]) -> Option<Activity> {
    #[derive(Deserialize)]
    struct Status<'a> {
        #[serde(borrow)]
        execution_state: Cow<'a, str>,
    }
    lenient::parse(content, |text| {
        Ok(match &*serde_json::from_str::<Status>(text)?.execution_state {
            "busy" => Activity::Busy,
            "idle" => Activity::Idle,
            _ => Activity::Other,
        })
    })
    .ok()
}

/// Makes the event of an `execute_input` message, without the kernel's `uncounted` executions.
pub(crate) fn count_event(content: &[u8], uncounted: i64) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Input {
        execution_count: i64,
    }
    let count = lenient::parse(content, |text| Ok(serde_json::from_str::<Input>(text)?.execution_count)).ok()?;
    Some(event::count(count.saturating_sub(uncounted)))
}

/// Makes the events of a `stream` message; none if the text is empty.
///
/// With `is_line_end_separate`, the last line end is an event of its own.
pub(crate) fn stream_events(content: &[u8], at: jiff::Timestamp, is_line_end_separate: bool) -> Vec<Bytes> {
    #[derive(Deserialize)]
    struct Stream<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow)]
        text: Cow<'a, str>,
    }
    lenient::parse(content, |text| {
        let stream: Stream<'_> = serde_json::from_str(text)?;
        let name = if stream.name == "stderr" { StreamName::Stderr } else { StreamName::Stdout };
        let parts = match stream.text.strip_suffix('\n') {
            Some(text) if is_line_end_separate => [text, "\n"],
            _ => [stream.text.as_ref(), ""],
        };
        let texts = parts.into_iter().filter(|text| !text.is_empty());
        Ok(texts.map(|text| event::output(name, text, at)).collect())
    })
    .unwrap_or_default()
}

/// Makes the event of an `error` message.
pub(crate) fn error_event(content: &[u8]) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Failure<'a> {
        #[serde(borrow, default)]
        ename: Option<&'a RawValue>,
        #[serde(borrow, default)]
        evalue: Option<&'a RawValue>,
        #[serde(borrow, default)]
        traceback: Option<&'a RawValue>,
    }
    lenient::parse(content, |text| {
        let failure: Failure<'_> = serde_json::from_str(text)?;
        let entries = failure.traceback.and_then(|entries| serde_json::from_str::<Vec<&RawValue>>(entries.get()).ok());
        let traceback: String = entries.unwrap_or_default().into_iter().map(string).collect();
        let name = failure.ename.map(string).unwrap_or_default();
        let value = failure.evalue.map(string).unwrap_or_default();
        Ok(event::error(&without_colours(&name), &without_colours(&value), &without_colours(&traceback)))
    })
    .ok()
}

/// Parses an `execute_reply` message.
pub(crate) fn reply(content: &[u8]) -> Reply {
    #[derive(Deserialize)]
    struct Parsed<'a> {
        #[serde(borrow)]
        status: Cow<'a, str>,
        #[serde(borrow, default)]
        payload: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Payload {
        #[serde(default)]
        source: String,
        #[serde(default)]
        keepkernel: bool,
    }
    let parsed = lenient::parse(content, |text| {
        let parsed: Parsed<'_> = serde_json::from_str(text)?;
        let payloads = parsed.payload.and_then(|payload| serde_json::from_str::<Vec<Payload>>(payload.get()).ok());
        let asks_exit =
            payloads.unwrap_or_default().iter().any(|payload| payload.source == "ask_exit" && !payload.keepkernel);
        Ok((parsed.status.into_owned(), asks_exit))
    });
    let Ok((status, asks_exit)) = parsed else { return Reply { status: ReplyStatus::Ok, asks_exit: false } };
    let status = match status.as_str() {
        "error" => ReplyStatus::Error(error_event(content).unwrap_or_else(|| event::error("", "", ""))),
        "aborted" | "abort" => ReplyStatus::Aborted,
        _ => ReplyStatus::Ok,
    };
    Reply { status, asks_exit }
}

/// Makes the event of a result; none if the message has no values.
pub(crate) fn result_event(content: &[u8], is_main_result: bool) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Bundle<'a> {
        #[serde(borrow)]
        data: BTreeMap<Cow<'a, str>, &'a RawValue>,
    }
    lenient::parse(content, |text| {
        let mut bundle: Bundle<'_> = serde_json::from_str(text)?;
        let mut line = Line::new("result");
        for (mime, field, form) in FIELDS {
            let Some(value) = bundle.data.remove(*mime).filter(|value| value.get() != "null") else { continue };
            line = match form {
                Form::Json => line.json(field, &lenient::without_lone_surrogates(value.get())),
                Form::String => line.string(field, &string(value)),
                Form::UnquotedString => line.string(field, unquoted(&string(value))),
            };
        }
        let extra = bundle.data.iter().map(|(mime, value)| (&**mime, lenient::without_lone_surrogates(value.get())));
        let main = if is_main_result { "true" } else { "false" };
        Ok(line.object("extra", extra).json("is_main_result", main).finish())
    })
    .ok()
}

/// Returns the value of a JSON string, and the text of any other JSON value.
fn string(value: &RawValue) -> Cow<'_, str> {
    match serde_json::from_str::<Text<'_>>(value.get()) {
        Ok(Text(text)) => text,
        // A lone surrogate is found only when a string is decoded.
        Err(_) => lenient::parse(value.get().as_bytes(), |text| serde_json::from_str::<String>(text))
            .map_or_else(|_| Cow::Borrowed(value.get()), Cow::Owned),
    }
}

/// String that is borrowed if it has no escape sequences.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Removes one pair of equal quotes around the text.
fn unquoted(text: &str) -> &str {
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"')).unwrap_or(text)
}

/// Removes terminal colours (SGR sequences), which kernels add to tracebacks.
fn without_colours(text: &str) -> Cow<'_, str> {
    if !text.contains("\u{1b}[") {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let parameters = part.find(|character: char| !character.is_ascii_digit() && character != ';');
        match parameters.filter(|end| part[*end..].starts_with('m')) {
            Some(end) => plain.push_str(&part[end + 1..]),
            None => {
                plain.push_str("\u{1b}[");
                plain.push_str(part);
            }
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_result(data: &str, expected: &str) {
        let content = format!(r#"{{"data":{data},"metadata":{{}}}}"#);
        let line = result_event(content.as_bytes(), true).expect("a result");
        let expected = format!("{{\"type\":\"result\",{expected},\"is_main_result\":true}}\n");
        assert_eq!(line, expected, "{data}");
    }

    #[test]
    fn bundles_become_fields() {
        check_result(r#"{"text/plain":"1"}"#, r#""text":"1","extra":{}"#);
        check_result(
            r#"{"text/foo":"bar","image/png":"aGk=","a":{ "b" : [1, 2] }}"#,
            r#""png":"aGk=","extra":{"a":{"b":[1,2]},"text/foo":"bar"}"#,
        );
        check_result(r#"{"application/json":[1,2,NaN],"e2b/chart":{}}"#, r#""json":[1,2,null],"chart":{},"extra":{}"#);
        check_result(r#"{"text/html":null,"text/latex":5,"x":null}"#, r#""latex":"5","extra":{"x":null}"#);
        check_result(r#"{"application/json":["\uD800"]}"#, r#""json":["\ufffd"],"extra":{}"#);
        check_result(r#"{"text/plain":"\ud800é"}"#, r#""text":"\ufffd\u00e9","extra":{}"#);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        check_result(&format!(r#"{{"deep":{deep}}}"#), &format!(r#""extra":{{"deep":{deep}}}"#));
        for odd in ["{}", r#"{"data":[]}"#, r#"{"data":1}"#, "", "nul"] {
            assert_eq!(result_event(odd.as_bytes(), true), None, "{odd}");
        }
    }

    #[test]
    fn display_forms_lose_one_pair_of_quotes() {
        for (text, expected) in [
            ("'a'", "a"),
            ("\"a\"", "a"),
            ("'a\"", "'a\""),
            ("'", "'"),
            ("''", ""),
            ("''a''", "'a'"),
            (r"'a\nb'", r"a\nb"),
        ] {
            assert_eq!(unquoted(text), expected, "{text}");
        }
    }

    #[test]
    fn errors_have_three_strings() {
        let line = error_event(br#"{"ename":"E","evalue":"v","traceback":["a\n","\u001b[0;31mb\u001b[0m"]}"#);
        assert_eq!(line, Some(event::error("E", "v", "a\nb")));
        assert_eq!(error_event(b"{}"), Some(event::error("", "", "")));
        assert_eq!(error_event(br#"{"ename":5,"traceback":[7,"x"]}"#), Some(event::error("5", "", "7x")));
        assert_eq!(error_event(b"[]x"), None);
        assert_eq!(without_colours("\u{1b}[1;2mx\u{1b}[K\u{1b}["), "x\u{1b}[K\u{1b}[");
    }

    #[test]
    fn replies_are_read() {
        assert_eq!(reply(br#"{"status":"ok"}"#), Reply { status: ReplyStatus::Ok, asks_exit: false });
        assert_eq!(reply(b"x").status, ReplyStatus::Ok);
        for word in ["aborted", "abort"] {
            assert_eq!(reply(format!(r#"{{"status":"{word}"}}"#).as_bytes()).status, ReplyStatus::Aborted);
        }
        let error = reply(br#"{"status":"error","ename":"E","evalue":"v","traceback":[]}"#);
        assert_eq!(error.status, ReplyStatus::Error(event::error("E", "v", "")));
        let exit = r#"{"status":"ok","payload":[{"source":"page"},{"source":"ask_exit","keepkernel":false}]}"#;
        assert!(reply(exit.as_bytes()).asks_exit);
    }

    #[test]
    fn output_and_status_are_read() {
        let at: jiff::Timestamp = "2026-11-23T11:37:02Z".parse().expect("a time");
        let text = br#"{"name":"stderr","text":"x\n"}"#;
        let output = |text| event::output(StreamName::Stderr, text, at);
        assert_eq!(stream_events(text, at, false), [output("x\n")]);
        assert_eq!(stream_events(text, at, true), [output("x"), output("\n")]);
        assert_eq!(stream_events(br#"{"name":"stderr","text":"\n"}"#, at, true), [output("\n")]);
        for empty in [&br#"{"name":"stdout","text":""}"#[..], br#"{"name":"stdout"}"#] {
            assert!(stream_events(empty, at, true).is_empty());
        }
        assert_eq!(activity(br#"{"execution_state":"idle"}"#), Some(Activity::Idle));
        assert_eq!(activity(b"{}"), None);
        assert_eq!(count_event(br#"{"execution_count":2}"#, 0), Some(event::count(2)));
        assert_eq!(count_event(br#"{"execution_count":2}"#, 1), Some(event::count(1)));
    }
}
