//! Texts of refusals that public clients compare.
//!
//! Clients decide by statuses where they can, but some look for words in a message: they wait, ask for less, or build a
//! template because of them. Such a message is written here, once, with the words and the client that looks for them; a test
//! sends the request that each belongs to. Change a text only so that it keeps its words.

use std::time::Duration;

use hearth_types::{Tag, TemplateReference};
use http::StatusCode;

/// Words that a client looks for in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// Condition under which the text is sent.
    pub when: &'static str,
    /// The status of the answer, which clients compare as well.
    pub status: StatusCode,
    /// The words, in the case in which they are looked for or in ours where it does not matter.
    pub words: &'static str,
    /// Clients that match on the text.
    pub clients: &'static [&'static str],
    /// Effect of a match in these clients.
    pub so_that: &'static str,
}

/// A create or a connect over the team's limit of sandboxes.
pub const TOO_MANY_SANDBOXES: Compared = Compared {
    when: "a sandbox more than the team may have at the same time",
    status: StatusCode::TOO_MANY_REQUESTS,
    words: "maximum number of concurrent",
    clients: &["harbor", "@computesdk/e2b (`limit`)"],
    so_that: "it waits until another sandbox has ended",
};
/// A timeout longer than the team may have.
pub const TOO_LONG: Compared = Compared {
    when: "a timeout longer than the team may have, at create and connect",
    status: StatusCode::BAD_REQUEST,
    words: "Timeout cannot be greater than",
    clients: &["pydantic-ai-harness"],
    so_that: "it says which setting of its own to lower",
};
/// A template without the tag.
pub const UNKNOWN_TAG: Compared = Compared {
    when: "a create from a tag or a build that is not ready",
    status: StatusCode::NOT_FOUND,
    words: "does not exist",
    clients: &["harbor"],
    so_that: "it waits until the build is ready",
};
/// No such template.
pub const UNKNOWN_TEMPLATE: Compared = Compared {
    when: "a create from a template that does not exist",
    status: StatusCode::NOT_FOUND,
    words: "not found",
    clients: &["@mastra/e2b"],
    so_that: "it builds its template",
};

/// All of them.
pub const ALL: &[Compared] = &[TOO_MANY_SANDBOXES, TOO_LONG, UNKNOWN_TAG, UNKNOWN_TEMPLATE];

pub(crate) fn too_many_sandboxes(max: u32) -> String {
    format!("your team has reached the {} sandboxes, {max}: wait until one ends, or kill one", TOO_MANY_SANDBOXES.words)
}

/// Whole hours as E2B says them; a length that is not whole hours in seconds.
pub(crate) fn too_long(max: Duration) -> String {
    let seconds = max.as_secs();
    let max =
        if seconds.is_multiple_of(3600) { format!("{} hours", seconds / 3600) } else { format!("{seconds} seconds") };
    format!("{} {max}, the maximum of your team", TOO_LONG.words)
}

pub(crate) fn unknown_tag(reference: &TemplateReference, tag: &Tag) -> String {
    let template = reference.to_string();
    let template = template.split(':').next().unwrap_or_default();
    format!("tag '{tag}' {} for template '{template}'", UNKNOWN_TAG.words)
}

pub(crate) fn unknown_template(reference: &TemplateReference) -> String {
    format!("template '{reference}' {}", UNKNOWN_TEMPLATE.words)
}
