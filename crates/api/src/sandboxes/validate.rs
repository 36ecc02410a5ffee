//! Validation of requests for new sandboxes.
//!
//! A request is rejected if it is invalid, exceeds a limit of the team, or uses a feature of the contract that this
//! server does not support. An unsupported member is rejected if ignoring it would mislead the client; a member that
//! only states a default is accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hearth_api_types::sandbox::{AutoResume, Iam, Network, NewSandbox};
use hearth_proxy::internal::DAEMON_PORT;
use hearth_store::Limits;
use hearth_types::Ingress;
use http::StatusCode;
use semver::Version;

use crate::compared;
use crate::failure::Failure;
use crate::live::Creation;

/// Limit for the total size of all environment variables.
///
/// The node receives them in one message of at most 4 MiB. In the sandbox they are part of the argument area of every
/// process, which Linux limits to 2 MiB by default.
const ENV_VARS_BYTES_MAX: usize = 1024 * 1024;
/// Limit for the total size of all metadata. A page of a list has the metadata of up to a hundred sandboxes.
const METADATA_BYTES_MAX: usize = 256 * 1024;
/// First version of the guest daemon that can require a token.
const ENVD_SECURED_SINCE: Version = Version::new(0, 2, 0);

/// Defaults of one generation of the route.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) timeout: Duration,
    /// Set if the guest daemon requires a token.
    pub(super) secured: bool,
}

/// Validates a request. Does not check that its template exists.
pub(super) fn validate(new: NewSandbox, defaults: Defaults, limits: Limits) -> Result<Creation, Failure> {
    let NewSandbox {
        template_id,
        timeout,
        metadata,
        env_vars,
        auto_pause,
        auto_pause_memory,
        auto_resume,
        allow_internet_access,
        network,
        volume_mounts,
        // Not used by the control plane: the SDK starts the MCP gateway in the sandbox.
        mcp: _,
        iam,
    } = new;
    let reference = template_id.parse().map_err(Failure::invalid)?;
    let timeout = check_timeout(timeout, defaults.timeout, limits)?;
    let metadata = metadata.unwrap_or_default();
    check_size("metadata", &metadata, METADATA_BYTES_MAX)?;
    if metadata.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
        // PostgreSQL cannot store such texts.
        return Err(Failure::invalid("metadata must not contain a zero byte"));
    }
    let env_vars = env_vars.unwrap_or_default();
    check_env_vars(&env_vars)?;
    check_lifecycle(auto_pause.unwrap_or(false), auto_pause_memory.unwrap_or(true), auto_resume)?;
    let ingress = check_network(network.unwrap_or_default(), defaults.secured)?;
    if volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
        return Err(Failure::unsupported(StatusCode::BAD_REQUEST, "volumes (volumeMounts)"));
    }
    if iam.is_some_and(|Iam { tokens }| tokens.is_some_and(|tokens| !tokens.is_empty())) {
        return Err(Failure::unsupported(StatusCode::BAD_REQUEST, "workload identity (iam)"));
    }
    let secured = defaults.secured;
    Ok(Creation { reference, timeout, metadata, env_vars, secured, allow_internet_access, ingress })
}

fn check_timeout(given: Option<i32>, default: Duration, limits: Limits) -> Result<Duration, Failure> {
    let Some(given) = given else {
        // The default is limited instead of rejected: the client did not request it.
        return Ok(default.min(limits.sandbox_length_max));
    };
    let seconds = u64::try_from(given).ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.ok_or_else(|| Failure::invalid("timeout must be greater than 0"))?;
    check_length(Duration::from_secs(seconds), limits)
}

/// Checks a length against the team's maximum sandbox length.
pub(super) fn check_length(length: Duration, limits: Limits) -> Result<Duration, Failure> {
    let max = limits.sandbox_length_max;
    if length > max {
        return Err(Failure::bad_request(compared::too_long(max)));
    }
    Ok(length)
}

fn check_size(what: &str, texts: &BTreeMap<String, String>, bytes_max: usize) -> Result<(), Failure> {
    let bytes: usize = texts.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > bytes_max {
        return Err(Failure::invalid(format_args!("{what} must have at most {bytes_max} bytes, but has {bytes}")));
    }
    Ok(())
}

/// Rejects variables that execve(2) cannot pass, so that the client receives the reason.
fn check_env_vars(env_vars: &BTreeMap<String, String>) -> Result<(), Failure> {
    check_size("envVars", env_vars, ENV_VARS_BYTES_MAX)?;
    for (name, value) in env_vars {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Failure::invalid("a name in envVars must not be empty, and not contain `=` or a zero byte"));
        }
        if value.contains('\0') {
            return Err(Failure::invalid(format_args!(
                "the value of `{name}` in envVars must not contain a zero byte"
            )));
        }
    }
    Ok(())
}

