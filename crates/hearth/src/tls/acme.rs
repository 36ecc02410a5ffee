//! Certificates by ACME (RFC 8555), for the domain and all names directly below it. Names with a star are proved by records of the
//! domain and in no other way, which an operator's program sets: see [`hook`].
//!
//! ```text
//! due ─▶ account ─▶ order ─▶ records set ─▶ wait ─▶ issuer looks ─▶ signature ─▶ kept ─▶ records removed ─▶ shown
//!  ▲                                                                                          ▲              │
//!  │                             whatever fails, or stops us ─────────────────────────────────┘              │
//!  └──────────── two thirds of its time over; after a failure, later and later ◀─────────────────────────────┘
//! ```
//!
//! After the last record was set we wait for a while, instead of asking for it: which name servers the issuer will ask, and what
//! they answer it, cannot be seen from inside of a network that has answers of its own (split DNS), and a resolver that is asked too
//! early remembers that there is nothing. A program that knows better may return only once the record is everywhere.
//!
//! Everything is in the folder `acme` of the domain: `records.json`, and for each issuer a folder with `account.json`,
//! `certificate.pem` and `failure.json`. Only one task works with it.

mod account;
mod client;
mod failure;
mod held;
mod hook;
mod journal;
mod kept;
mod order;
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
use crate::options::acme::Acme as Asked;
use client::Client;
use failure::Failure;
use held::Held;
use hook::Hook;
use journal::Journal;
use order::Failed;

/// Who is asked for certificates, and what came of it.
pub(crate) struct Acme {
    asked: Asked,
    names: Vec<String>,
    files: Files,
    client: Client,
    journal: Journal,
    held: Option<Held>,
    failure: Option<Failure>,
    /// Until the first look.
    is_start: bool,
}

impl Acme {
    /// Takes up what is kept. Asks nobody.
    ///
    /// # Errors
    /// The options name what is not there.
    pub(crate) fn open(asked: &Asked, layout: &Layout, domain: &Domain) -> Result<Self> {
        let hook = Hook::new(&asked.hook)?;
        let client = Client::new(asked.root.as_deref())?;
        let files = Files::of(layout, domain, &asked.directory);
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&files.issuer);
        created.with_context(|| format!("creating the folder {}", files.issuer.display()))?;
        let names = names(domain);
        let held = Held::read(&files.certificate(), &names).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "a kept certificate is of no use");
            None
        });
        Ok(Self {
            asked: asked.clone(),
            journal: Journal::open(&files.records(), hook),
            failure: Failure::read(&files.failure()),
            is_start: true,
            names,
            files,
            client,
            held,
        })
    }

    /// The one to show, if there is one that clients take.
    pub(crate) fn certificate(&self, now: SystemTime) -> Option<Certificate> {
        self.held.as_ref().filter(|held| !held.has_expired(now)).map(|held| held.certificate.clone())
    }

    /// Asks for a certificate if it is time to; returns a new one. Cancelled by `stop`, it removes what it set.
    ///
    /// # Errors
    /// There is no new one; when the next attempt is due follows from how many failed.
    pub(crate) async fn refresh(&mut self, now: SystemTime, stop: &CancellationToken) -> Result<Option<Certificate>> {
        let is_start = std::mem::replace(&mut self.is_start, false);
        if is_start {
            // Left by a process that was killed.
            self.sweep().await;
        }
        let is_held_back = self.failure.as_ref().is_some_and(|failure| failure.holds_back(now, is_start));
        if self.held.as_ref().is_some_and(|held| now < held.due()) || is_held_back {
            return Ok(None);
        }
        tracing::info!(directory = self.asked.directory, names = ?self.names, "asking for a certificate");
        // What a cancelled attempt leaves is in the journal.
        let attempt = stop.run_until_cancelled(Box::pin(self.attempt())).await;
        self.sweep().await;
        match attempt {
            None => Ok(None),
            Some(Ok(held)) => {
                self.failure = None;
                kept::remove(&self.files.failure())?;
                let certificate = held.certificate.clone();
                self.held = Some(held);
                Ok(Some(certificate))
            }
            Some(Err(error)) => {
                let failure = Failure::after(self.failure.as_ref(), now, &error)?;
                kept::write(&self.files.failure(), &failure)?;
                let next = jiff::Timestamp::try_from(failure.next_attempt())?;
                self.failure = Some(failure);
                Err(error.context(format!(
                    "asking {} for a certificate (it is not asked again before {next:.0}; `hearth doctor` says how things stand)",
                    self.asked.directory
                )))
            }
        }
    }

    /// One attempt. Leaves records in the journal.
    async fn attempt(&mut self) -> Result<Held> {
        let path = self.files.account();
        let account = account::ensure(&path, &self.asked, &self.client).await?;
        let issued = match order::place(&account, &self.names, &mut self.journal, self.asked.wait).await {
            // An account that is gone is gone for good.
            Err(Failed::Account(error)) => {
                tracing::warn!(%error, "the issuer has forgotten our account, another one is made");
                kept::remove(&path)?;
                let account = account::ensure(&path, &self.asked, &self.client).await?;
                order::place(&account, &self.names, &mut self.journal, self.asked.wait).await?
            }
            placed => placed?,
        };
        Held::keep(&self.files.certificate(), &issued, &self.names)
    }

    async fn sweep(&mut self) {
        // No reason to refuse a certificate that is there: the record proves something for the issuer's next look only.
        if let Err(error) = self.journal.clear().await {
            tracing::warn!(error = format!("{error:#}"), "a record stays for now, and is removed with the next ones");
        }
    }
}

/// How things stand, for people.
pub(crate) struct Standing {
    held: Option<Held>,
    failure: Option<Failure>,
}

impl Standing {
    /// As the files tell it, whether anybody works with them or not.
    pub(crate) fn of(asked: &Asked, layout: &Layout, domain: &Domain) -> Result<Self> {
        let files = Files::of(layout, domain, &asked.directory);
        let held = Held::read(&files.certificate(), &names(domain))?;
        Ok(Self { held, failure: Failure::read(&files.failure()) })
    }

    /// Whether clients take what is shown, and more in words.
    pub(crate) fn tell(&self, now: SystemTime) -> (bool, String) {
        let time = |time| jiff::Timestamp::try_from(time).map_or_else(|_| "?".to_owned(), |time| format!("{time:.0}"));
        let (found, mut text) = match &self.held {
            Some(held) if held.has_expired(now) => (false, format!("expired at {}", time(held.not_after))),
            Some(held) => (true, format!("until {}, renewed from {} on", time(held.not_after), time(held.due()))),
            None => (false, "none yet".to_owned()),
        };
        if let Some(failure) = &self.failure {
            text.push_str(&format!("; {failure}; no other attempt before {}", time(failure.next_attempt())));
        }
        (found, text)
    }
}

/// What a certificate is for.
fn names(domain: &Domain) -> Vec<String> {
    vec![domain.host().to_owned(), format!("*.{}", domain.host())]
}

/// Where everything is.
struct Files {
    domain: PathBuf,
    issuer: PathBuf,
}

impl Files {
    fn of(layout: &Layout, domain: &Domain, directory: &str) -> Self {
        let acme = layout.tls().join(domain.host()).join("acme");
        // The host is for people. One host may have several directories, and a name in a folder has an end.
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
