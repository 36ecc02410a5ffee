//! Log lines of sandboxes, and the queries of both generations of the route.
//!
//! Times are Unix milliseconds in queries, and RFC 3339 texts in replies.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::form::{FormError, digits, parameters};

/// Maximum and default number of lines of a reply.
pub const LIMIT_MAX: u32 = 1000;
/// Longest search text.
pub const SEARCH_CHARS_MAX: usize = 256;

/// Reason for rejecting a query. The texts are sent to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogQueryError {
    /// The query is not form encoded.
    #[error("query is malformed: {0}")]
    Form(FormError),
    /// The parameter is not a time.
    #[error("{0} must be a time in Unix milliseconds")]
    Time(&'static str),
    /// The limit is not a valid number of lines.
    #[error("limit must be an integer from 0{}", if *bounded { " to 1000" } else { "" })]
    Limit {
        /// True if this generation of the route rejects a limit above [`LIMIT_MAX`].
        bounded: bool,
    },
    /// The direction is unknown.
    #[error("direction must be `forward` or `backward`")]
    Direction,
    /// The level is unknown.
    #[error("level must be `debug`, `info`, `warn` or `error`")]
    Level,
    /// The search text is too long.
    #[error("search must have at most {SEARCH_CHARS_MAX} characters")]
    Search,
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Detail for debugging.
    Debug,
    /// Change of state.
    Info,
    /// Unexpected condition that did not stop the operation.
    Warn,
    /// Failure that needs a person's attention.
    Error,
}

/// Order of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum LogDirection {
    /// Oldest first, starting at the cursor.
    Forward,
    /// Newest first, before the cursor.
    Backward,
}

/// Query of `GET /sandboxes/{sandboxID}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Earliest time of a line in Unix milliseconds, inclusive.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 253_402_207_200_000_i64)]
    pub start: Option<Timestamp>,
    /// Maximum number of lines. A value above 1000 counts as 1000.
    #[param(value_type = Option<u64>, default = 1000)]
    pub limit: u32,
}

impl LogQuery {
    /// Parses the text after the `?`. Unknown parameters are ignored; one without a value counts as absent.
    ///
    /// # Errors
    /// [`LogQueryError`], whose text is for the client.
    pub fn parse(query: &str) -> Result<Self, LogQueryError> {
        let parameters = parameters(query).map_err(LogQueryError::Form)?;
        let start = parameters.get("start").map(|text| time("start", text)).transpose()?;
        let limit = parameters.get("limit").map_or(Some(LIMIT_MAX), |text| number(text));
        let limit = limit.ok_or(LogQueryError::Limit { bounded: false })?;
        Ok(Self { start, limit: limit.min(LIMIT_MAX) })
    }
}

/// Query of `GET /v2/sandboxes/{sandboxID}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogPageQuery {
    /// Start of the page in Unix milliseconds. When absent, `forward` starts at the oldest line and `backward` at the
    /// newest.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 253_402_207_200_000_i64)]
    pub cursor: Option<Timestamp>,
    /// Maximum number of lines.
    #[param(value_type = Option<u32>, maximum = 1000, default = 1000)]
    pub limit: u32,
    /// Order of the lines; `backward` by default.
    #[param(value_type = Option<LogDirection>, inline)]
    pub direction: LogDirection,
    /// Lowest level to include.
    #[param(inline)]
    pub level: Option<LogLevel>,
    /// Text that the lines must contain.
    #[param(max_length = 256)]
    pub search: Option<String>,
}

impl LogPageQuery {
    /// Parses the text after the `?`. Unknown parameters are ignored; one without a value counts as absent.
    ///
    /// # Errors
    /// [`LogQueryError`], whose text is for the client.
    pub fn parse(query: &str) -> Result<Self, LogQueryError> {
        let mut parameters = parameters(query).map_err(LogQueryError::Form)?;
        let cursor = parameters.get("cursor").map(|text| time("cursor", text)).transpose()?;
        let limit = parameters.get("limit").map_or(Some(LIMIT_MAX), |text| number(text));
        let limit = limit.filter(|limit| *limit <= LIMIT_MAX).ok_or(LogQueryError::Limit { bounded: true })?;
        let direction = parameters.get("direction").map_or(Ok(LogDirection::Backward), |text| direction(text))?;
        let level = parameters.get("level").map(|text| level(text)).transpose()?;
        let search = parameters.remove("search");
        if search.as_ref().is_some_and(|text| text.chars().count() > SEARCH_CHARS_MAX) {
            return Err(LogQueryError::Search);
        }
        Ok(Self { cursor, limit, direction, level, search })
    }
}

