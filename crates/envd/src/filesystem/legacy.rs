//! Clients of the first schema, which reject fields they do not know: they get none.

use connectrpc::{RequestContext, Response};
use hearth_envd_api::filesystem::EntryInfo;
use http::header;

/// What such clients call themselves, exactly.
const USER_AGENT: &str = "connect-python";
/// Tells them, and whoever looks, that the answer was reduced.
const HEADER: (&str, &str) = ("x-e2b-legacy-sdk", "true");

/// Which schema a client knows.
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

    /// The entry as the client may see it.
    pub(super) fn entry(self, entry: EntryInfo) -> EntryInfo {
        match self {
            Self::Current => entry,
            Self::First => EntryInfo { name: entry.name, r#type: entry.r#type, path: entry.path, ..Default::default() },
        }
    }

    pub(super) fn has_entries_in_events(self) -> bool {
        self == Self::Current
    }

    /// The header of a reduced answer.
    pub(super) fn header(self) -> Option<(&'static str, &'static str)> {
        (self == Self::First).then_some(HEADER)
    }

    pub(super) fn answer<T>(self, message: T) -> Response<T> {
        let response = Response::new(message);
        match self.header() {
            Some((name, value)) => response.with_header(name, value),
            None => response,
        }
    }
}
