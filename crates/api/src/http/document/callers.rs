//! Accepted credentials of a route, as described in the document.
//!
//! Extractors of [`auth`](super::super::auth) enforce them. A test checks that the description matches the extractors.

use std::collections::BTreeMap;

use utoipa::openapi::RefOr;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};

const KEY: &str = "ApiKey";
const USER: &str = "UserToken";
const ADMIN: &str = "AdminToken";
const TEAM: &str = "Team";

/// Callers that a route accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Any caller, without credentials.
    Anyone,
    /// Any credentials for a team.
    ///
    /// Extractors are [`UnbannedTeam`](crate::http::auth::UnbannedTeam) and
    /// [`ActiveTeam`](crate::http::auth::ActiveTeam).
    Team,
    /// Members of a team, and operators, but no API keys.
    ///
    /// Extractors are [`ManagedUnbannedTeam`](crate::http::auth::ManagedUnbannedTeam) and
    /// [`ManagedActiveTeam`](crate::http::auth::ManagedActiveTeam).
    Managers,
    /// Members of a team: [`Member`](crate::http::auth::Member).
    Members,
    /// Users without a team: [`AuthenticatedUser`](crate::http::auth::AuthenticatedUser).
    Users,
    /// Operators without a team: [`Operator`](crate::http::auth::Operator).
    Operators,
}

impl Callers {
    /// Returns the sets of credentials. A request needs one of the sets.
    pub(super) fn credentials(self) -> Vec<SecurityRequirement> {
        let any_of: &[&[&str]] = match self {
            Self::Anyone => &[],
            Self::Team => &[&[KEY], &[USER, TEAM], &[ADMIN, TEAM]],
            Self::Managers => &[&[USER, TEAM], &[ADMIN, TEAM]],
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

    /// Returns true if authentication selects a team, which may be banned or exceed its rate limit.
    pub(super) fn select_a_team(self) -> bool {
        matches!(self, Self::Team | Self::Managers | Self::Members)
    }

    /// Returns true if authentication queries the store, which can fail or time out.
    pub(super) fn need_the_store(self) -> bool {
        self.select_a_team() || self == Self::Users
    }

    /// Returns true if an operator may name a team, which may not exist.
    pub(super) fn may_name_any_team(self) -> bool {
        matches!(self, Self::Team | Self::Managers)
    }
}

/// Returns the security schemes by name.
pub(super) fn schemes() -> BTreeMap<String, RefOr<SecurityScheme>> {
    let header =
        |name: &str, about: &str| SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, about)));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
    let bearer = bearer.description(Some("Token of a user, from this server or from the configured issuer."));
    [
        (KEY, header("X-API-Key", "API key of a team: `e2b_` followed by hexadecimal digits.")),
        (USER, SecurityScheme::Http(bearer.build())),
        (ADMIN, header("X-Admin-Token", "Admin token of this server, for its operators.")),
        (TEAM, header("X-Team-ID", "Team for which a user or an operator acts. Not a secret.")),
    ]
    .into_iter()
    .map(|(name, scheme)| (name.to_owned(), RefOr::T(scheme)))
    .collect()
}
