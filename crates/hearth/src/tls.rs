//! The certificate that the names of the domain are served with.
//!
//! ```text
//! --tls-cert, --tls-key ──────────────┐
//! Acme: an issuer that is asked ──────┼──▶ Identity ──▶ the listener's acceptor, refreshed by a task
//! Authority: ours, in the data folder ┘
//! ```
//!
//! Certificates of our own authority are made at each start and kept in memory only. Files of the operator are read again when
//! they change, so that whatever renews them has nothing to restart. A certificate that is asked for may take its time: until
//! it has come, one of our own stands in, so that nothing waits for an issuer.

pub(crate) mod acme;
pub(crate) mod authority;
pub(crate) mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hearth_proxy::tls::{Acceptor, Certificate};
use tokio_util::sync::CancellationToken;

use crate::domain::Domain;
use crate::layout::{Layout, write_secret};
use crate::options::Settings;
use crate::tls::acme::Acme;
use crate::tls::authority::{Authority, RENEWED_AFTER};

/// How often the certificate is looked at. By the clock on the wall: a laptop sleeps through timers.
const LOOK_PERIOD: Duration = Duration::from_secs(600);
/// Where hosts keep the certificates they trust in one file: Debian and Fedora.
const HOST_BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Files of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl CertificateFiles {
    fn read(&self) -> Result<FilesRead> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        Ok(FilesRead { chain: read(&self.chain)?, key: read(&self.key)? })
    }
}

#[derive(PartialEq, Eq)]
struct FilesRead {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl FilesRead {
    fn certificate(&self) -> Result<Certificate> {
        Certificate::from_pem(&self.chain, &self.key).context("in the files of --tls-cert and --tls-key")
    }
}

/// What clients need to trust an authority of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrustFiles {
    /// Its certificate.
    pub(crate) ca: PathBuf,
    /// What this host trusts, and its certificate: for clients that take one file instead of their own.
    pub(crate) bundle: PathBuf,
}

impl TrustFiles {
    /// Where they are, for this domain.
    pub(crate) fn of(layout: &Layout, domain: &Domain) -> Self {
        let folder = layout.tls().join(domain.host());
        Self { ca: folder.join("ca.pem"), bundle: folder.join("bundle.pem") }
    }
}

/// The certificate that is shown, and where the next one comes from.
pub(crate) struct Identity {
    acceptor: Acceptor,
    source: Source,
}

enum Source {
    Files { files: CertificateFiles, seen: FilesRead },
    Authority(Own),
    Acme { acme: Box<Acme>, stand_in: Option<Own> },
}

/// A certificate of an authority of ours.
struct Own {
    authority: Box<Authority>,
    issued: SystemTime,
}

impl Own {
    fn issue(authority: Authority) -> Result<(Self, Certificate)> {
        let issued = SystemTime::now();
        let certificate = authority.issue(issued)?;
        Ok((Self { authority: Box::new(authority), issued }, certificate))
    }

    /// A new one when it is time to.
    fn refresh(&mut self, now: SystemTime) -> Result<Option<Certificate>> {
        // A clock that was set back makes the certificate one of the future.
        if now.duration_since(self.issued).is_ok_and(|age| age < RENEWED_AFTER) {
            return Ok(None);
        }
        let certificate = self.authority.issue(now)?;
        self.issued = now;
        Ok(Some(certificate))
    }
}

impl Identity {
    /// What the settings say for this domain; makes an authority when there has to be one.
    pub(crate) fn open(settings: &Settings, layout: &Layout, domain: &Domain) -> Result<Self> {
        if let Some(files) = &settings.tls_files {
            let seen = files.read()?;
            let acceptor = Acceptor::new(seen.certificate()?);
            return Ok(Self { acceptor, source: Source::Files { files: files.clone(), seen } });
        }
        let files = TrustFiles::of(layout, domain);
        if let Some(asked) = &settings.acme {
            let acme = Box::new(Acme::open(asked, layout, domain)?);
            let (stand_in, certificate) = match acme.certificate(SystemTime::now()) {
                Some(certificate) => (None, certificate),
                None => {
                    let (own, certificate) = Own::issue(Authority::ensure(&files.ca, domain.host())?)?;
                    (Some(own), certificate)
                }
            };
            return Ok(Self { acceptor: Acceptor::new(certificate), source: Source::Acme { acme, stand_in } });
        }
        let authority = Authority::ensure(&files.ca, domain.host())?;
        let mut bundle = HOST_BUNDLES.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        bundle.push_str(authority.certificate_pem());
        write_secret(&files.bundle, &bundle)?;
        let (own, certificate) = Own::issue(authority)?;
        Ok(Self { acceptor: Acceptor::new(certificate), source: Source::Authority(own) })
    }

