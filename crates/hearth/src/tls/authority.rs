//! Certificate authority of this instance, for a domain without a publicly trusted certificate.
//!
//! It is valid for the domain and names below it only (name constraints, RFC 5280, 4.2.1.10), so clients that trust it
//! are not at risk on other sites. Its key never leaves the data directory; keys of issued certificates are never
//! written to disk.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hearth_proxy::tls::Certificate;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};

use crate::layout::{read_secret, write_secret};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Validity of an issued certificate.
const VALID_FOR: Duration = Duration::from_secs(90 * 24 * 3600);
/// Age at which a certificate is replaced, long before it expires.
pub(crate) const RENEWED_AFTER: Duration = Duration::from_secs(60 * 24 * 3600);
/// "No well-defined expiration date" (RFC 5280, 4.1.2.5).
///
/// An authority that expires fails on an unexpected day. Delete its folder to replace it.
const NEVER: (i32, u8, u8) = (9999, 12, 31);

/// Certificate authority for one domain.
pub(crate) struct Authority {
    host: String,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority whose certificate is at `path`, or creates it.
    pub(crate) fn ensure(path: &Path, host: &str) -> Result<Self> {
        let key_path = key_path(path);
        let known = read_secret(&key_path)?;
        let key = match &known {
            Some(key) => {
                KeyPair::from_pem(key.expose()).with_context(|| format!("in the key {}", key_path.display()))?
            }
            None => KeyPair::generate().context("generating the key of a certificate authority")?,
        };
        let params = params(host, &key);
        let read = if known.is_some() { read_certificate(path)? } else { None };
        let certificate_pem = match read {
            Some(pem) => pem,
            None => {
                let created = params.self_signed(&key).context("creating a certificate authority")?;
                let folder = path.parent().context("the certificate is in a folder")?;
                let folder_created = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
                folder_created.with_context(|| format!("creating the folder {}", folder.display()))?;
                // Write the key first: a certificate without its key could not be used.
                write_secret(&key_path, &key.serialize_pem())?;
                write_secret(path, &created.pem())?;
                created.pem()
            }
        };
        Ok(Self { host: host.to_owned(), certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// Certificate that clients have to trust.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate with a new key, for the domain and all names directly below it.
    pub(crate) fn issue(&self, now: SystemTime) -> Result<Certificate> {
        let (chain, key) = self.issue_pem(now)?;
        Ok(Certificate::from_pem(chain.as_bytes(), key.as_bytes())?)
    }

    fn issue_pem(&self, now: SystemTime) -> Result<(String, String)> {
        let names = vec![self.host.clone(), format!("*.{}", self.host)];
        let mut params = CertificateParams::new(names).context("adding the domain to a certificate")?;
        params.distinguished_name = named(&self.host);
        // Clients' clocks may be behind.
        params.not_before = (now - DAY).into();
        params.not_after = (now + VALID_FOR).into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().context("generating the key of a certificate")?;
        let certificate = params.signed_by(&key, &self.issuer).context("signing a certificate")?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// Reads the certificate of an existing authority; `None` if the file does not exist.
pub(crate) fn read_certificate(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(pem) => Ok(Some(pem)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn key_path(certificate: &Path) -> PathBuf {
    certificate.with_file_name("ca-key.pem")
}

/// Parameters of the authority. They depend only on host and key, because issued certificates contain the issuer's
/// name.
fn params(host: &str, key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Two instances may have the same domain; the fingerprint distinguishes their authorities in a client's list.
    let fingerprint = hex::encode(&params.key_identifier(key)[..4]);
    params.distinguished_name = named(&format!("Hearth CA {fingerprint} for {host}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(host.to_owned())],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    let (year, month, day) = NEVER;
    params.not_after = rcgen::date_time_ymd(year, month, day);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Hearth");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn an_authority_is_created_once_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tls/hearth.localhost/ca.pem");
        let first = Authority::ensure(&path, "hearth.localhost").expect("it is created").certificate_pem().to_owned();
        let again = Authority::ensure(&path, "hearth.localhost").expect("it is read").certificate_pem().to_owned();
        assert_eq!(first, again);
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!((mode(&key_path(&path)), mode(path.parent().expect("a folder"))), (0o600, 0o700));
        // Without the key, a new authority is created.
        fs::remove_file(key_path(&path)).expect("it exists");
        let third = Authority::ensure(&path, "hearth.localhost").expect("it is created").certificate_pem().to_owned();
        assert_ne!(first, third);
        assert_eq!(fs::read_to_string(&path).expect("it exists"), third);
    }

    /// Verifies with the strictest client: OpenSSL with `-x509_strict`, as Python uses it since 3.13.
    #[test]
    fn openssl_accepts_its_certificates_for_its_names_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        let authority = Authority::ensure(&path, "hearth.localhost").expect("it is created");
        let leaf = folder.path().join("leaf.pem");
        let verify = |authority: &Authority, name: &str| {
            let (chain, _) = authority.issue_pem(SystemTime::now()).expect("it is issued");
            fs::write(&leaf, chain).expect("writes");
            let output = Command::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", name, "-CAfile"])
                .args([&path, &leaf])
                .output()
                .expect("OpenSSL is installed");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        for name in ["api.hearth.localhost", "49983-i1.hearth.localhost", "hearth.localhost"] {
            assert_eq!(verify(&authority, name), (true, String::new()), "{name}");
        }
        for name in ["a.b.hearth.localhost", "example.com"] {
            assert!(!verify(&authority, name).0, "{name}");
        }
        // A certificate for another site, as an attacker with the key could issue it.
        let misused = Authority { host: "example.com".to_owned(), ..authority };
        let (accepted, reason) = verify(&misused, "example.com");
        assert!(!accepted && reason.contains("permitted subtree violation"), "{reason}");
    }
}
