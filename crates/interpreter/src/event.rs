//! Events of the stream that `POST /execute` answers with: one line of JSON each.

use std::borrow::Cow;

use bytes::Bytes;

use crate::ascii;

/// Line that is sent after silence.
pub(crate) const KEEPALIVE: &[u8] = b"{\"type\":\"keepalive\"}\n";
/// Last line of every stream.
pub(crate) const END: &[u8] = b"{\"type\":\"end_of_execution\"}\n";

/// Standard stream of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamName {
    Stdout,
    Stderr,
}

/// Builder of a line.
pub(crate) struct Line(Vec<u8>);

impl Line {
    /// Starts an event of a type.
    pub(crate) fn new(kind: &str) -> Self {
        let mut line = Self(b"{\"type\":".to_vec());
        ascii::push_string(&mut line.0, kind);
        line
    }

    /// Adds a field with a string.
    pub(crate) fn string(mut self, name: &str, value: &str) -> Self {
        self.key(name);
        ascii::push_string(&mut self.0, value);
        self
    }

    /// Adds a field with a valid JSON text.
    pub(crate) fn json(mut self, name: &str, json: &str) -> Self {
        self.key(name);
        ascii::push_json(&mut self.0, json);
        self
    }

    /// Adds a field with an object of valid JSON texts.
    pub(crate) fn object<'a>(mut self, name: &str, fields: impl Iterator<Item = (&'a str, Cow<'a, str>)>) -> Self {
        self.key(name);
        self.0.push(b'{');
        for (index, (name, json)) in fields.enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            ascii::push_string(&mut self.0, name);
            self.0.push(b':');
            ascii::push_json(&mut self.0, &json);
        }
        self.0.push(b'}');
        self
    }

    fn key(&mut self, name: &str) {
        self.0.push(b',');
        ascii::push_string(&mut self.0, name);
        self.0.push(b':');
    }

    /// Returns the line with its line break.
    pub(crate) fn finish(mut self) -> Bytes {
        self.0.extend_from_slice(b"}\n");
        self.0.into()
    }
}

/// Returns the event with the number of an execution.
pub(crate) fn count(count: i64) -> Bytes {
    Line::new("number_of_executions").json("execution_count", &count.to_string()).finish()
}

/// Returns the event with a piece of output.
pub(crate) fn output(stream: StreamName, text: &str, at: jiff::Timestamp) -> Bytes {
    let kind = match stream {
        StreamName::Stdout => "stdout",
        StreamName::Stderr => "stderr",
    };
    Line::new(kind).string("text", text).string("timestamp", &timestamp(at)).finish()
}

/// Returns the event with an error.
pub(crate) fn error(name: &str, value: &str, traceback: &str) -> Bytes {
    Line::new("error").string("name", name).string("value", value).string("traceback", traceback).finish()
}

/// Writes a time in the contract's form: UTC with an offset, and microseconds unless they are zero.
fn timestamp(at: jiff::Timestamp) -> String {
    let micros = at.subsec_nanosecond() / 1000;
    let seconds = at.strftime("%Y-%m-%dT%H:%M:%S");
    if micros == 0 { format!("{seconds}+00:00") } else { format!("{seconds}.{micros:06}+00:00") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_form_of_the_contract() {
        assert_eq!(count(3), "{\"type\":\"number_of_executions\",\"execution_count\":3}\n");
        assert_eq!(
            error("E", "a\"b", "x\ny"),
            "{\"type\":\"error\",\"name\":\"E\",\"value\":\"a\\\"b\",\"traceback\":\"x\\ny\"}\n"
        );
        let at: jiff::Timestamp = "2026-11-23T11:37:02.628904Z".parse().expect("a time");
        assert_eq!(
            output(StreamName::Stdout, "hi\n", at),
            "{\"type\":\"stdout\",\"text\":\"hi\\n\",\"timestamp\":\"2026-11-23T11:37:02.628904+00:00\"}\n"
        );
        let whole: jiff::Timestamp = "2026-11-23T11:37:02Z".parse().expect("a time");
        assert_eq!(timestamp(whole), "2026-11-23T11:37:02+00:00");
        let fields = [("a b", Cow::Borrowed("1")), ("é", Cow::Borrowed("[ null ]"))];
        assert_eq!(
            Line::new("x").object("extra", fields.into_iter()).finish(),
            "{\"type\":\"x\",\"extra\":{\"a b\":1,\"\\u00e9\":[null]}}\n"
        );
    }
}
