//! Certificate of the TLS listener, and its renewal.
//!
//! ```text
//! --tls-cert, --tls-key (files) ────────────────┐
//! Acme: requested from an issuer ───────────────┼──▶ ServerCertificate ──▶ acceptor of the listener, renewed by a task
//! Authority: Hearth's own, in the data directory ┘
//! ```
//!
//! Certificates of the instance's own authority are issued at each start and exist in memory only. Files of the
//! operator are read again when they change, so their renewal needs no restart. An ACME certificate may take a while:
//! until it is issued, one of the own authority is used, so the start does not wait for the issuer.

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

/// Period of the checks for renewal. A check compares wall-clock times, because a suspended laptop stops timers.
const CHECK_PERIOD: Duration = Duration::from_secs(600);
/// Files with all certificates that a host trusts: on Debian and on Fedora.
const HOST_BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Certificate files of the operator, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl CertificateFiles {
    fn read(&self) -> Result<FileContents> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        Ok(FileContents { chain: read(&self.chain)?, key: read(&self.key)? })
    }
}

#[derive(PartialEq, Eq)]
struct FileContents {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl FileContents {
    fn certificate(&self) -> Result<Certificate> {
        Certificate::from_pem(&self.chain, &self.key).context("in the files of --tls-cert and --tls-key")
    }
}

/// Files that clients need to trust the instance's own authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrustFiles {
    /// Certificate of the authority.
    pub(crate) ca: PathBuf,
    /// Certificates that this host trusts, and the authority's, for clients that replace their own list by one file.
    pub(crate) bundle: PathBuf,
}

impl TrustFiles {
    /// Returns the paths of the files for this domain.
    pub(crate) fn of(layout: &Layout, domain: &Domain) -> Self {
        let folder = layout.tls().join(domain.host());
        Self { ca: folder.join("ca.pem"), bundle: folder.join("bundle.pem") }
    }
}

/// Certificate of the listener, and the source of the next one.
pub(crate) struct ServerCertificate {
    acceptor: Acceptor,
    source: Source,
}

enum Source {
    Files { files: CertificateFiles, current: FileContents },
    Authority(SelfIssued),
    Acme { acme: Box<Acme>, placeholder: Option<SelfIssued> },
}

/// Certificate of the instance's own authority.
struct SelfIssued {
    authority: Box<Authority>,
    issued: SystemTime,
}

impl SelfIssued {
    fn issue(authority: Authority) -> Result<(Self, Certificate)> {
        let issued = SystemTime::now();
        let certificate = authority.issue(issued)?;
        Ok((Self { authority: Box::new(authority), issued }, certificate))
    }

    /// Issues a new certificate if the current one is due for renewal, or lies in the future after the clock was set
    /// back.
    fn refresh(&mut self, now: SystemTime) -> Result<Option<Certificate>> {
        // An error of `duration_since` means that the clock was set back to before the issue.
        if now.duration_since(self.issued).is_ok_and(|age| age < RENEWED_AFTER) {
            return Ok(None);
        }
        let certificate = self.authority.issue(now)?;
        self.issued = now;
        Ok(Some(certificate))
    }
}

impl ServerCertificate {
    /// Opens the source that the settings select for this domain; creates an authority if one is needed.
    pub(crate) fn open(settings: &Settings, layout: &Layout, domain: &Domain) -> Result<Self> {
        if let Some(files) = &settings.tls_files {
            let current = files.read()?;
            let acceptor = Acceptor::new(current.certificate()?);
            return Ok(Self { acceptor, source: Source::Files { files: files.clone(), current } });
        }
        let files = TrustFiles::of(layout, domain);
        if let Some(acme) = &settings.acme {
            let acme = Box::new(Acme::open(acme, layout, domain)?);
            let (placeholder, certificate) = match acme.certificate(SystemTime::now()) {
                Some(certificate) => (None, certificate),
                None => {
                    let (own, certificate) = SelfIssued::issue(Authority::ensure(&files.ca, domain.host())?)?;
                    (Some(own), certificate)
                }
            };
            return Ok(Self { acceptor: Acceptor::new(certificate), source: Source::Acme { acme, placeholder } });
        }
        let authority = Authority::ensure(&files.ca, domain.host())?;
        let mut bundle = HOST_BUNDLES.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        bundle.push_str(authority.certificate_pem());
        write_secret(&files.bundle, &bundle)?;
        let (own, certificate) = SelfIssued::issue(authority)?;
        Ok(Self { acceptor: Acceptor::new(certificate), source: Source::Authority(own) })
    }

