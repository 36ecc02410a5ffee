//! Stored certificate: chain and key in one file, so that they always match.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use hearth_proxy::tls::Certificate;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::order::Issued;
use crate::layout::write_secret;

/// Certificate for the domain, with its validity.
#[derive(Debug, Clone)]
pub(crate) struct StoredCertificate {
    pub(super) certificate: Certificate,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl StoredCertificate {
    /// Reads the stored certificate; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or the certificate is not for these names.
    pub(super) fn read(path: &Path, names: &[String]) -> Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(pem) => Self::parse(&pem, names).with_context(|| format!("in {}", path.display())).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Stores an issued certificate.
    ///
    /// # Errors
    /// It is not for these names, its key does not match, or the file cannot be written.
    pub(super) fn save(path: &Path, issued: &Issued, names: &[String]) -> Result<Self> {
        let pem = format!("{}\n{}", issued.chain.trim_end(), issued.key.expose());
        let held = Self::parse(&pem, names).context("in the issuer's reply")?;
        write_secret(path, &pem)?;
        Ok(held)
    }

    fn parse(pem: &str, names: &[String]) -> Result<Self> {
        let certificate = Certificate::from_pem(pem.as_bytes(), pem.as_bytes())?;
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes())?;
        let (_, leaf) = X509Certificate::from_der(&leaf).context("reading the certificate")?;
        let alternatives = leaf.subject_alternative_name().context("reading the certificate's names")?;
        let alternatives = alternatives.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let is_for = |name: &String| {
            alternatives
                .iter()
                .any(|other| matches!(other, GeneralName::DNSName(other) if other.eq_ignore_ascii_case(name)))
        };
        if let Some(missing) = names.iter().find(|name| !is_for(name)) {
            bail!("the certificate is not for {missing}");
        }
        let validity = leaf.validity();
        Ok(Self { certificate, not_before: time(validity.not_before)?, not_after: time(validity.not_after)? })
    }

    /// Returns the time of the renewal: after two thirds of the validity, as issuers advise.
    ///
    /// That leaves weeks to repair a failing renewal.
    pub(crate) fn due(&self) -> SystemTime {
        let validity = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + validity * 2 / 3
    }

    pub(crate) fn has_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}

fn time(time: ASN1Time) -> Result<SystemTime> {
    let seconds = u64::try_from(time.timestamp()).context("the certificate is from before 1970")?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use hearth_types::Secret;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn issued(names: &[String]) -> Issued {
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2026, 4, 1));
        let key = rcgen::KeyPair::generate().expect("a key");
        Issued { chain: params.self_signed(&key).expect("signed").pem(), key: Secret::new(key.serialize_pem()) }
    }

    #[test]
    fn a_certificate_is_stored_with_its_key_and_due_after_two_thirds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("certificate.pem");
        let names = ["a.example.com".to_owned(), "*.a.example.com".to_owned()];
        assert!(StoredCertificate::read(&path, &names).expect("no file").is_none());
        StoredCertificate::save(&path, &issued(&names), &names).expect("it fits");
        let held = StoredCertificate::read(&path, &names).expect("it fits").expect("it exists");
        assert_eq!(held.due(), held.not_before + 60 * DAY);
        assert!(!held.has_expired(held.not_before + 89 * DAY) && held.has_expired(held.not_before + 91 * DAY));
    }

    #[test]
    fn a_certificate_with_other_names_or_another_key_is_not_stored() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("certificate.pem");
        let names = ["a.example.com".to_owned(), "*.a.example.com".to_owned()];
        let keep =
            |issued| format!("{:#}", StoredCertificate::save(&path, &issued, &names).expect_err("it does not fit"));
        let error = keep(issued(&names[..1]));
        assert!(error.contains("not for *.a.example.com"), "{error}");
        let error = keep(Issued { key: issued(&names).key, ..issued(&names) });
        assert!(error.contains("does not fit"), "{error}");
        assert!(!path.exists());
    }
}