    /// For the listener.
    pub(crate) fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    /// Shows a new certificate whenever it is time to, from now on.
    pub(crate) async fn keep_fresh(mut self, stop: CancellationToken) {
        loop {
            match self.refresh(SystemTime::now(), &stop).await {
                Ok(true) => tracing::info!("a new certificate is shown"),
                Ok(false) => {}
                // The one before is still shown, and a later look may find better.
                Err(error) => tracing::warn!(error = format!("{error:#}"), "there is no new certificate"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK_PERIOD)).await.is_none() {
                return;
            }
        }
    }

    /// Whether there is a new certificate now. `stop` makes it give up.
    async fn refresh(&mut self, now: SystemTime, stop: &CancellationToken) -> Result<bool> {
        let fresh = match &mut self.source {
            Source::Files { files, seen } => {
                let read = files.read()?;
                if read == *seen {
                    return Ok(false);
                }
                let certificate = read.certificate()?;
                *seen = read;
                Some(certificate)
            }
            Source::Authority(own) => own.refresh(now)?,
            Source::Acme { acme, stand_in } => {
                if let Some(own) = stand_in
                    && let Some(certificate) = own.refresh(now)?
                {
                    self.acceptor.replace(certificate);
                }
                let fresh = acme.refresh(now, stop).await?;
                if fresh.is_some() {
                    *stand_in = None;
                }
                fresh
            }
        };
        let is_new = fresh.is_some();
        if let Some(certificate) = fresh {
            self.acceptor.replace(certificate);
        }
        Ok(is_new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Options, Surroundings};

    fn settings(folder: &Path, options: Options) -> Settings {
        let options = Options { data_dir: Some(folder.to_owned()), ..options };
        Settings::settle(options, Options::default(), &Surroundings::here()).expect("valid")
    }

    fn domain() -> Domain {
        "hearth.localhost:3443".parse().expect("a domain")
    }

    #[tokio::test]
    async fn our_own_certificate_is_renewed_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(folder.path());
        let settings = settings(folder.path(), Options::default());
        let mut identity = Identity::open(&settings, &layout, &domain()).expect("it is made");
        let stop = CancellationToken::new();
        let now = SystemTime::now();
        assert!(!identity.refresh(now, &stop).await.expect("nothing to do"));
        assert!(identity.refresh(now + RENEWED_AFTER + Duration::from_secs(1), &stop).await.expect("renewed"));
        assert!(!identity.refresh(now + RENEWED_AFTER + Duration::from_secs(2), &stop).await.expect("nothing to do"));
        assert!(identity.refresh(now, &stop).await.expect("renewed for a clock that was set back"));

        let files = TrustFiles::of(&layout, &domain());
        let (ca, bundle) = (fs::read_to_string(&files.ca).expect("there"), fs::read_to_string(&files.bundle));
        assert!(bundle.expect("there").ends_with(&ca));
        Identity::open(&settings, &layout, &domain()).expect("opens again");
        assert_eq!(fs::read_to_string(&files.ca).expect("there"), ca, "the authority stays");
    }

    #[tokio::test]
    async fn given_files_are_read_again_when_they_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = CertificateFiles { chain: folder.path().join("chain"), key: folder.path().join("key") };
        let write = || {
            let made = rcgen::generate_simple_self_signed(["*.example.com".to_owned()]).expect("a certificate");
            fs::write(&files.chain, made.cert.pem()).expect("writes");
            fs::write(&files.key, made.signing_key.serialize_pem()).expect("writes");
        };
        write();
        let options =
            Options { tls_cert: Some(files.chain.clone()), tls_key: Some(files.key.clone()), ..Options::default() };
        let (layout, settings) = (Layout::new(folder.path()), settings(folder.path(), options));
        let mut identity = Identity::open(&settings, &layout, &domain()).expect("they fit");
        let stop = CancellationToken::new();
        assert!(!layout.tls().exists(), "no authority where a certificate is given");
        let now = SystemTime::now();
        assert!(!identity.refresh(now + 2 * RENEWED_AFTER, &stop).await.expect("nothing changed"));
        write();
        assert!(identity.refresh(now, &stop).await.expect("they fit"));
        // Half of a renewal is none.
        let key = fs::read(&files.key).expect("there");
        write();
        fs::write(&files.key, key).expect("writes");
        assert!(identity.refresh(now, &stop).await.is_err());
        fs::remove_file(&files.key).expect("there");
        let error = Identity::open(&settings, &layout, &domain()).err().expect("a file is missing");
        assert!(format!("{error:#}").contains("key"), "{error:#}");
    }
}
