//! Target of a request: sandbox and port.
//!
//! A host `<port>-<sandbox>[-…].<domain>` names both. With other hosts (an address, `localhost`, `sandbox.<domain>`,
//! the host of `E2B_SANDBOX_URL`), two headers name them. No host of the second kind can be parsed as
//! `<port>-<sandbox>.…`, so the rule is: the host first, then the headers.

use hearth_types::SandboxId;
use http::{HeaderMap, HeaderName, Request, header};

/// Sandbox id, for hosts that do not name it.
const SANDBOX_ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
/// Port, for hosts that do not name it.
const SANDBOX_PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");

/// Port of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub sandbox_id: SandboxId,
    /// Port inside the sandbox; never 0.
    pub port: u16,
}

/// Rejection of a request without a valid target.
///
/// Clients get the message as plain text with status 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The host has no dot, or its first label has no dash; and no header names a sandbox.
    #[error("Invalid host")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("Invalid sandbox port")]
    Port,
    /// The sandbox id is malformed.
    #[error("Invalid sandbox ID")]
    SandboxId,
    /// One of the two headers is missing.
    #[error("missing header")]
    MissingHeader,
}

impl Target {
    /// Returns the target of a request.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn of<B>(request: &Request<B>) -> Result<Self, TargetError> {
        // HTTP/2 and absolute URIs name the host in the URI, which takes precedence over the header (RFC 9112, 3.2.2).
        let host = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => text(request.headers(), header::HOST).unwrap_or_default(),
        };
        let headers = request.headers();
        Self::from_host(host)
            .or_else(|error| Self::from_headers(text(headers, SANDBOX_ID), text(headers, SANDBOX_PORT), error))
    }

    fn from_headers(sandbox_id: Option<&str>, port: Option<&str>, by_host: TargetError) -> Result<Self, TargetError> {
        match (sandbox_id, port) {
            (None, None) => Err(by_host),
            (Some(sandbox_id), Some(port)) => Self::from_parts(port, sandbox_id),
            _ => Err(TargetError::MissingHeader),
        }
    }

    fn from_host(host: &str) -> Result<Self, TargetError> {
        let (label, _domain) = host.split_once('.').ok_or(TargetError::Host)?;
        let (port, sandbox_id) = label.split_once('-').ok_or(TargetError::Host)?;
        // Host names are case-insensitive; ids are lowercase.
        Self::from_parts(port, &sandbox_id.to_ascii_lowercase())
    }

    /// Parses both parts. A long id, `<id>-<client>`, is reduced to its first part.
    fn from_parts(port: &str, sandbox_id: &str) -> Result<Self, TargetError> {
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or(TargetError::Port)?;
        let sandbox_id = sandbox_id.split('-').next().unwrap_or_default();
        let sandbox_id = sandbox_id.parse().map_err(|_| TargetError::SandboxId)?;
        Ok(Self { sandbox_id, port })
    }
}

