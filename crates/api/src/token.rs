//! Tokens of sandboxes.
//!
//! A token is a keyed hash of the sandbox ID, so it stays the same across pauses, resumes and restarts without being
//! stored. One token reveals nothing about another.

use hearth_store::Sandbox;
use hearth_types::{SandboxId, Secret};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Prefix that makes traffic tokens different from envd tokens of the same sandbox.
const TRAFFIC_PREFIX: &str = "sandbox-traffic-";

/// Derives the tokens of all sandboxes from one seed of the server.
#[derive(Debug, Clone)]
pub struct TokenSource {
    seed: Secret,
}

impl TokenSource {
    /// Creates a source with a seed. Another seed changes the tokens of all sandboxes.
    #[must_use]
    pub fn new(seed: Secret) -> Self {
        Self { seed }
    }

    /// Returns the token that the sandbox's guest daemon requires from clients.
    #[must_use]
    pub fn envd_access_token(&self, sandbox_id: &SandboxId) -> Secret {
        self.keyed_hash(&[sandbox_id.as_str()])
    }

    /// Returns the token that the edge requires from visitors of a sandbox without public traffic.
    #[must_use]
    pub fn traffic_access_token(&self, sandbox_id: &SandboxId) -> Secret {
        self.keyed_hash(&[TRAFFIC_PREFIX, sandbox_id.as_str()])
    }

    /// Returns the token required from visitors of this sandbox, or `None` if its traffic is public.
    pub(crate) fn required_from_visitors(&self, row: &Sandbox) -> Option<Secret> {
        (!row.ingress.public).then(|| self.traffic_access_token(&row.sandbox_id))
    }

    fn keyed_hash(&self, message: &[&str]) -> Secret {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.seed.expose().as_bytes()).expect("HMAC takes a key of any length");
        for part in message {
            mac.update(part.as_bytes());
        }
        Secret::new(hex::encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_match_the_contract_s_example() {
        let source = TokenSource::new(Secret::new("seed-for-tests"));
        let sandbox_id: SandboxId = "i0123456789abcdefghij".parse().expect("valid");
        assert_eq!(
            source.envd_access_token(&sandbox_id).expose(),
            "cf651bcf219c0730783650283b68a3d7627a4f1d4a544bc90043f0ea144c0f84"
        );
        assert_eq!(
            source.traffic_access_token(&sandbox_id).expose(),
            "3a37c1e74e38d3f85a98eb2bca8690f33e5a714482bf029f411fa9af77fe40f7"
        );
    }
}
