//! Signed URLs: `/files` without a token header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Parameters;
use crate::failure::Failure;
use crate::state::State;

/// What a signature allows: one direction only.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    Read,
    Write,
}

/// Whether a request may use `/files`: with the token, or with a signature made of it.
pub(super) fn check(
    state: &State,
    parameters: &Parameters,
    operation: Operation,
    headers: &HeaderMap,
) -> Result<(), Failure> {
    let parse = |text: &String| text.parse::<i64>().map_err(|error| Failure::parameter("signature_expiration", error));
    let expiration = parameters.signature_expiration.as_ref().map(parse).transpose()?;
    let Some(token) = state.access_token() else { return Ok(()) };
    if let Some(given) = headers.get("x-access-token").filter(|given| !given.is_empty()) {
        return if state.admits(Some(given.as_bytes())) {
            Ok(())
        } else {
            Err(Failure::unauthorized("access token present in header but does not match"))
        };
    }
    let Some(given) = &parameters.signature else {
        return Err(Failure::unauthorized("missing signature query parameter"));
    };
    let path = parameters.path.as_deref().unwrap_or_default();
    let user = parameters.username.as_deref().unwrap_or_default();
    let expected = sign(path, operation, user, token.expose(), expiration);
    if !bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
        return Err(Failure::unauthorized("invalid signature"));
    }
    if expiration.is_some_and(|expiration| expiration < jiff::Timestamp::now().as_second()) {
        return Err(Failure::unauthorized("signature is already expired"));
    }
    Ok(())
}

fn sign(path: &str, operation: Operation, user: &str, token: &str, expiration: Option<i64>) -> String {
    let operation = match operation {
        Operation::Read => "read",
        Operation::Write => "write",
    };
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(expiration) = expiration {
        text.push_str(&format!(":{expiration}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's test vectors.
    #[test]
    fn signatures_as_in_the_contract() {
        let token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
        for (path, operation, user, expiration, signature) in [
            ("hello.txt", Operation::Read, "user", None, "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"),
            ("hello.txt", Operation::Read, "", None, "v1_SnvZASdG5vD8p9rpaldX3434NfwgRVsYsvzCBL6oZbc"),
            ("/home/user/data.bin", Operation::Write, "", None, "v1_2n9B1LJzjs46lZKdqZWgu9B+2D3fHayI9GOVF0mJAEc"),
            (
                "/home/user/data.bin",
                Operation::Write,
                "root",
                Some(1_893_456_000),
                "v1_9Csep9kFGe+Lw/bUqHkxp9UbZgOnqfX5c6KjK7GQ2h0",
            ),
        ] {
            assert_eq!(sign(path, operation, user, token, expiration), signature, "{path}");
        }
    }

    #[test]
    fn every_way_in() {
        let state = State::outside();
        let parameters = |signature: Option<String>, expiration: Option<&str>| Parameters {
            path: Some("a".to_owned()),
            signature,
            signature_expiration: expiration.map(str::to_owned),
            ..Parameters::default()
        };
        let none = HeaderMap::new();
        assert!(check(&state, &parameters(None, None), Operation::Read, &none).is_ok());
        state.set_access_token(Some(hearth_types::Secret::new("t")));
        assert!(check(&state, &parameters(None, None), Operation::Read, &none).is_err());
        let read = sign("a", Operation::Read, "", "t", None);
        assert!(check(&state, &parameters(Some(read.clone()), None), Operation::Read, &none).is_ok());
        assert!(check(&state, &parameters(Some(read), None), Operation::Write, &none).is_err());
        let old = sign("a", Operation::Read, "", "t", Some(1));
        assert!(check(&state, &parameters(Some(old), Some("1")), Operation::Read, &none).is_err());
        let mut headers = HeaderMap::new();
        headers.insert("x-access-token", "t".parse().expect("a header"));
        assert!(check(&state, &parameters(None, None), Operation::Write, &headers).is_ok());
        headers.insert("x-access-token", "u".parse().expect("a header"));
        assert!(check(&state, &parameters(None, None), Operation::Write, &headers).is_err());
    }
}