/// Returns a header as text; empty if it is not text, so that it is present but names nothing.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(host: &str, sandbox_id: Option<&str>, port: Option<&str>) -> Result<Target, TargetError> {
        Target::from_host(host).or_else(|error| Target::from_headers(sandbox_id, port, error))
    }

    /// Host, both headers, and the expected target.
    type Case = (&'static str, Option<&'static str>, Option<&'static str>, Result<(&'static str, u16), TargetError>);

    #[test]
    fn hosts_and_headers_name_targets() {
        let cases: &[Case] = &[
            // By host.
            ("49983-i123.example.com", None, None, Ok(("i123", 49983))),
            ("49983-i123.example.com:3002", None, None, Ok(("i123", 49983))),
            ("3000-i123-6532622b.example.com", None, None, Ok(("i123", 3000))),
            ("3000-I12A.EXAMPLE.com", None, None, Ok(("i12a", 3000))),
            ("0080-i123.example.com", None, None, Ok(("i123", 80))),
            ("80-i123.", None, None, Ok(("i123", 80))),
            // The host takes precedence over headers.
            ("80-i123.example.com", Some("i9"), Some("1"), Ok(("i123", 80))),
            ("80-i123.example.com", Some("i9"), None, Ok(("i123", 80))),
            // By headers.
            ("localhost", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("localhost:3002", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("127.0.0.1:3002", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("[::1]:3002", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("[::ffff:127.0.0.1]", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("sandbox.example.com", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("my-server.example.com", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("hearth", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("", Some("i9"), Some("49983"), Ok(("i9", 49983))),
            ("localhost", Some("i9-6532622b"), Some("49983"), Ok(("i9", 49983))),
            // Rejected.
            ("localhost", Some("i9"), None, Err(TargetError::MissingHeader)),
            ("localhost", None, Some("49983"), Err(TargetError::MissingHeader)),
            ("my-server.example.com", None, Some("49983"), Err(TargetError::MissingHeader)),
            ("localhost", Some("I9"), Some("49983"), Err(TargetError::SandboxId)),
            ("localhost", Some(""), Some("49983"), Err(TargetError::SandboxId)),
            ("localhost", Some("i9"), Some("0"), Err(TargetError::Port)),
            ("localhost", Some("i9"), Some("+80"), Err(TargetError::Port)),
            ("localhost", Some("i9"), Some(""), Err(TargetError::Port)),
            ("localhost", None, None, Err(TargetError::Host)),
            ("", None, None, Err(TargetError::Host)),
            ("example.com", None, None, Err(TargetError::Host)),
            ("49983-i123", None, None, Err(TargetError::Host)),
            ("127.0.0.1:3002", None, None, Err(TargetError::Host)),
            ("sandbox.example.com", None, None, Err(TargetError::Host)),
            ("my-server.example.com", None, None, Err(TargetError::Port)),
            ("65536-i123.example.com", None, None, Err(TargetError::Port)),
            ("0-i123.example.com", None, None, Err(TargetError::Port)),
            ("-i123.example.com", None, None, Err(TargetError::Port)),
            ("80-.example.com", None, None, Err(TargetError::SandboxId)),
            ("80--i123.example.com", None, None, Err(TargetError::SandboxId)),
            ("80-i_3.example.com", None, None, Err(TargetError::SandboxId)),
        ];
        for (host, sandbox_id, port, expected) in cases {
            let target = parse(host, *sandbox_id, *port);
            let target =
                target.as_ref().map(|target| (target.sandbox_id.as_str(), target.port)).map_err(|error| *error);
            assert_eq!(target, *expected, "{host} {sandbox_id:?} {port:?}");
        }
    }

    #[test]
    fn the_authority_of_the_uri_takes_precedence() {
        let request = Request::get("http://80-i1.example.com/").header("host", "81-i2.example.com").body(());
        let target = Target::of(&request.expect("a request")).expect("a target");
        assert_eq!((target.sandbox_id.as_str(), target.port), ("i1", 80));
    }

    #[test]
    fn a_header_that_is_not_text_is_rejected() {
        let mut request = Request::new(());
        request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("localhost"));
        request.headers_mut().insert(SANDBOX_PORT, http::HeaderValue::from_static("80"));
        request.headers_mut().insert(SANDBOX_ID, http::HeaderValue::from_bytes(b"i\xff").expect("opaque bytes"));
        assert_eq!(Target::of(&request), Err(TargetError::SandboxId));
    }

    proptest! {
        #[test]
        fn every_target_can_be_named_by_a_host(id in "[a-z0-9]{1,64}", port in 1u16.., tail in "(-[a-z0-9]{0,8}){0,2}") {
            let target = parse(&format!("{port}-{id}{tail}.example.com:1"), None, None).expect("a target");
            prop_assert_eq!((target.sandbox_id.as_str(), target.port), (id.as_str(), port));
        }

        #[test]
        fn any_text_is_accepted_without_panic(host in ".*", sandbox_id: Option<String>, port: Option<String>) {
            if let Ok(target) = parse(&host, sandbox_id.as_deref(), port.as_deref()) {
                prop_assert_ne!(target.port, 0);
                prop_assert!(target.sandbox_id.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
            }
        }

        #[test]
        fn hosts_that_look_like_targets_never_panic(host in "[0-9a-z.:\\[\\]-]{0,40}") {
            let _ = parse(&host, None, None);
        }
    }
}