fn check_lifecycle(pauses: bool, keeps_memory: bool, auto_resume: Option<AutoResume>) -> Result<(), Failure> {
    let resumes = auto_resume.is_some_and(|AutoResume { enabled }| enabled);
    if !keeps_memory && !pauses {
        return Err(Failure::invalid("autoPauseMemory must not be false without autoPause"));
    }
    if !keeps_memory && resumes {
        return Err(Failure::invalid("autoPauseMemory must not be false with autoResume"));
    }
    if pauses {
        return Err(Failure::unsupported(
            StatusCode::FORBIDDEN,
            "pausing sandboxes (autoPause); kill them on timeout instead: lifecycle={\"on_timeout\": \"kill\"} in Python, \
             lifecycle: { onTimeout: 'kill' } in JavaScript, \"autoPause\": false in a request",
        ));
    }
    if resumes {
        return Err(Failure::unsupported(
            StatusCode::FORBIDDEN,
            "resuming sandboxes on traffic (autoResume); omit auto_resume from lifecycle in Python, autoResume in \
             JavaScript, or send \"autoResume\": {\"enabled\": false}",
        ));
    }
    Ok(())
}

/// Converts the rules for inbound traffic. Rejects rules for outbound traffic that differ from the defaults.
fn check_network(network: Network, secured: bool) -> Result<Ingress, Failure> {
    let Network {
        allow_out,
        deny_out,
        allow_public_traffic,
        mask_request_host,
        https_ports,
        rules,
        egress_proxy,
        dns_servers,
    } = network;
    let unsupported = [
        (allow_out.is_some_and(|list| !list.is_empty()), "egress rules (network.allowOut)"),
        (
            deny_out.is_some_and(|list| !list.is_empty()),
            "egress rules (network.denyOut); allow_internet_access: false denies everything",
        ),
        (rules.is_some_and(|rules| !rules.is_empty()), "header rules (network.rules)"),
        (egress_proxy.is_some(), "egress proxies (network.egressProxy)"),
        // An empty list differs from the default: it denies all resolvers.
        (dns_servers.is_some(), "chosen resolvers (network.dnsServers)"),
    ];
    if let Some((_, what)) = unsupported.into_iter().find(|(is_used, _)| *is_used) {
        return Err(Failure::unsupported(StatusCode::FORBIDDEN, what));
    }
    let public = allow_public_traffic.unwrap_or(true);
    if !public && !secured {
        return Err(Failure::invalid("network.allowPublicTraffic must not be false without secure"));
    }
    let host_mask = mask_request_host.map(|mask| mask.parse()).transpose();
    let host_mask = host_mask.map_err(|error| Failure::invalid(format_args!("network.maskRequestHost: {error}")))?;
    let https_ports: BTreeSet<u16> = https_ports.unwrap_or_default().into_iter().collect();
    if let Some(port) = https_ports.iter().find(|port| [0, DAEMON_PORT].contains(*port)) {
        return Err(Failure::invalid(format_args!("network.httpsPorts must not contain {port}")));
    }
    Ok(Ingress { public, host_mask, https_ports })
}

