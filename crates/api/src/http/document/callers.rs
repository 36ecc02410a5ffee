//! Who may call a route, as the document says it. That it is so, extractors of [`auth`](super::super::auth) see to; that
//! both are the same, a test does.

use std::collections::BTreeMap;

use utoipa::openapi::RefOr;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};

const KEY: &str = "ApiKey";
const USER: &str = "UserToken";
const ADMIN: &str = "AdminToken";
const TEAM: &str = "Team";

/// Whom a route lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callers {
    /// No credentials are asked for.
    Anybody,
    /// Whoever speaks for a team: [`Reader`](crate::http::auth::Reader), [`Writer`](crate::http::auth::Writer).
    Team,
    /// People and operators who look after a team: [`Keeper`](crate::http::auth::Keeper),
    /// [`Editor`](crate::http::auth::Editor).
    People,
    /// People who do: [`Member`](crate::http::auth::Member).
    Members,
    /// People: [`Caller`](crate::http::auth::Caller).
    Users,
    /// [`Operator`](crate::http::auth::Operator)s.
    Operators,
}

impl Callers {
    /// The sets of credentials of which one is enough.
    pub(super) fn credentials(self) -> Vec<SecurityRequirement> {
        let any_of: &[&[&str]] = match self {
            Self::Anybody => &[],
            Self::Team => &[&[KEY], &[USER, TEAM], &[ADMIN, TEAM]],
            Self::People => &[&[USER, TEAM], &[ADMIN, TEAM]],
            Self::Members => &[&[USER, TEAM]],
            Self::Users => &[&[USER]],
            Self::Operators => &[&[ADMIN]],
        };
        let no_scopes: [&str; 0] = [];
        any_of
            .iter()
            .map(|all_of| all_of.iter().fold(SecurityRequirement::default(), |all, name| all.add(*name, no_scopes)))
            .collect()
    }

    /// Whether a team is found out, which may be banned, or call too often.
    pub(super) fn speak_for_a_team(self) -> bool {
        matches!(self, Self::Team | Self::People | Self::Members)
    }

    /// Whether the store is asked who it is, which can fail and take too long.
    pub(super) fn are_looked_up(self) -> bool {
        self.speak_for_a_team() || self == Self::Users
    }

    /// Whether it may be a team that there is not: only operators may name such a one.
    pub(super) fn may_name_any_team(self) -> bool {
        matches!(self, Self::Team | Self::People)
    }
}

/// The credentials themselves.
pub(super) fn schemes() -> BTreeMap<String, RefOr<SecurityScheme>> {
    let header =
        |name: &str, about: &str| SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, about)));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
    let bearer = bearer.description(Some("Token of a user, from the issuer that the operator configured."));
    [
        (KEY, header("X-API-Key", "Speaks for a team: `e2b_` and hexadecimal digits.")),
        (USER, SecurityScheme::Http(bearer.build())),
        (ADMIN, header("X-Admin-Token", "The secret of whoever runs this server.")),
        (TEAM, header("X-Team-ID", "For which team a user or an operator acts. Not a secret.")),
    ]
    .into_iter()
    .map(|(name, scheme)| (name.to_owned(), RefOr::T(scheme)))
    .collect()
}
