//! Content encodings of replies and of request bodies.

use http::{HeaderMap, StatusCode, header};

use crate::failure::Failure;

/// Content encoding of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
}

/// Chooses by `Accept-Encoding` (RFC 9110, 12.5.3) in the contract's order. Parts of a file are never compressed.
pub(super) fn choose(headers: &HeaderMap) -> Result<Encoding, Failure> {
    let accept = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let partial = [header::RANGE, header::IF_MODIFIED_SINCE, header::IF_NONE_MATCH, header::IF_RANGE];
    let wants_part = partial.iter().any(|name| headers.contains_key(name));
    let tokens = parse(accept);
    let forbidden = identity_forbidden(&tokens);
    if wants_part {
        return if forbidden {
            let text = "identity encoding not acceptable for Range or conditional request";
            Err(Failure::new(StatusCode::NOT_ACCEPTABLE, text))
        } else {
            Ok(Encoding::Identity)
        };
    }
    for (name, quality) in &tokens {
        match name.as_str() {
            _ if *quality <= 0.0 => {}
            "gzip" => return Ok(Encoding::Gzip),
            "identity" => return Ok(Encoding::Identity),
            "*" => return Ok(if forbidden { Encoding::Gzip } else { Encoding::Identity }),
            _ => {}
        }
    }
    if forbidden {
        let text = "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]";
        return Err(Failure::new(StatusCode::NOT_ACCEPTABLE, text));
    }
    Ok(Encoding::Identity)
}

/// Parses the tokens, sorted by descending quality; tokens of equal quality retain their order.
fn parse(accept: &str) -> Vec<(String, f32)> {
    let mut tokens: Vec<(String, f32)> = accept
        .split(',')
        .filter_map(|part| {
            let mut fields = part.split(';').map(str::trim);
            let name = fields.next().filter(|name| !name.is_empty())?.to_ascii_lowercase();
            let quality = fields.find_map(|field| field.strip_prefix("q=")?.parse::<f32>().ok());
            Some((name, quality.filter(|quality| quality.is_finite()).unwrap_or(1.0)))
        })
        .collect();
    tokens.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    tokens
}

fn identity_forbidden(tokens: &[(String, f32)]) -> bool {
    let quality = |wanted: &str| tokens.iter().find(|(name, _)| name == wanted).map(|(_, quality)| *quality);
    match (quality("identity"), quality("*")) {
        (Some(identity), _) => identity <= 0.0,
        (None, Some(any)) => any <= 0.0,
        (None, None) => false,
    }
}

/// Returns true if the request's body is compressed.
pub(super) fn is_gzip_body(headers: &HeaderMap) -> Result<bool, Failure> {
    let encoding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" => Ok(true),
        other => {
            let text = format!("error decompressing request body: unsupported Content-Encoding: {other}");
            Err(Failure::bad_request(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept: &str, range: bool) -> Option<Encoding> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, accept.parse().expect("a header value"));
        if range {
            headers.insert(header::RANGE, "bytes=0-".parse().expect("a header value"));
        }
        choose(&headers).ok()
    }

    #[test]
    fn encodings_as_in_the_contract() {
        for (accept, expected) in [
            ("", Some(Encoding::Identity)),
            ("gzip, deflate", Some(Encoding::Gzip)),
            ("deflate", Some(Encoding::Identity)),
            ("identity, gzip", Some(Encoding::Identity)),
            ("identity;q=0.1, GZIP", Some(Encoding::Gzip)),
            ("*", Some(Encoding::Identity)),
            ("identity;q=0, *", Some(Encoding::Gzip)),
            ("br, identity;q=0", None),
            ("*;q=0", None),
            ("gzip;q=0", Some(Encoding::Identity)),
            ("gzip;q=NaN", Some(Encoding::Gzip)),
            ("gzip;q=high, identity;q=0.5", Some(Encoding::Gzip)),
        ] {
            assert_eq!(chosen(accept, false), expected, "{accept}");
        }
        assert_eq!(chosen("gzip", true), Some(Encoding::Identity));
        assert_eq!(chosen("gzip, identity;q=0", true), None);
    }
}
