//! Options for certificates by ACME. A contact enables it; without one, none of the other ACME options may be set.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use instant_acme::LetsEncrypt;

use super::{Options, TlsListen};
use crate::domain::Domain;

/// Default time for a change to reach all name servers of a zone: most take seconds.
const WAIT_SECONDS: u64 = 30;
/// One hour, more than any zone needs. Pending authorizations expire later (after a week at Let's Encrypt).
const WAIT_SECONDS_MAX: u64 = 3600;

/// ACME issuer, and the means to prove control of the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcmeSettings {
    /// E-mail address for the issuer.
    pub(crate) contact: String,
    /// URL of the issuer's directory (RFC 8555, 7.1.1).
    pub(crate) directory: String,
    /// Absolute path of the program that sets and removes TXT records of the domain.
    pub(crate) hook: PathBuf,
    /// File with an authority to trust for connections to the issuer, besides the host's.
    pub(crate) root: Option<PathBuf>,
    /// Time between setting the last record and asking the issuer to check them.
    pub(crate) wait: Duration,
}

impl AcmeSettings {
    /// Validates the ACME options against the domain and the TLS listener; `None` if ACME is off.
    pub(super) fn from_options(options: &Options, domain: Option<&Domain>, listen: TlsListen) -> Result<Option<Self>> {
        let Options { acme_contact, acme_directory, acme_hook, acme_root, acme_wait, tls_cert, .. } = options;
        let Some(contact) = acme_contact else {
            let others = [
                ("--acme-directory", acme_directory.is_some()),
                ("--acme-hook", acme_hook.is_some()),
                ("--acme-root", acme_root.is_some()),
                ("--acme-wait", acme_wait.is_some()),
            ];
            if let Some((flag, _)) = others.into_iter().find(|(_, is_set)| *is_set) {
                bail!("{flag} has no effect without --acme-contact, which enables certificates by ACME");
            }
            return Ok(None);
        };
        if tls_cert.is_some() {
            bail!("--acme-contact and --tls-cert exclude each other: choose ACME or a certificate in a file");
        }
        if listen == TlsListen::Off {
            bail!("--acme-contact needs a TLS listener, and --tls-listen is off");
        }
        let Some(domain) = domain else {
            bail!("--acme-contact needs --domain: no issuer issues certificates for the local domain");
        };
        if domain.is_local() {
            bail!("--acme-contact: no issuer issues certificates for {} or any name below localhost", domain.host());
        }
        let Some(hook) = acme_hook else {
            bail!("--acme-contact needs --acme-hook, a program that sets DNS records of {}", domain.host());
        };
        if !hook.is_absolute() {
            bail!("--acme-hook {}: give an absolute path", hook.display());
        }
        let wait = acme_wait.unwrap_or(WAIT_SECONDS);
        if wait > WAIT_SECONDS_MAX {
            bail!("--acme-wait {wait}: choose 0 to {WAIT_SECONDS_MAX}");
        }
        let root = acme_root
            .as_deref()
            .map(|path: &Path| std::path::absolute(path).with_context(|| format!("--acme-root {}", path.display())));
        Ok(Some(Self {
            contact: contact_address(contact)?,
            directory: directory_address(acme_directory.as_deref())?,
            hook: hook.clone(),
            root: root.transpose()?,
            wait: Duration::from_secs(wait),
        }))
    }

    /// Returns the options that give exactly these settings; options unrelated to ACME are not set.
    pub(super) fn into_options(self) -> Options {
        let Self { contact, directory, hook, root, wait } = self;
        Options {
            acme_contact: Some(contact),
            acme_directory: Some(directory),
            acme_hook: Some(hook),
            acme_root: root,
            acme_wait: Some(wait.as_secs()),
            ..Options::default()
        }
    }
}

/// Checks that the text is one e-mail address, without the `mailto:` scheme used on the wire (RFC 8555, 7.3).
fn contact_address(text: &str) -> Result<String> {
    let is_one = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    // Characters that separate addresses or start other parts in a `mailto:` URL (RFC 6068).
    let odd = |character: char| character.is_whitespace() || character.is_control() || ",?:;<>\"".contains(character);
    if !is_one || text.contains(odd) {
        bail!("--acme-contact {text}: give one e-mail address, such as ada@example.com");
    }
    Ok(text.to_owned())
}

fn directory_address(text: Option<&str>) -> Result<String> {
    let Some(text) = text else { return Ok(LetsEncrypt::Production.url().to_owned()) };
    let address: Option<http::Uri> = text.parse().ok();
    // RFC 8555, 6.1.
    let is_https = address.is_some_and(|address| address.scheme_str() == Some("https") && address.host().is_some());
    if !is_https {
        bail!("--acme-directory {text}: give a URL that begins with https://");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::options::{Environment, Options, Settings, TlsListen};

    fn enabled() -> Options {
        Options {
            domain: Some("sandboxes.example.com".to_owned()),
            acme_contact: Some("ada@example.com".to_owned()),
            acme_hook: Some("/usr/local/bin/hook".into()),
            ..Options::default()
        }
    }

    fn resolve(options: Options) -> anyhow::Result<Settings> {
        Settings::from_options(options, Options::default(), &Environment::current())
    }

    #[test]
    fn a_contact_enables_acme() {
        assert_eq!(resolve(Options::default()).expect("valid").acme, None);
        let acme = resolve(enabled()).expect("valid").acme.expect("on");
        assert_eq!(acme.directory, "https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!((acme.wait.as_secs(), acme.root), (30, None));
    }

    #[test]
    fn contradictory_options_are_rejected() {
        let with = |change: fn(&mut Options)| {
            let mut options = enabled();
            change(&mut options);
            options
        };
        for (options, part) in [
            (with(|o| (o.tls_cert, o.tls_key) = (Some("/c".into()), Some("/k".into()))), "exclude each other"),
            (with(|o| o.tls_listen = Some(TlsListen::Off)), "--tls-listen is off"),
            (with(|o| o.domain = None), "needs --domain"),
            (with(|o| o.domain = Some("hearth.localhost:3443".to_owned())), "below localhost"),
            (with(|o| o.acme_hook = None), "needs --acme-hook"),
            (with(|o| o.acme_hook = Some("hook".into())), "absolute path"),
            (with(|o| o.acme_wait = Some(3601)), "0 to 3600"),
            (with(|o| o.acme_contact = Some("ada".to_owned())), "ada@example.com"),
            (with(|o| o.acme_contact = Some("a@b,c@d".to_owned())), "ada@example.com"),
            (with(|o| o.acme_directory = Some("http://ca/dir".to_owned())), "https://"),
            (with(|o| o.acme_contact = None), "--acme-hook has no effect without --acme-contact"),
            (Options { acme_wait: Some(1), ..Options::default() }, "--acme-wait has no effect"),
        ] {
            let error = format!("{:#}", resolve(options).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_printed_configuration_gives_the_same_settings() {
        let given = Options {
            acme_directory: Some("https://127.0.0.1:14000/dir".to_owned()),
            acme_root: Some("/root.pem".into()),
            acme_wait: Some(0),
            ..enabled()
        };
        for options in [enabled(), given] {
            let settings = resolve(options).expect("valid");
            let printed: Options = toml::from_str(&settings.redacted().to_string()).expect("valid");
            assert_eq!(resolve(printed).expect("valid"), settings);
        }
    }
}
