//! The network rules of a sandbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who may reach a sandbox, and whom it may reach.
// Parts that no code of ours reads yet are kept as JSON, so that a request which uses them is understood well enough to be
// refused by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Allowed egress: address, range, domain, `*.domain` or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub allow_out: Option<Vec<String>>,
    /// Denied egress: address or range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub deny_out: Option<Vec<String>>,
    /// `false`: visitors need the traffic token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Value of the `Host` header towards programs in the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mask_request_host: Option<String>,
    /// Ports in the sandbox that speak TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 65535)]
    pub https_ports: Option<Vec<u16>>,
    /// Headers injected by domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rules: Option<BTreeMap<String, serde_json::Value>>,
    /// SOCKS5 proxy for egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub egress_proxy: Option<serde_json::Value>,
    /// Resolvers that stay reachable; absent: the default one, empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub dns_servers: Option<Vec<String>>,
}
