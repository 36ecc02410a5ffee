//! Error texts that public clients match on.
//!
//! Most clients decide by the status, but some search a message for words: they then wait, request less, or build a
//! template. Each such message is defined here once, with its words and the clients that match on them. A test sends
//! the request that each message belongs to. Never change the words.

use std::time::Duration;

use hearth_types::{Tag, TemplateReference};
use http::StatusCode;

/// Words in a reply that clients match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// Condition under which the text is sent.
    pub when: &'static str,
    /// Status of the reply, which clients compare too.
    pub status: StatusCode,
    /// Words in the letter case that clients match on; any case if they ignore it.
    pub words: &'static str,
    /// Clients that match on the text.
    pub clients: &'static [&'static str],
    /// Effect of a match in these clients.
    pub effect: &'static str,
}

/// The team has reached its limit of sandboxes.
pub const TOO_MANY_SANDBOXES: Compared = Compared {
    when: "a create or connect above the team's limit of concurrent sandboxes",
    status: StatusCode::TOO_MANY_REQUESTS,
    words: "maximum number of concurrent",
    clients: &["harbor", "@computesdk/e2b (`limit`)"],
    effect: "the client waits until another sandbox has stopped",
};
/// The timeout is longer than the team's limit.
pub const TOO_LONG: Compared = Compared {
    when: "a create or connect with a timeout above the team's limit",
    status: StatusCode::BAD_REQUEST,
    words: "Timeout cannot be greater than",
    clients: &["pydantic-ai-harness"],
    effect: "the client names the setting of its own to lower",
};
/// The template does not have the tag.
pub const UNKNOWN_TAG: Compared = Compared {
    when: "a create from a tag or a build that is not ready",
    status: StatusCode::NOT_FOUND,
    words: "does not exist",
    clients: &["harbor"],
    effect: "the client waits until the build is ready",
};
/// The template does not exist.
pub const UNKNOWN_TEMPLATE: Compared = Compared {
    when: "a create from a template that does not exist",
    status: StatusCode::NOT_FOUND,
    words: "not found",
    clients: &["@mastra/e2b"],
    effect: "the client builds its template",
};

/// All texts that clients match on.
pub const ALL: &[Compared] = &[TOO_MANY_SANDBOXES, TOO_LONG, UNKNOWN_TAG, UNKNOWN_TEMPLATE];

pub(crate) fn too_many_sandboxes(max: u32) -> String {
    format!("your team has reached the {} sandboxes, {max}: wait until one ends, or kill one", TOO_MANY_SANDBOXES.words)
}

/// Returns the message with the limit in hours, like E2B, or in seconds if it is not a whole number of hours.
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

/// Returns the message about a template that the operator did not select.
pub(crate) fn unprepared_template(alias: &str) -> String {
    format!(
        "template '{alias}' {}: the operator has to run `hearth setup --template {alias}` first",
        UNKNOWN_TEMPLATE.words
    )
}