/// Parses a number. A number that does not fit `u32` becomes `u32::MAX`.
fn number(text: &str) -> Option<u32> {
    digits::<u64>(text).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

fn time(name: &'static str, text: &str) -> Result<Timestamp, LogQueryError> {
    let time = digits(text).and_then(|millis| Timestamp::from_millisecond(millis).ok());
    time.ok_or(LogQueryError::Time(name))
}

fn direction(text: &str) -> Result<LogDirection, LogQueryError> {
    match text {
        "forward" => Ok(LogDirection::Forward),
        "backward" => Ok(LogDirection::Backward),
        _ => Err(LogQueryError::Direction),
    }
}

fn level(text: &str) -> Result<LogLevel, LogQueryError> {
    match text {
        "debug" => Ok(LogLevel::Debug),
        "info" => Ok(LogLevel::Info),
        "warn" => Ok(LogLevel::Warn),
        "error" => Ok(LogLevel::Error),
        _ => Err(LogQueryError::Level),
    }
}

/// A log line as structured data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Time of the line.
    pub timestamp: Timestamp,
    /// Severity of the line.
    pub level: LogLevel,
    /// Message text.
    pub message: String,
    /// Additional fields; never `null`.
    pub fields: BTreeMap<String, String>,
}

impl LogEntry {
    /// Returns the line as the text of a JSON object.
    ///
    /// The object has all fields, plus `timestamp`, `level` and `message`, which override fields of the same name. The
    /// CLI requires `level` in each line, and filters by `logger`.
    #[must_use]
    pub fn to_line(&self) -> LogLine {
        let Self { timestamp, level, message, fields } = self;
        let mut object: serde_json::Map<String, serde_json::Value> =
            fields.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        object.insert("timestamp".to_owned(), timestamp.to_string().into());
        object.insert("level".to_owned(), level.as_str().into());
        object.insert("message".to_owned(), message.as_str().into());
        LogLine { timestamp: *timestamp, line: serde_json::Value::Object(object).to_string() }
    }
}

impl LogLevel {
    /// Returns the text on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A log line as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Time of the line.
    pub timestamp: Timestamp,
    /// Text of a JSON object with `timestamp`, `level`, `message` and all fields.
    pub line: String,
}

/// Reply of `GET /sandboxes/{sandboxID}/logs`, with every line in both forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Logs {
    /// Lines as text.
    pub logs: Vec<LogLine>,
    /// The same lines as structured data.
    pub log_entries: Vec<LogEntry>,
}

