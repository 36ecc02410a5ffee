//! At which address this server is for whoever asks: what it tells others to come back to.
//!
//! The name in a request is the client's word, and somebody else may have made it up. So one of our own names is taken as it
//! is configured; an address of numbers, or `localhost`, is taken as it came, because nobody can make one of those lead elsewhere for
//! a browser; and anything else becomes what is configured.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Uri, header};

/// The addresses of this server.
pub(super) struct Addresses {
    /// With a port, if it has one.
    domain: Option<String>,
    plain: String,
}

/// One of them, without a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address(String);

impl Address {
    /// With a path.
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

    /// The one that a request came to.
    pub(super) fn of(&self, uri: &Uri, headers: &HeaderMap) -> Address {
        let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        // One in the URI outranks the header (RFC 9112, 3.2.2).
        let authority = uri.authority().map(http::uri::Authority::as_str).or(named).unwrap_or_default();
        Address(self.find(&authority.to_ascii_lowercase()))
    }

    /// Whether a page at this origin (RFC 6454) is one of ours: of the address that the request came to, or of one that is
    /// configured, which a proxy in front may have replaced.
    pub(super) fn is_ours(&self, origin: &str, uri: &Uri, headers: &HeaderMap) -> bool {
        let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let asked = uri.authority().map(http::uri::Authority::as_str).or(named);
        let configured = [self.domain.as_deref().map(|domain| format!("https://{domain}")), Some(self.plain.clone())];
        let api = self.domain.as_deref().map(|domain| format!("https://api.{domain}"));
        let Some((scheme, authority)) = split(origin) else { return false };
        asked.is_some_and(|asked| with_port(asked, scheme) == with_port(authority, scheme))
            || configured.into_iter().chain([api]).flatten().any(|ours| {
                split(&ours).is_some_and(|(our_scheme, ours)| {
                    our_scheme == scheme && with_port(ours, scheme) == with_port(authority, scheme)
                })
            })
    }

    fn find(&self, authority: &str) -> String {
        if let Some(domain) = &self.domain {
            let host = without_port(domain);
            let asked = without_port(authority);
            if asked == host {
                return format!("https://{domain}");
            }
            if asked.strip_prefix("api.") == Some(host) {
                return format!("https://api.{domain}");
            }
        }
        let is_numbers =
            authority.parse::<SocketAddr>().is_ok() || authority.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4());
        let is_localhost = authority.strip_prefix("localhost").is_some_and(|rest| {
            rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
        });
        match &self.domain {
            _ if is_numbers || is_localhost => format!("http://{authority}"),
            Some(domain) => format!("https://api.{domain}"),
            None => self.plain.clone(),
        }
    }
}

/// Scheme and authority of an origin.
fn split(origin: &str) -> Option<(&str, &str)> {
    origin.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme))
}

/// An authority with its port, also where that is the scheme's own.
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
    fn pages_of_others_are_not_ours() {
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
            assert_eq!(named.is_ours(origin, &Uri::from_static("/"), &headers), expected, "{origin} at {host}");
        }
    }

    #[test]
    fn nobody_makes_up_our_address() {
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
            assert_eq!(named.of(&uri, &headers).at("/x"), "https://hearth.example:3443/x", "the URI outranks {host}");
        }
    }
}
