//! Certificates by ACME (RFC 8555), for the domain and all names directly below it.
//!
//! The wildcard name can only be proved by DNS records (DNS-01). A program of the operator sets them: see [`hook`].
//!
//! ```text
//! due ─▶ account ─▶ order ─▶ records set ─▶ wait ─▶ issuer checks ─▶ signature ─▶ stored ─▶ records removed ─▶ in use
//!  ▲                                                                                              ▲             │
//!  │                               any failure, or a stop of the daemon ──────────────────────────┘             │
//!  └──────── after two thirds of the validity; after a failure, with an increasing delay ◀──────────────────────┘
//! ```
//!
//! After the last record was set, a fixed time passes; the records are not looked up. A network with its own DNS
//! replies (split DNS) cannot see which name servers the issuer queries and what they return, and a resolver that is
//! queried too early caches the negative reply. A hook program that knows more may return only once all name servers
//! have the record.
//!
//! All state is in the folder `acme` of the domain: `records.json`, and for each issuer a folder with `account.json`,
//! `certificate.pem` and `failure.json`. Only one task uses it.

mod account;
mod client;
mod failure;
mod hook;
mod journal;
mod order;
mod state_file;
mod stored;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result};
use hearth_proxy::tls::Certificate;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::domain::Domain;
use crate::layout::Layout;
use crate::options::acme::AcmeSettings;
use client::Client;
use failure::Failure;
use hook::Hook;
use journal::Journal;
use order::OrderError;
use stored::StoredCertificate;

/// ACME client for one domain and one issuer, with the stored certificate and the last failure.
pub(crate) struct Acme {
    settings: AcmeSettings,
    names: Vec<String>,
    files: Files,
    client: Client,
    journal: Journal,
    stored: Option<StoredCertificate>,
    failure: Option<Failure>,
    /// True until the first call of `refresh`.
    is_first_check: bool,
}

impl Acme {
    /// Reads the stored state. Does not contact the issuer.
    ///
    /// # Errors
    /// The hook program or the root certificate of the options does not exist or is not usable.
    pub(crate) fn open(settings: &AcmeSettings, layout: &Layout, domain: &Domain) -> Result<Self> {
        let hook = Hook::new(&settings.hook)?;
        let client = Client::new(settings.root.as_deref())?;
        let files = Files::of(layout, domain, &settings.directory);
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&files.issuer);
        created.with_context(|| format!("creating the folder {}", files.issuer.display()))?;
        let names = names(domain);
        let stored = StoredCertificate::read(&files.certificate(), &names).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "stored certificate is not usable");
            None
        });
        Ok(Self {
            settings: settings.clone(),
            journal: Journal::open(&files.records(), hook),
            failure: Failure::read(&files.failure()),
            is_first_check: true,
            names,
            files,
            client,
            stored,
        })
    }

    /// Returns the stored certificate, if it has not expired.
    pub(crate) fn certificate(&self, now: SystemTime) -> Option<Certificate> {
        self.stored.as_ref().filter(|stored| !stored.has_expired(now)).map(|stored| stored.certificate.clone())
    }

    /// Requests a certificate if one is due, and returns it. If `stop` cancels it, it removes the records it has set.
    ///
    /// # Errors
    /// The attempt failed. The delay until the next one increases with the number of failures.
    pub(crate) async fn refresh(&mut self, now: SystemTime, stop: &CancellationToken) -> Result<Option<Certificate>> {
        let is_first_check = std::mem::replace(&mut self.is_first_check, false);
        if is_first_check {
            // Remove records left by a process that was killed.
            self.sweep().await;
        }
        let is_delayed = self.failure.as_ref().is_some_and(|failure| failure.delays_attempt(now, is_first_check));
        if self.stored.as_ref().is_some_and(|stored| now < stored.due()) || is_delayed {
            return Ok(None);
        }
        tracing::info!(directory = self.settings.directory, names = ?self.names, "requesting certificate");
        // The journal lists the records that a cancelled attempt leaves.
        let attempt = stop.run_until_cancelled(Box::pin(self.attempt())).await;
        self.sweep().await;
        match attempt {
            None => Ok(None),
            Some(Ok(stored)) => {
                self.failure = None;
                state_file::remove(&self.files.failure())?;
                let certificate = stored.certificate.clone();
                self.stored = Some(stored);
                Ok(Some(certificate))
            }
            Some(Err(error)) => {
                let failure = Failure::after(self.failure.as_ref(), now, &error)?;
                state_file::write(&self.files.failure(), &failure)?;
                let next = jiff::Timestamp::try_from(failure.next_attempt())?;
                self.failure = Some(failure);
                Err(error.context(format!(
                    "requesting a certificate from {} (next attempt not before {next:.0}; see `hearth doctor`)",
                    self.settings.directory
                )))
            }
        }
    }

    /// Makes one attempt. Leaves its records set, and listed in the journal.
    async fn attempt(&mut self) -> Result<StoredCertificate> {
        let path = self.files.account();
        let account = account::ensure(&path, &self.settings, &self.client).await?;
        let issued = match order::place(&account, &self.names, &mut self.journal, self.settings.wait).await {
            // An issuer does not restore a deleted account.
            Err(OrderError::Account(error)) => {
                tracing::warn!(%error, "ACME account is unknown to the issuer, creating another one");
                state_file::remove(&path)?;
                let account = account::ensure(&path, &self.settings, &self.client).await?;
                order::place(&account, &self.names, &mut self.journal, self.settings.wait).await?
            }
            placed => placed?,
        };
        StoredCertificate::save(&self.files.certificate(), &issued, &self.names)
    }

    /// Removes the records in the journal. A failure is only logged: a leftover record does not invalidate the
    /// certificate.
    async fn sweep(&mut self) {
        if let Err(error) = self.journal.clear().await {
            tracing::warn!(error = format!("{error:#}"), "DNS record not removed, retrying with the next attempt");
        }
    }
}