    /// Returns the acceptor for the listener; it uses each renewed certificate for new connections.
    pub(crate) fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    /// Renews the certificate whenever it is due, until `stop`.
    pub(crate) async fn renew_until(mut self, stop: CancellationToken) {
        loop {
            match self.refresh(SystemTime::now(), &stop).await {
                Ok(true) => tracing::info!("certificate replaced"),
                Ok(false) => {}
                // The previous certificate stays in use until a later check succeeds.
                Err(error) => tracing::warn!(error = format!("{error:#}"), "certificate renewal failed"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(CHECK_PERIOD)).await.is_none() {
                return;
            }
        }
    }

    /// Renews the certificate if it is due. Returns true if there is a new one, false if not or if `stop` cancelled it.
    async fn refresh(&mut self, now: SystemTime, stop: &CancellationToken) -> Result<bool> {
        let fresh = match &mut self.source {
            Source::Files { files, current } => {
                let read = files.read()?;
                if read == *current {
                    return Ok(false);
                }
                let certificate = read.certificate()?;
                *current = read;
                Some(certificate)
            }
            Source::Authority(own) => own.refresh(now)?,
            Source::Acme { acme, placeholder } => {
                if let Some(own) = placeholder
                    && let Some(certificate) = own.refresh(now)?
                {
                    self.acceptor.replace(certificate);
                }
                let fresh = acme.refresh(now, stop).await?;
                if fresh.is_some() {
                    *placeholder = None;
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
    use crate::options::{Environment, Options};

    fn settings(folder: &Path, options: Options) -> Settings {
        let options = Options { data_dir: Some(folder.to_owned()), ..options };
        Settings::from_options(options, Options::default(), &Environment::current()).expect("valid")
    }

    fn domain() -> Domain {
        "hearth.localhost:3443".parse().expect("a domain")
    }

    #[tokio::test]
    async fn a_certificate_of_the_own_authority_is_renewed_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(folder.path());
        let settings = settings(folder.path(), Options::default());
        let mut certificate = ServerCertificate::open(&settings, &layout, &domain()).expect("it is created");
        let stop = CancellationToken::new();
        let now = SystemTime::now();
        assert!(!certificate.refresh(now, &stop).await.expect("nothing to do"));
        assert!(certificate.refresh(now + RENEWED_AFTER + Duration::from_secs(1), &stop).await.expect("renewed"));
        assert!(
            !certificate.refresh(now + RENEWED_AFTER + Duration::from_secs(2), &stop).await.expect("nothing to do")
        );
        assert!(certificate.refresh(now, &stop).await.expect("renewed for a clock that was set back"));

        let files = TrustFiles::of(&layout, &domain());
        let (ca, bundle) = (fs::read_to_string(&files.ca).expect("it exists"), fs::read_to_string(&files.bundle));
        assert!(bundle.expect("it exists").ends_with(&ca));
        ServerCertificate::open(&settings, &layout, &domain()).expect("opens again");
        assert_eq!(fs::read_to_string(&files.ca).expect("it exists"), ca, "the authority must not change");
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
        let mut certificate = ServerCertificate::open(&settings, &layout, &domain()).expect("they fit");
        let stop = CancellationToken::new();
        assert!(!layout.tls().exists(), "no authority is created if a certificate is given");
        let now = SystemTime::now();
        assert!(!certificate.refresh(now + 2 * RENEWED_AFTER, &stop).await.expect("nothing changed"));
        write();
        assert!(certificate.refresh(now, &stop).await.expect("they fit"));
        // A new chain with the old key is an error.
        let key = fs::read(&files.key).expect("it exists");
        write();
        fs::write(&files.key, key).expect("writes");
        assert!(certificate.refresh(now, &stop).await.is_err());
        fs::remove_file(&files.key).expect("it exists");
        let error = ServerCertificate::open(&settings, &layout, &domain()).err().expect("a file is missing");
        assert!(format!("{error:#}").contains("key"), "{error:#}");
    }
}
