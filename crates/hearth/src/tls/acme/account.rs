//! ACME account with the issuer, created once.

use std::path::Path;

use anyhow::{Context, Result};
use instant_acme::{AccountBuilder, AccountCredentials, NewAccount};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::state_file;
use crate::options::acme::AcmeSettings;

/// Content of `account.json`. The credentials contain the account's key and the issuer's directory.
#[derive(Serialize, Deserialize)]
struct StoredAccount {
    contact: String,
    credentials: AccountCredentials,
}

/// Returns the account stored in the file, or creates one. Updates the contact at the issuer if the setting changed.
pub(super) async fn ensure(path: &Path, settings: &AcmeSettings, client: &Client) -> Result<instant_acme::Account> {
    let contact = format!("mailto:{}", settings.contact);
    let Some(StoredAccount { contact: stored_contact, credentials }) = state_file::read(path) else {
        let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
        let created = builder(client).create(&new, settings.directory.clone(), None).await;
        let (account, credentials) = created.context("creating an account with the issuer")?;
        state_file::write(path, &StoredAccount { contact: settings.contact.clone(), credentials })?;
        tracing::info!(directory = settings.directory, account = account.id(), "ACME account created");
        return Ok(account);
    };
    // `AccountCredentials` is not `Clone`.
    let copy = serde_json::to_value(&credentials)?;
    let account = builder(client).from_credentials(credentials).await.context("fetching the issuer's directory")?;
    if stored_contact != settings.contact {
        match account.update_contacts(&[&contact]).await {
            Ok(()) => {
                let credentials = serde_json::from_value(copy)?;
                state_file::write(path, &StoredAccount { contact: settings.contact.clone(), credentials })?;
            }
            // The next attempt updates it again. The certificate is more important than the contact.
            Err(error) => tracing::warn!(%error, "ACME contact update failed"),
        }
    }
    Ok(account)
}

fn builder(client: &Client) -> AccountBuilder {
    instant_acme::Account::builder_with_http(Box::new(client.session()))
}