/// Status of the ACME certificate, for `hearth doctor`.
pub(crate) struct CertificateStatus {
    stored: Option<StoredCertificate>,
    failure: Option<Failure>,
}

impl CertificateStatus {
    /// Reads the status from the files, with or without a running daemon.
    pub(crate) fn read(settings: &AcmeSettings, layout: &Layout, domain: &Domain) -> Result<Self> {
        let files = Files::of(layout, domain, &settings.directory);
        let stored = StoredCertificate::read(&files.certificate(), &names(domain))?;
        Ok(Self { stored, failure: Failure::read(&files.failure()) })
    }

    /// Returns true if the certificate is valid at `now`, and a description.
    pub(crate) fn describe(&self, now: SystemTime) -> (bool, String) {
        let time = |time| jiff::Timestamp::try_from(time).map_or_else(|_| "?".to_owned(), |time| format!("{time:.0}"));
        let (found, mut text) = match &self.stored {
            Some(stored) if stored.has_expired(now) => (false, format!("expired at {}", time(stored.not_after))),
            Some(stored) => {
                (true, format!("valid until {}, due for renewal at {}", time(stored.not_after), time(stored.due())))
            }
            None => (false, "none yet".to_owned()),
        };
        if let Some(failure) = &self.failure {
            text.push_str(&format!("; {failure}; next attempt not before {}", time(failure.next_attempt())));
        }
        (found, text)
    }
}

/// Names of the certificate: the domain, and the wildcard below it.
fn names(domain: &Domain) -> Vec<String> {
    vec![domain.host().to_owned(), format!("*.{}", domain.host())]
}

/// Paths of the state files.
struct Files {
    domain: PathBuf,
    issuer: PathBuf,
}

impl Files {
    fn of(layout: &Layout, domain: &Domain, directory: &str) -> Self {
        let acme = layout.tls().join(domain.host()).join("acme");
        // The host makes the name readable, the hash makes it unique: one host may have several directories. At most 64
        // characters of the host, because the length of a file name is limited.
        let address = directory.parse::<http::Uri>().ok();
        let host = address.as_ref().and_then(http::Uri::host).unwrap_or_default();
        let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || ".-".contains(*c)).take(64).collect();
        let hash = hex::encode(&Sha256::digest(directory)[..4]);
        Self { issuer: acme.join(format!("{host}-{hash}")), domain: acme }
    }

    fn records(&self) -> PathBuf {
        self.domain.join("records.json")
    }

    fn account(&self) -> PathBuf {
        self.issuer.join("account.json")
    }

    fn certificate(&self) -> PathBuf {
        self.issuer.join("certificate.pem")
    }

    fn failure(&self) -> PathBuf {
        self.issuer.join("failure.json")
    }
}