/// Reply of `GET /v2/sandboxes/{sandboxID}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    /// Lines as structured data.
    pub logs: Vec<LogEntry>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Members of a line that fields cannot override.
    const RESERVED_MEMBERS: [&str; 3] = ["timestamp", "level", "message"];

    fn millis(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).expect("a time")
    }

    #[test]
    fn an_empty_query_has_the_contract_s_defaults() {
        for text in ["", "start=&limit=", "x=y"] {
            assert_eq!(LogQuery::parse(text), Ok(LogQuery { start: None, limit: 1000 }), "{text}");
        }
        for text in ["", "cursor=&limit=&direction=&level=&search=", "x=y"] {
            let direction = LogDirection::Backward;
            let expected = LogPageQuery { cursor: None, limit: 1000, direction, level: None, search: None };
            assert_eq!(LogPageQuery::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn all_parameters_are_parsed() {
        let query = LogQuery::parse("start=1700000000123&limit=7").expect("valid");
        assert_eq!(query, LogQuery { start: Some(millis(1_700_000_000_123)), limit: 7 });
        for (text, limit) in [("limit=0", 0), ("limit=1000", 1000), ("limit=1001", 1000), ("limit=99999999999", 1000)] {
            assert_eq!(LogQuery::parse(text).expect(text).limit, limit, "{text}");
        }
        let text = "cursor=0&limit=1000&direction=forward&level=warn&search=a%20%00%C3%A9&search=ignored";
        let expected = LogPageQuery {
            cursor: Some(Timestamp::UNIX_EPOCH),
            limit: 1000,
            direction: LogDirection::Forward,
            level: Some(LogLevel::Warn),
            search: Some("a \0é".to_owned()),
        };
        assert_eq!(LogPageQuery::parse(text), Ok(expected));
        for level in [LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error] {
            let query = LogPageQuery::parse(&format!("level={}", level.as_str())).expect("valid");
            assert_eq!(query.level, Some(level));
            assert_eq!(serde_json::to_value(level).expect("plain"), level.as_str());
        }
        let longest = format!("search={}", "%C3%A9".repeat(SEARCH_CHARS_MAX));
        assert!(LogPageQuery::parse(&longest).is_ok(), "characters, not bytes");
    }

    #[test]
    fn invalid_queries_are_rejected() {
        for value in ["-1", "+1", "1.5", "x", "2026-01-02T03:04:05Z", "9999999999999999", "99999999999999999999"] {
            assert_eq!(LogQuery::parse(&format!("start={value}")), Err(LogQueryError::Time("start")), "{value}");
            assert_eq!(LogPageQuery::parse(&format!("cursor={value}")), Err(LogQueryError::Time("cursor")), "{value}");
        }
        for value in ["-1", "1.5", "x", "%201"] {
            let text = format!("limit={value}");
            assert_eq!(LogQuery::parse(&text), Err(LogQueryError::Limit { bounded: false }), "{value}");
            assert_eq!(LogPageQuery::parse(&text), Err(LogQueryError::Limit { bounded: true }), "{value}");
        }
        let long = format!("search={}", "x".repeat(SEARCH_CHARS_MAX + 1));
        for (text, expected) in [
            ("limit=1001", LogQueryError::Limit { bounded: true }),
            ("direction=sideways", LogQueryError::Direction),
            ("level=INFO", LogQueryError::Level),
            ("level=trace", LogQueryError::Level),
            ("search=%zz", LogQueryError::Form(FormError::Escape)),
            (long.as_str(), LogQueryError::Search),
        ] {
            assert_eq!(LogPageQuery::parse(text), Err(expected), "{text}");
        }
        assert_eq!(LogQueryError::Limit { bounded: true }.to_string(), "limit must be an integer from 0 to 1000");
        assert_eq!(LogQueryError::Limit { bounded: false }.to_string(), "limit must be an integer from 0");
    }

    #[test]
    fn replies_have_the_contract_s_format() {
        let entry = LogEntry {
            timestamp: "2026-01-02T03:04:05.000006Z".parse().expect("a time"),
            level: LogLevel::Warn,
            message: "odd".to_owned(),
            fields: BTreeMap::from([("logger".to_owned(), "process".to_owned())]),
        };
        let line = r#"{"level":"warn","logger":"process","message":"odd","timestamp":"2026-01-02T03:04:05.000006Z"}"#;
        let shown = json!({
            "timestamp": "2026-01-02T03:04:05.000006Z", "level": "warn", "message": "odd",
            "fields": {"logger": "process"},
        });
        let logs = Logs { logs: vec![entry.to_line()], log_entries: vec![entry.clone()] };
        let expected =
            json!({"logs": [{"timestamp": "2026-01-02T03:04:05.000006Z", "line": line}], "logEntries": [shown]});
        assert_eq!(serde_json::to_value(logs).expect("plain"), expected);
        assert_eq!(serde_json::to_value(LogPage { logs: vec![entry] }).expect("plain"), json!({"logs": [shown]}));
    }

    proptest! {
        /// Guests choose the message and the fields.
        #[test]
        fn a_line_is_always_an_object_with_a_level(
            message in any::<String>(),
            fields in prop::collection::btree_map(
                prop_oneof![prop::sample::select(&RESERVED_MEMBERS[..]).prop_map(str::to_owned), any::<String>()],
                any::<String>(),
                0..6,
            ),
        ) {
            let timestamp = Timestamp::UNIX_EPOCH;
            let level = LogLevel::Debug;
            let entry = LogEntry { timestamp, level, message: message.clone(), fields: fields.clone() };
            let line = entry.to_line().line;
            let object: BTreeMap<String, Value> = serde_json::from_str(&line).expect("an object");
            prop_assert_eq!(&object["level"], "debug");
            prop_assert_eq!(&object["message"], &message);
            prop_assert_eq!(&object["timestamp"], "1970-01-01T00:00:00Z");
            for (name, value) in fields.iter().filter(|(name, _)| !RESERVED_MEMBERS.contains(&name.as_str())) {
                prop_assert_eq!(&object[name], value);
            }
            prop_assert!(!line.bytes().any(|byte| byte < b' '), "control characters are escaped");
        }

        #[test]
        fn no_query_panics(text in ".*") {
            let _ = LogQuery::parse(&text);
            let _ = LogPageQuery::parse(&text);
        }
    }
}
