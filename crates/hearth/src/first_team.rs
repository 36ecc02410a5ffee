//! The first team, its API key, and the secrets of a new instance.
//!
//! A new instance has no users: only the operator knows them and their means to log in.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_store::{CreateApiKeyError, KeySecret, Limits, NewTeam, Store, Team};
use hearth_types::Secret;

use crate::layout::{Layout, read_secret, write_secret};

/// Slug of the first team.
const SLUG: &str = "local";
const NAME: &str = "Local";
const KEY_NAME: &str = "first key";
/// Limits of the first team. It belongs to the operator of the host, so only the node's own limit matters.
const LIMITS: Limits = Limits {
    sandboxes_max: 2048,
    sandbox_length_max: Duration::from_secs(24 * 60 * 60),
    // The maximum that the contract allows for a template.
    vcpus_max: 32,
    memory_mib_max: 64 * 1024,
    ..Limits::STANDARD
};

/// Ensures that the first team exists with the API key of the key file, and returns the key.
///
/// If the file is lost, a new key is created; if the database is lost, the key of the file is added to the new one.
pub(crate) async fn ensure_team(store: &Store, layout: &Layout) -> Result<Secret> {
    let team = match store.team_by_slug(SLUG).await? {
        Some(team) => team,
        None => create(store).await?,
    };
    let path = layout.api_key();
    let secret: KeySecret = match read_secret(&path)? {
        Some(text) => text.expose().parse().with_context(|| {
            format!("{} does not contain an API key: remove it, and the next start creates a new key", path.display())
        })?,
        None => {
            let secret = KeySecret::generate();
            // Write the file first: a key that exists only in the database, as a hash, could not be used.
            write_secret(&path, &format!("{}\n", secret.expose()))?;
            secret
        }
    };
    match store.create_api_key(team.id, KEY_NAME, &secret).await {
        Ok(_) | Err(CreateApiKeyError::Exists) => Ok(Secret::new(secret.expose())),
        Err(error) => Err(error).context("creating the first API key"),
    }
}

async fn create(store: &Store) -> Result<Team> {
    let new = NewTeam { slug: SLUG.to_owned(), name: NAME.to_owned(), limits: LIMITS };
    store.create_team(new).await.context("creating the first team")
}

/// Seed from which the access tokens of sandboxes are derived. Created once; it must live as long as the database.
pub(crate) fn token_seed(layout: &Layout) -> Result<Secret> {
    ensure_secret(&layout.token_seed())
}

/// Key that signs the access tokens of logged-in users. Created once.
///
/// If it is lost, clients renew their tokens, and users notice nothing.
pub(crate) fn login_key(layout: &Layout) -> Result<Secret> {
    ensure_secret(&layout.login_key())
}

/// Token that authenticates operators over HTTP. Created once; an operator may write another one to its file.
pub(crate) fn admin_token(layout: &Layout) -> Result<Secret> {
    let path = layout.admin_token();
    let token = ensure_secret(&path)?;
    // With an empty token, everyone would be an operator.
    ensure!(!token.expose().is_empty(), "{} is empty: remove it, and the next start creates a token", path.display());
    Ok(token)
}

fn ensure_secret(path: &Path) -> Result<Secret> {
    if let Some(secret) = read_secret(path)? {
        return Ok(secret);
    }
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).with_context(|| format!("generating a secret for {}", path.display()))?;
    let secret = hex::encode(bytes);
    write_secret(path, &format!("{secret}\n"))?;
    Ok(Secret::new(secret))
}

#[cfg(test)]
mod tests {
    use hearth_store::{Config, KeyHash};

    use super::*;

    async fn store(layout: &Layout) -> Store {
        Store::open(&Config::sqlite(&layout.database()).expect("UTF-8")).await.expect("opens")
    }

    async fn is_valid(store: &Store, key: &Secret) -> bool {
        let hash: KeyHash = key.expose().parse::<KeySecret>().expect("a key").hash();
        store.authenticate(&hash).await.expect("answers").is_some()
    }

    #[tokio::test]
    async fn the_key_survives_restarts_and_lost_files() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let layout = Layout::new(folder.path());
        let first = store(&layout).await;
        let key = ensure_team(&first, &layout).await.expect("makes");
        assert_eq!(ensure_team(&first, &layout).await.expect("finds"), key);
        assert!(is_valid(&first, &key).await);
        // The key file is lost.
        std::fs::remove_file(layout.api_key()).expect("removes");
        let other = ensure_team(&first, &layout).await.expect("makes another");
        assert_ne!(other, key);
        assert!(is_valid(&first, &key).await && is_valid(&first, &other).await);
        // The database is lost.
        first.close().await;
        for file in ["hearth.db", "hearth.db-wal", "hearth.db-shm"] {
            let _ = std::fs::remove_file(folder.path().join(file));
        }
        let second = store(&layout).await;
        assert_eq!(ensure_team(&second, &layout).await.expect("takes the file's"), other);
        assert!(is_valid(&second, &other).await);
        second.close().await;
    }

    #[test]
    fn secrets_are_created_once() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let layout = Layout::new(folder.path());
        let seed = token_seed(&layout).expect("makes");
        assert_eq!(seed.expose().len(), 64);
        assert_eq!(token_seed(&layout).expect("reads"), seed);
        let token = admin_token(&layout).expect("makes");
        let key = login_key(&layout).expect("makes");
        assert!(token != seed && key != seed && key != token);
        assert_eq!(login_key(&layout).expect("reads"), key);
        assert_eq!(admin_token(&layout).expect("reads"), token);
        std::fs::write(layout.admin_token(), "\n").expect("writes");
        assert!(admin_token(&layout).is_err());
    }
}
