//! Signed URLs, which give access to `/files` without a token header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Parameters;
use crate::failure::Failure;
use crate::state::State;

/// Direction that a signature permits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    Read,
    Write,
}

/// Authorizes a request to `/files` by the token or by a signature derived from it.
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
    use proptest::prelude::*;

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
    fn tokens_and_signatures_authorize() {
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
        headers.insert("x-access-token", "t".parse().expect("a header value"));
        assert!(check(&state, &parameters(None, None), Operation::Write, &headers).is_ok());
        headers.insert("x-access-token", "u".parse().expect("a header value"));
        assert!(check(&state, &parameters(None, None), Operation::Write, &headers).is_err());
    }

    /// Signs as a client does.
    ///
    /// No second implementation of the hash and the encoding is available; the text is assembled independently.
    fn client_signature(fields: &[&str]) -> String {
        use base64::alphabet::STANDARD;
        use base64::engine::general_purpose::NO_PAD;

        let mut hash = Sha256::new();
        for (index, field) in fields.iter().enumerate() {
            if index > 0 {
                hash.update(b":");
            }
            hash.update(field.as_bytes());
        }
        format!("v1_{}", base64::engine::GeneralPurpose::new(&STANDARD, NO_PAD).encode(hash.finalize()))
    }

    /// A request for a file, with every field that its signature covers.
    #[derive(Debug, Clone)]
    struct Signed {
        path: Option<String>,
        user: Option<String>,
        expiration: Option<i64>,
        is_write: bool,
        token: String,
    }

    fn signed() -> impl Strategy<Value = Signed> {
        let text = || proptest::option::of(prop_oneof!["[a-z:/ü]{0,8}", any::<String>()]);
        // Always in the future.
        let expiration = proptest::option::of(i64::from(u32::MAX)..i64::MAX);
        (text(), text(), expiration, any::<bool>(), "[0-9a-f]{1,16}")
            .prop_map(|(path, user, expiration, is_write, token)| Signed { path, user, expiration, is_write, token })
    }

    impl Signed {
        fn sign(&self) -> String {
            let expiration = self.expiration.map(|expiration| expiration.to_string());
            let mut fields = vec![
                self.path.as_deref().unwrap_or(""),
                if self.is_write { "write" } else { "read" },
                self.user.as_deref().unwrap_or(""),
                &self.token,
            ];
            fields.extend(expiration.as_deref());
            client_signature(&fields)
        }

        /// Checks this request with a signature that may belong to another request.
        fn check(&self, signature: &str) -> Result<(), String> {
            let state = State::outside();
            state.set_access_token(Some(hearth_types::Secret::new(&self.token)));
            let parameters = Parameters {
                path: self.path.clone(),
                username: self.user.clone(),
                signature: Some(signature.to_owned()),
                signature_expiration: self.expiration.map(|expiration| expiration.to_string()),
            };
            let operation = if self.is_write { Operation::Write } else { Operation::Read };
            check(&state, &parameters, operation, &HeaderMap::new()).map_err(|failure| format!("{failure:?}"))
        }
    }

    proptest! {
        #[test]
        fn a_client_s_signature_is_accepted(request in signed()) {
            prop_assert_eq!(request.check(&request.sign()), Ok(()));
        }

        #[test]
        fn a_signature_of_another_request_is_rejected(
            request in signed(),
            other in signed(),
            mix in proptest::collection::vec(any::<bool>(), 5),
        ) {
            let signature = request.sign();
            let pick = |index: usize| if mix[index] { &other } else { &request };
            let mixed = Signed {
                path: pick(0).path.clone(),
                user: pick(1).user.clone(),
                expiration: pick(2).expiration,
                is_write: pick(3).is_write,
                token: pick(4).token.clone(),
            };
            // A missing and an empty text have the same signature.
            let text = |request: &Signed| {
                let (path, user) = (request.path.clone().unwrap_or_default(), request.user.clone().unwrap_or_default());
                (path, user, request.expiration, request.is_write, request.token.clone())
            };
            let checked = mixed.check(&signature);
            if text(&mixed) == text(&request) {
                prop_assert_eq!(checked, Ok(()));
            } else {
                prop_assert!(checked.is_err_and(|text| text.contains("invalid signature")), "{mixed:?}");
            }
        }

        #[test]
        fn a_changed_signature_is_rejected(request in signed(), at in any::<prop::sample::Index>(), letter in "[ -~]") {
            let signature = request.sign();
            let at = at.index(signature.len());
            let mut changed = signature.clone();
            changed.replace_range(at..=at, &letter);
            prop_assume!(changed != signature);
            prop_assert!(request.check(&changed).is_err());
            prop_assert!(request.check(&signature[..at]).is_err());
            for longer in [signature.clone() + &letter, signature.clone() + "="] {
                prop_assert!(request.check(&longer).is_err());
            }
        }
    }

    /// A signature is valid up to the end of the second that it names.
    #[test]
    fn signatures_expire() {
        let request = |expiration| Signed {
            path: Some("a".to_owned()),
            user: None,
            expiration: Some(expiration),
            is_write: false,
            token: "t".to_owned(),
        };
        let outcome = |expiration| {
            let request = request(expiration);
            request.check(&request.sign())
        };
        for past in [i64::MIN, -1, 0, 1] {
            let error = outcome(past).expect_err("expired");
            assert!(error.contains("signature is already expired"), "{error}");
        }
        assert_eq!(outcome(i64::MAX), Ok(()));
        let now = || jiff::Timestamp::now().as_second();
        // The clock may advance between the two readings; repeat if it did.
        let (before, last, over, after) = loop {
            let before = now();
            let (last, over) = (outcome(before), outcome(before - 1));
            let after = now();
            if before == after {
                break (before, last, over, after);
            }
        };
        assert_eq!(last, Ok(()), "the second {before} has not ended at {after}");
        assert!(over.is_err(), "the second before {before} has ended");
        // A signature with an expiration is invalid without it, and the expiration is checked after the signature.
        let mut open = request(1);
        let signature = open.sign();
        open.expiration = None;
        assert!(open.check(&signature).is_err_and(|text| text.contains("invalid signature")));
        assert!(request(1).check("v1_").is_err_and(|text| text.contains("invalid signature")));
    }
}
