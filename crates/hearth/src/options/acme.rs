//! Certificates by ACME, as an operator asks for them: off without a contact, and then nothing else of it may be set.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use instant_acme::LetsEncrypt;

use super::{Options, TlsListen};
use crate::domain::Domain;

/// What a zone's name servers take to have a change all: most have it within seconds.
const WAIT_SECONDS: u64 = 30;
/// An hour, which no zone takes. Authorizations that are asked for expire later (a week at Let's Encrypt).
const WAIT_SECONDS_MAX: u64 = 3600;

/// Who issues certificates, and how it is proved that the domain is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acme {
    /// Of a person, for the issuer.
    pub(crate) contact: String,
    /// Where the issuer says what it offers (RFC 8555, 7.1.1).
    pub(crate) directory: String,
    /// The program that sets and removes records of the domain.
    pub(crate) hook: PathBuf,
    /// One that is trusted besides the host's, towards the issuer.
    pub(crate) root: Option<PathBuf>,
    /// Between the last record and the issuer's look at them.
    pub(crate) wait: Duration,
}

impl Acme {
    /// What follows from the options, with what is in force of names and TLS.
    pub(super) fn settle(options: &Options, domain: Option<&Domain>, listen: TlsListen) -> Result<Option<Self>> {
        let Options { acme_contact, acme_directory, acme_hook, acme_root, acme_wait, tls_cert, .. } = options;
        let Some(contact) = acme_contact else {
            let others = [
                ("--acme-directory", acme_directory.is_some()),
                ("--acme-hook", acme_hook.is_some()),
                ("--acme-root", acme_root.is_some()),
                ("--acme-wait", acme_wait.is_some()),
            ];
            if let Some((flag, _)) = others.into_iter().find(|(_, is_set)| *is_set) {
                bail!("{flag} is of no use without --acme-contact, which turns certificates by ACME on");
            }
            return Ok(None);
        };
        if tls_cert.is_some() {
            bail!("--acme-contact and --tls-cert exclude each other: the certificate is asked for, or it is given");
        }
        if listen == TlsListen::Off {
            bail!("--acme-contact needs names that are served, and --tls-listen is off");
        }
        let Some(domain) = domain else {
            bail!("--acme-contact needs --domain: nobody issues certificates for the local one");
        };
        if domain.is_local() {
            bail!("--acme-contact: nobody issues certificates for {}, or for any name below localhost", domain.host());
        }
        let Some(hook) = acme_hook else {
            bail!("--acme-contact needs --acme-hook, the program that sets records of {}", domain.host());
        };
        if !hook.is_absolute() {
            bail!("--acme-hook {}: name it by its absolute path", hook.display());
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

    /// The options that lead to exactly this; none of the others.
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

/// One address, without the scheme that it gets on the wire (RFC 8555, 7.3).
fn contact_address(text: &str) -> Result<String> {
    let is_one = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    // What would make it several, or none, in a `mailto:` (RFC 6068).
    let odd = |character: char| character.is_whitespace() || character.is_control() || ",?:;<>\"".contains(character);
    if !is_one || text.contains(odd) {
        bail!("--acme-contact {text}: give one address of electronic mail, such as ada@example.com");
    }
    Ok(text.to_owned())
}

fn directory_address(text: Option<&str>) -> Result<String> {
    let Some(text) = text else { return Ok(LetsEncrypt::Production.url().to_owned()) };
    let address: Option<http::Uri> = text.parse().ok();
    // RFC 8555, 6.1.
    let is_https = address.is_some_and(|address| address.scheme_str() == Some("https") && address.host().is_some());
    if !is_https {
        bail!("--acme-directory {text}: give an address that begins with https://");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::options::{Options, Settings, Surroundings, TlsListen};

    fn asked_for() -> Options {
        Options {
            domain: Some("sandboxes.example.com".to_owned()),
            acme_contact: Some("ada@example.com".to_owned()),
            acme_hook: Some("/usr/local/bin/hook".into()),
            ..Options::default()
        }
    }

    fn settle(options: Options) -> anyhow::Result<Settings> {
        Settings::settle(options, Options::default(), &Surroundings::here())
    }

    #[test]
    fn a_contact_turns_it_on() {
        assert_eq!(settle(Options::default()).expect("valid").acme, None);
        let acme = settle(asked_for()).expect("valid").acme.expect("on");
        assert_eq!(acme.directory, "https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!((acme.wait.as_secs(), acme.root), (30, None));
    }

    #[test]
    fn contradictions_are_told() {
        let with = |change: fn(&mut Options)| {
            let mut options = asked_for();
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
            (with(|o| o.acme_contact = None), "--acme-hook is of no use without --acme-contact"),
            (Options { acme_wait: Some(1), ..Options::default() }, "--acme-wait is of no use"),
        ] {
            let error = format!("{:#}", settle(options).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_printed_configuration_leads_to_itself() {
        let given = Options {
            acme_directory: Some("https://127.0.0.1:14000/dir".to_owned()),
            acme_root: Some("/root.pem".into()),
            acme_wait: Some(0),
            ..asked_for()
        };
        for options in [asked_for(), given] {
            let settings = settle(options).expect("valid");
            let printed: Options = toml::from_str(&settings.shown().to_string()).expect("valid");
            assert_eq!(settle(printed).expect("valid"), settings);
        }
    }
}
