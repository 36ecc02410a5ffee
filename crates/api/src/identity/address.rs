//! Addresses of this server in redirects and replies.
//!
//! The host in a request is untrusted, because another party may have chosen it. A name of the configured domain maps
//! to its configured form. An IP address or `localhost` is used as sent, because nobody can make it resolve to another
//! place for a browser. Any other host maps to the configured address.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Uri, header};

/// Configured addresses of this server.
pub(super) struct Addresses {
    /// Domain in lower case, with an optional port.
    domain: Option<String>,
    /// URL without a domain name and without a trailing slash.
    plain: String,
}

/// Base URL of this server, without a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address(String);

impl Address {
    /// Returns the URL of a path.
    pub(super) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl Addresses {
    pub(super) fn new(domain: Option<&str>, plain: &str) -> Self {
        Self { domain: domain.map(str::to_ascii_lowercase), plain: plain.trim_end_matches('/').to_owned() }
    }

    /// Returns the address that a request was sent to.
    pub(super) fn of(&self, uri: &Uri, headers: &HeaderMap) -> Address {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        // The authority of the URI takes precedence over the header (RFC 9112, section 3.2.2).
        let authority = uri.authority().map(http::uri::Authority::as_str).or(host).unwrap_or_default();
        Address(self.find(&authority.to_ascii_lowercase()))
    }

    /// Returns true if an origin (RFC 6454) is an origin of this server.
    ///
    /// It is the origin of the request's address, or of a configured address, which a reverse proxy may have replaced.
    pub(super) fn is_own_origin(&self, origin: &str, uri: &Uri, headers: &HeaderMap) -> bool {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let requested = uri.authority().map(http::uri::Authority::as_str).or(host);
        let configured = [self.domain.as_deref().map(|domain| format!("https://{domain}")), Some(self.plain.clone())];
        let api = self.domain.as_deref().map(|domain| format!("https://api.{domain}"));
        let Some((scheme, authority)) = split(origin) else { return false };
        requested.is_some_and(|requested| with_port(requested, scheme) == with_port(authority, scheme))
            || configured.into_iter().chain([api]).flatten().any(|own| {
                split(&own).is_some_and(|(own_scheme, own)| {
                    own_scheme == scheme && with_port(own, scheme) == with_port(authority, scheme)
                })
            })
    }

    fn find(&self, authority: &str) -> String {
        if let Some(domain) = &self.domain {
            let host = without_port(domain);
            let requested = without_port(authority);
            if requested == host {
                return format!("https://{domain}");
            }
            if requested.strip_prefix("api.") == Some(host) {
                return format!("https://api.{domain}");
            }
        }
        let is_ip = authority.parse::<SocketAddr>().is_ok() || authority.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4());
        let is_localhost = authority.strip_prefix("localhost").is_some_and(|rest| {
            rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
        });
        match &self.domain {
            _ if is_ip || is_localhost => format!("http://{authority}"),
            Some(domain) => format!("https://api.{domain}"),
            None => self.plain.clone(),
        }
    }
}

/// Returns the scheme and authority of an HTTP or HTTPS origin.
fn split(origin: &str) -> Option<(&str, &str)> {
    origin.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme))
}

/// Returns an authority in lower case with its port, or with the default port of the scheme.
fn with_port(authority: &str, scheme: &str) -> String {
    let authority = authority.to_ascii_lowercase();
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match scheme {
        _ if has_port => authority,
        "https" => format!("{authority}:443"),
        _ => format!("{authority}:80"),
    }
}

fn without_port(authority: &str) -> &str {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_origins_are_not_own_origins() {
        let named = Addresses::new(Some("hearth.example:3443"), "http://127.0.0.1:3000/");
        for (host, origin, expected) in [
            ("127.0.0.1:3000", "http://127.0.0.1:3000", true),
            ("127.0.0.1:3000", "http://127.0.0.1:8080", false),
            ("127.0.0.1:3000", "http://localhost:3000", false),
            ("192.0.2.7:81", "http://192.0.2.7:81", true),
            ("192.0.2.7", "http://192.0.2.7", true),
            ("192.0.2.7:80", "http://192.0.2.7", true),
            ("Api.Hearth.Example", "https://api.hearth.example", true),
            ("api.hearth.example:443", "https://api.hearth.example", true),
            ("[::1]", "http://[::1]", true),
            ("inner:3000", "https://api.hearth.example:3443", true),
            ("inner:3000", "http://api.hearth.example:3443", false),
            ("inner:3000", "https://49983-i1.hearth.example:3443", false),
            ("inner:3000", "https://evil.example", false),
            ("evil.example", "null", false),
            ("127.0.0.1:3000", "", false),
            ("127.0.0.1:3000", "file://", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a header"));
            assert_eq!(named.is_own_origin(origin, &Uri::from_static("/"), &headers), expected, "{origin} at {host}");
        }
    }

    #[test]
    fn unknown_hosts_map_to_the_configured_address() {
        let named = Addresses::new(Some("Hearth.example:3443"), "http://127.0.0.1:3000/");
        let plain = Addresses::new(None, "http://127.0.0.1:3000/");
        for (host, with_names, without) in [
            ("api.hearth.example:3443", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("API.Hearth.Example", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("hearth.example:3443", "https://hearth.example:3443", "http://127.0.0.1:3000"),
            ("hearth.example.", "https://hearth.example:3443", "http://127.0.0.1:3000"),
            ("127.0.0.1:3000", "http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("192.0.2.7:81", "http://192.0.2.7:81", "http://192.0.2.7:81"),
            ("192.0.2.7", "http://192.0.2.7", "http://192.0.2.7"),
            ("[2001:db8::1]:81", "http://[2001:db8::1]:81", "http://[2001:db8::1]:81"),
            ("localhost:3000", "http://localhost:3000", "http://localhost:3000"),
            ("localhost:x", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("localhost.evil.example:3000", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("api.hearth.example.evil.example", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("49983-i1.hearth.example:3443", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("evil.example", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("user@127.0.0.1:3000", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
            ("", "https://api.hearth.example:3443", "http://127.0.0.1:3000"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a header"));
            for (addresses, expected) in [(&named, with_names), (&plain, without)] {
                assert_eq!(addresses.of(&Uri::from_static("/"), &headers).at(""), expected, "{host}");
            }
            let uri = Uri::from_static("https://hearth.example:3443/");
            assert_eq!(
                named.of(&uri, &headers).at("/x"),
                "https://hearth.example:3443/x",
                "the URI takes precedence over {host}"
            );
        }
    }
}
