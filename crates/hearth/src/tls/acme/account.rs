//! Our account with the issuer, made once.

use std::path::Path;

use anyhow::{Context, Result};
use instant_acme::{AccountBuilder, AccountCredentials, NewAccount};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::kept;
use crate::options::acme::Acme;

/// What is kept of it. The credentials have its key and its directory in them.
#[derive(Serialize, Deserialize)]
struct Kept {
    contact: String,
    credentials: AccountCredentials,
}

/// The account that is kept in the file, with the contact that is set; made if there is none.
pub(super) async fn ensure(path: &Path, asked: &Acme, client: &Client) -> Result<instant_acme::Account> {
    let contact = format!("mailto:{}", asked.contact);
    let Some(Kept { contact: told, credentials }) = kept::read(path) else {
        let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
        let made = builder(client).create(&new, asked.directory.clone(), None).await;
        let (account, credentials) = made.context("making an account with the issuer")?;
        kept::write(path, &Kept { contact: asked.contact.clone(), credentials })?;
        tracing::info!(directory = asked.directory, account = account.id(), "an account with the issuer was made");
        return Ok(account);
    };
    // There is no way to copy credentials.
    let again = serde_json::to_value(&credentials)?;
    let account = builder(client).from_credentials(credentials).await.context("asking the issuer what it offers")?;
    if told != asked.contact {
        match account.update_contacts(&[&contact]).await {
            Ok(()) => {
                let credentials = serde_json::from_value(again)?;
                kept::write(path, &Kept { contact: asked.contact.clone(), credentials })?;
            }
            // It is told again the next time. A certificate is worth more.
            Err(error) => tracing::warn!(%error, "could not tell the issuer another contact"),
        }
    }
    Ok(account)
}

fn builder(client: &Client) -> AccountBuilder {
    instant_acme::Account::builder_with_http(Box::new(client.session()))
}
