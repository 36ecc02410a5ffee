//! Replies for clients of the first schema, which reject unknown fields.

use connectrpc::{RequestContext, Response};
use hearth_envd_api::filesystem::EntryInfo;
use http::header;

/// Exact `User-Agent` of such clients.
const USER_AGENT: &str = "connect-python";
/// Header that marks a reduced reply.
const HEADER: (&str, &str) = ("x-e2b-legacy-sdk", "true");

/// Schema that a client supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schema {
    First,
    Current,
}

impl Schema {
    pub(super) fn of(context: &RequestContext) -> Self {
        if context.header(header::USER_AGENT).is_some_and(|agent| agent == USER_AGENT) {
            Self::First
        } else {
            Self::Current
        }
    }

    /// Reduces the entry to the fields that the client accepts.
    pub(super) fn entry(self, entry: EntryInfo) -> EntryInfo {
        match self {
            Self::Current => entry,
            Self::First => EntryInfo { name: entry.name, r#type: entry.r#type, path: entry.path, ..Default::default() },
        }
    }

    pub(super) fn has_entries_in_events(self) -> bool {
        self == Self::Current
    }

    /// Header of a reduced reply.
    pub(super) fn header(self) -> Option<(&'static str, &'static str)> {
        (self == Self::First).then_some(HEADER)
    }

    pub(super) fn reply<T>(self, message: T) -> Response<T> {
        let response = Response::new(message);
        match self.header() {
            Some((name, value)) => response.with_header(name, value),
            None => response,
        }
    }
}
