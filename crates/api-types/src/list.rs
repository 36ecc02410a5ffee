//! Query of `GET /v2/sandboxes`.
//!
//! It is parsed from the raw query text, because the metadata filter is encoded three times and arrays are joined by
//! commas.

use std::collections::{BTreeMap, BTreeSet};

use hearth_types::{ReferenceError, TemplateReference};
use jiff::Timestamp;
use utoipa::IntoParams;

use crate::form::{FormError, decode, pairs};
use crate::page::{Cursor, Order, TokenError};
use crate::sandbox::SandboxState;

/// Maximum and default number of items of a page.
pub const LIMIT_MAX: u32 = 100;

/// Reason for rejecting a query. The texts are sent to clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The query is not form encoded.
    #[error("query is malformed: {0}")]
    Form(FormError),
    /// The state is not a public one.
    #[error("state must be a comma separated list of `running` and `paused`")]
    State,
    /// The second or third encoding of the filter is malformed.
    #[error("metadata filter is malformed: {0}")]
    Metadata(FormError),
    /// The filter has a key but no `=`.
    #[error("metadata filter must be `key=value` pairs joined by `&`")]
    MetadataPair,
    /// The template reference cannot be parsed.
    #[error("template is invalid: {0}")]
    Template(ReferenceError),
    /// The template has a tag, but the filter does not support tags.
    #[error("template must not have a tag")]
    TemplateTag,
    /// The time cannot be parsed.
    #[error("startedAfter must be an RFC 3339 time")]
    StartedAfter,
    /// The order is unknown.
    #[error("order must be `asc` or `desc`")]
    Order,
    /// The limit is not a valid page size.
    #[error("limit must be an integer from 1 to {LIMIT_MAX}")]
    Limit,
    /// The page token is not valid for this list.
    #[error("{0}")]
    Token(TokenError),
}

/// Filter, order and page of a list of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct ListQuery {
    /// States to include, joined by commas; never empty.
    #[param(
        rename = "state", value_type = Option<Vec<SandboxState>>, inline, style = Form, explode = false, min_items = 1
    )]
    pub states: BTreeSet<SandboxState>,
    /// Required metadata: `key=value` pairs joined by `&`.
    ///
    /// Keys and values are form encoded, and the joined text is form encoded once more.
    #[param(value_type = Option<String>)]
    pub metadata: BTreeMap<String, String>,
    /// ID or alias of the template that a sandbox was created from.
    #[param(value_type = Option<String>, pattern = "^([A-Za-z0-9_-]+/)?[A-Za-z0-9_-]+$", max_length = 386)]
    pub template: Option<TemplateReference>,
    /// Earliest start time, inclusive.
    #[param(value_type = Option<Timestamp>)]
    pub started_after: Option<Timestamp>,
    /// Order by start time.
    #[param(value_type = Option<Order>, inline)]
    pub order: Order,
    /// Maximum number of items of the page.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 100)]
    pub limit: u32,
    /// `X-Next-Token` of the previous page.
    #[param(rename = "nextToken", value_type = Option<String>)]
    pub after: Option<Cursor>,
}

impl ListQuery {
    /// Parses the text after the `?`. Unknown parameters are ignored; one without a value counts as absent.
    ///
    /// # Errors
    /// [`QueryError`], whose text is for the client.
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        let mut parameters: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in pairs(query).map_err(QueryError::Form)?.into_iter().filter(|(_, value)| !value.is_empty())
        {
            match parameters.get_mut(&name) {
                // A repeated parameter means the same as a joined array.
                Some(before) if name == "state" => {
                    before.push(',');
                    before.push_str(&value);
                }
                Some(_) => {}
                None => {
                    parameters.insert(name, value);
                }
            }
        }
        let get = |name: &str| parameters.get(name).map(String::as_str);
        let order = get("order").map_or(Ok(Order::Descending), order)?;
        Ok(Self {
            states: get("state").map_or(Ok(BTreeSet::from([SandboxState::Running, SandboxState::Paused])), states)?,
            metadata: get("metadata").map_or(Ok(BTreeMap::new()), metadata)?,
            template: get("template").map(template).transpose()?,
            started_after: get("startedAfter").map(started_after).transpose()?,
            order,
            limit: get("limit").map_or(Ok(LIMIT_MAX), limit)?,
            after: get("nextToken")
                .map(|token| Cursor::from_token(token, order))
                .transpose()
                .map_err(QueryError::Token)?,
        })
    }
}

fn order(text: &str) -> Result<Order, QueryError> {
    match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        _ => Err(QueryError::Order),
    }
}

fn states(text: &str) -> Result<BTreeSet<SandboxState>, QueryError> {
    text.split(',')
        .map(|state| match state {
            "running" => Ok(SandboxState::Running),
            "paused" => Ok(SandboxState::Paused),
            _ => Err(QueryError::State),
        })
        .collect()
}

/// Decodes the second and third encoding of the filter; the first is the encoding of the query itself.
fn metadata(text: &str) -> Result<BTreeMap<String, String>, QueryError> {
    let joined = decode(text).map_err(QueryError::Metadata)?;
    let mut filter = BTreeMap::new();
    for piece in joined.split('&').filter(|piece| !piece.is_empty()) {
        let (key, value) = piece.split_once('=').ok_or(QueryError::MetadataPair)?;
        filter.insert(decode(key).map_err(QueryError::Metadata)?, decode(value).map_err(QueryError::Metadata)?);
    }
    Ok(filter)
}

fn template(text: &str) -> Result<TemplateReference, QueryError> {
    let reference: TemplateReference = text.parse().map_err(QueryError::Template)?;
    if reference.explicit_tag().is_some() { Err(QueryError::TemplateTag) } else { Ok(reference) }
}

