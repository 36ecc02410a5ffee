//! The network rules of a sandbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Ingress and egress rules of a sandbox.
// Members that Hearth does not support yet are stored as JSON, so that a request with one of them is rejected with the
// name of the member.
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
    /// With `false`, visitors need the traffic access token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Value of the `Host` header in requests to programs in the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mask_request_host: Option<String>,
    /// Ports in the sandbox that speak TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 65535)]
    pub https_ports: Option<Vec<u16>>,
    /// Headers to add to egress requests, by domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rules: Option<BTreeMap<String, serde_json::Value>>,
    /// SOCKS5 proxy for egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub egress_proxy: Option<serde_json::Value>,
    /// DNS resolvers that stay reachable: the default resolver if absent, none if empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub dns_servers: Option<Vec<String>>,
}