/// Checks that the guest daemon of a build can require a token.
pub(super) fn check_envd_version(envd_version: &str) -> Result<(), Failure> {
    let version: Version =
        envd_version.parse().map_err(|error| Failure::internal("reading the envd version of a build", &error))?;
    if version < ENVD_SECURED_SINCE {
        return Err(Failure::bad_request(format!(
            "the template's envd {version} cannot be secured: build the template again, or set secure to false"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn check(body: &str) -> Result<Creation, Failure> {
        let new: NewSandbox = serde_json::from_str(body).expect(body);
        let defaults = Defaults { timeout: Duration::from_secs(300), secured: true };
        validate(new, defaults, Limits { sandbox_length_max: HOUR, ..Limits::STANDARD })
    }

    fn with(member: &str) -> String {
        format!(r#"{{"templateID":"base",{member}}}"#)
    }

    #[test]
    fn explicit_defaults_are_accepted() {
        for member in [
            r#""autoPause":false,"autoPauseMemory":true,"autoResume":{"enabled":false}"#,
            r#""network":{}"#,
            r#""network":null"#,
            r#""network":{"allowOut":[],"denyOut":[],"allowPublicTraffic":true}"#,
            r#""network":{"httpsPorts":[],"rules":{},"egressProxy":null}"#,
            r#""network":{"allowPublicTraffic":null}"#,
            r#""volumeMounts":[]"#,
            r#""iam":{"tokens":{}}"#,
            r#""iam":{}"#,
            r#""mcp":{"server":{"key":"value"}}"#,
            r#""metadata":{},"envVars":{}"#,
            r#""timeout":1"#,
            r#""timeout":3600"#,
        ] {
            check(&with(member)).expect(member);
        }
        let creation = check(r#"{"templateID":" Base "}"#).expect("valid");
        assert_eq!((creation.reference.to_string().as_str(), creation.timeout.as_secs()), ("base", 300));
        assert_eq!((creation.secured, creation.allow_internet_access), (true, None));
        let creation = check(&with(r#""allow_internet_access":false,"timeout":7"#)).expect("valid");
        assert_eq!((creation.allow_internet_access, creation.timeout.as_secs()), (Some(false), 7));
    }

    #[test]
    fn unsupported_members_are_rejected_by_name() {
        for (member, name) in [
            (r#""autoPause":true"#, "autoPause"),
            (r#""autoResume":{"enabled":true}"#, "autoResume"),
            (r#""volumeMounts":[{"name":"v","path":"/v"}]"#, "volumeMounts"),
            (r#""iam":{"tokens":{"t":{"audience":"a","tokenType":"JWT-SVID"}}}"#, "iam"),
            (r#""network":{"allowOut":["1.1.1.1"]}"#, "allowOut"),
            (r#""network":{"denyOut":["0.0.0.0/0"]}"#, "denyOut"),
            (r#""network":{"rules":{"example.com":[]}}"#, "rules"),
            (r#""network":{"egressProxy":{"address":"p:1"}}"#, "egressProxy"),
            (r#""network":{"dnsServers":[]}"#, "dnsServers"),
        ] {
            let failure = format!("{:?}", check(&with(member)).expect_err(member));
            assert!(failure.contains("FeatureNotSupported") && failure.contains(name), "{member}: {failure}");
        }
    }

    #[test]
    fn inbound_rules_are_converted() {
        for member in [r#""network":{}"#, r#""network":{"allowPublicTraffic":true,"httpsPorts":[]}"#, r#""timeout":1"#]
        {
            assert_eq!(check(&with(member)).expect(member).ingress, Ingress::open(), "{member}");
        }
        let member =
            r#""network":{"allowPublicTraffic":false,"maskRequestHost":"h:${PORT}","httpsPorts":[8443,443,443]}"#;
        let ingress = check(&with(member)).expect(member).ingress;
        assert_eq!(ingress.host_mask.map(|mask| mask.host(80)), Some("h:80".to_owned()));
        assert_eq!((ingress.public, ingress.https_ports), (false, [443, 8443].into()));

        let new: NewSandbox = serde_json::from_str(&with(r#""network":{"allowPublicTraffic":false}"#)).expect("valid");
        let defaults = Defaults { timeout: Duration::from_secs(15), secured: false };
        let failure =
            validate(new, defaults, Limits { sandboxes_max: 20, sandbox_length_max: HOUR, ..Limits::STANDARD });
        let failure = format!("{:?}", failure.expect_err("it is not secured"));
        assert!(failure.contains("400") && failure.contains("allowPublicTraffic"), "{failure}");
    }

    #[test]
    fn invalid_requests_are_rejected() {
        let many = |name: &str, bytes: usize| with(&format!(r#""{name}":{{"a":"{}"}}"#, "x".repeat(bytes)));
        for (body, message) in [
            (r#"{"templateID":""}"#.to_owned(), "empty"),
            (r#"{"templateID":"a/b/c"}"#.to_owned(), "name"),
            (with(r#""timeout":0"#), "greater than 0"),
            (with(r#""timeout":-5"#), "greater than 0"),
            (with(r#""timeout":3601"#), "Timeout cannot be greater than 1 hours"),
            (with(r#""autoPauseMemory":false"#), "autoPauseMemory"),
            (with(r#""autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}"#), "autoPauseMemory"),
            (with(r#""envVars":{"":"x"}"#), "envVars"),
            (with(r#""envVars":{"A=B":"x"}"#), "envVars"),
            (with(r#""envVars":{"A":"x\u0000"}"#), "zero byte"),
            (with(r#""network":{"maskRequestHost":""}"#), "maskRequestHost"),
            (with(r#""network":{"maskRequestHost":"http://localhost"}"#), "maskRequestHost"),
            (with(r#""network":{"maskRequestHost":"localhost:1${PORT}"}"#), "maskRequestHost"),
            (with(r#""network":{"httpsPorts":[443,49983]}"#), "must not contain 49983"),
            (with(r#""network":{"httpsPorts":[0]}"#), "must not contain 0"),
            (with(r#""metadata":{"a":"x\u0000"}"#), "zero byte"),
            (with(r#""metadata":{"a\u0000":"x"}"#), "zero byte"),
            (many("envVars", ENV_VARS_BYTES_MAX), "envVars"),
            (many("metadata", METADATA_BYTES_MAX), "metadata"),
        ] {
            let failure = format!("{:?}", check(&body).expect_err(message));
            assert!(failure.contains("400") && failure.contains(message), "{message}: {failure}");
            assert!(!failure.contains("FeatureNotSupported"), "{failure}");
        }
        check(&many("envVars", ENV_VARS_BYTES_MAX - 1)).expect("just fits");
    }

    #[test]
    fn old_guest_daemons_cannot_be_secured() {
        for (version, is_ok) in
            [("0.1.9", false), ("0.2.0", true), ("0.6.4", true), ("1.0.0", true), ("nonsense", false)]
        {
            assert_eq!(check_envd_version(version).is_ok(), is_ok, "{version}");
        }
    }
}