fn started_after(text: &str) -> Result<Timestamp, QueryError> {
    // An unencoded `+` of an offset was decoded to a space; a valid time contains no space.
    text.replace(' ', "+").parse().map_err(|_| QueryError::StartedAfter)
}

fn limit(text: &str) -> Result<u32, QueryError> {
    let limit: u32 = text.parse().map_err(|_| QueryError::Limit)?;
    if (1..=LIMIT_MAX).contains(&limit) { Ok(limit) } else { Err(QueryError::Limit) }
}

/// Parses only the `metadata` parameter, the single parameter of `GET /sandboxes`.
///
/// # Errors
/// [`QueryError`], whose text is for the client.
pub fn metadata_of(query: &str) -> Result<BTreeMap<String, String>, QueryError> {
    let parameters = pairs(query).map_err(QueryError::Form)?;
    let filter = parameters.iter().find(|(name, value)| name == "metadata" && !value.is_empty());
    filter.map_or(Ok(BTreeMap::new()), |(_, value)| metadata(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_empty_query_lists_everything_newest_first() {
        let query = ListQuery::parse("").expect("valid");
        assert_eq!(query.states, BTreeSet::from([SandboxState::Running, SandboxState::Paused]));
        assert_eq!((query.order, query.limit, query.metadata.len()), (Order::Descending, 100, 0));
        assert_eq!((query.template, query.started_after, query.after), (None, None, None));
    }

    #[test]
    fn the_contract_s_example_filter_is_decoded() {
        let query = ListQuery::parse("metadata=a%252520b%3Dc%252526d%25253D%2525C3%2525A9").expect("valid");
        assert_eq!(query.metadata, map(&[("a b", "c&d=é")]));
    }

    #[test]
    fn filters_that_are_encoded_once_are_accepted() {
        for (text, expected) in [
            ("metadata=user%3Dabc%26app%3Dprod", map(&[("user", "abc"), ("app", "prod")])),
            ("metadata=user=abc", map(&[("user", "abc")])),
            ("metadata=a%3D", map(&[("a", "")])),
            ("metadata=", map(&[])),
        ] {
            assert_eq!(ListQuery::parse(text).expect(text).metadata, expected, "{text}");
            assert_eq!(metadata_of(text).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn arrays_may_be_joined_encoded_or_repeated() {
        let both = BTreeSet::from([SandboxState::Running, SandboxState::Paused]);
        for text in ["state=running,paused", "state=running%2Cpaused", "state=running&state=paused"] {
            assert_eq!(ListQuery::parse(text).expect(text).states, both, "{text}");
        }
        assert_eq!(ListQuery::parse("state=paused").expect("valid").states, BTreeSet::from([SandboxState::Paused]));
    }

    #[test]
    fn times_orders_limits_and_tokens_are_parsed() {
        let query =
            ListQuery::parse("startedAfter=2026-01-02T03:04:05.000001%2B02:00&order=asc&limit=1").expect("valid");
        assert_eq!(query.started_after, Some("2026-01-02T01:04:05.000001Z".parse().expect("valid")));
        assert_eq!((query.order, query.limit), (Order::Ascending, 1));
        let cursor = Cursor { at: "2026-01-02T01:04:05Z".parse().expect("valid"), id: "i1".to_owned() };
        let token = cursor.to_token(Order::Ascending);
        let query = ListQuery::parse(&format!("order=asc&nextToken={token}")).expect("valid");
        assert_eq!(query.after, Some(cursor));
        assert_eq!(
            ListQuery::parse(&format!("nextToken={token}")),
            Err(QueryError::Token(TokenError::Order)),
            "another order"
        );
    }

    #[test]
    fn invalid_queries_are_rejected() {
        for (text, expected) in [
            ("limit=0", QueryError::Limit),
            ("limit=101", QueryError::Limit),
            ("limit=-1", QueryError::Limit),
            ("limit=x", QueryError::Limit),
            ("state=killing", QueryError::State),
            ("state=running,,paused", QueryError::State),
            ("order=random", QueryError::Order),
            ("startedAfter=yesterday", QueryError::StartedAfter),
            ("template=base:v1", QueryError::TemplateTag),
            ("metadata=a", QueryError::MetadataPair),
            ("metadata=a%3D%2525", QueryError::Metadata(FormError::Escape)),
            ("metadata=%25zz", QueryError::Metadata(FormError::Escape)),
            ("x=%zz", QueryError::Form(FormError::Escape)),
            ("nextToken=x", QueryError::Token(TokenError::Malformed)),
        ] {
            assert_eq!(ListQuery::parse(text), Err(expected), "{text}");
        }
        assert!(matches!(ListQuery::parse("template=a/b/c"), Err(QueryError::Template(_))));
    }

    fn encode(text: &str) -> String {
        text.bytes()
            .map(
                |byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") },
            )
            .collect()
    }

    proptest! {
        /// The SDKs encode each key and value, then the joined pairs, then the query.
        #[test]
        fn filters_of_the_sdks_round_trip(filter in prop::collection::btree_map(".*", ".*", 0..4)) {
            let pieces: Vec<String> = filter
                .iter()
                .map(|(key, value)| format!("{}={}", encode(&encode(key)), encode(&encode(value))))
                .collect();
            let text = format!("metadata={}", encode(&pieces.join("&")));
            prop_assert_eq!(ListQuery::parse(&text).expect("valid").metadata, filter);
        }

        #[test]
        fn no_query_panics(text in ".*") {
            let _ = ListQuery::parse(&text);
        }
    }
}
