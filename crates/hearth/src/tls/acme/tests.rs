//! Tests with a real issuer that checks real DNS records: Pebble, Let's Encrypt's test server for clients.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hearth_proxy::body::empty;
use hearth_proxy::serve::{self, Listener};
use hearth_stdx::TaskSet;
use hearth_testkit::Issuer;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::options::{Environment, Options, Settings};
use crate::tls::{ServerCertificate, TrustFiles};

const HOST: &str = "sandboxes.example.com";
const RECORD: &str = "_acme-challenge.sandboxes.example.com";
/// Step of the simulated clock.
const MINUTE: Duration = Duration::from_secs(60);

/// Data directory, issuer, and command-line options.
struct Instance {
    folder: tempfile::TempDir,
    issuer: Issuer,
    contact: &'static str,
    hook: PathBuf,
    wait: u64,
    stop: CancellationToken,
}

impl Instance {
    /// Starts an issuer; `None` if Pebble is not available.
    async fn new() -> Option<Self> {
        let issuer = Issuer::start().await.expect("an issuer")?;
        let folder = tempfile::tempdir().expect("a folder");
        let contact = "ada@example.com";
        Some(Self { contact, hook: issuer.hook(), wait: 0, folder, issuer, stop: CancellationToken::new() })
    }

    fn settings(&self) -> Settings {
        let options = Options {
            data_dir: Some(self.folder.path().to_owned()),
            domain: Some(HOST.to_owned()),
            acme_contact: Some(self.contact.to_owned()),
            acme_directory: Some(self.issuer.directory()),
            acme_hook: Some(self.hook.clone()),
            acme_root: Some(self.issuer.root()),
            acme_wait: Some(self.wait),
            ..Options::default()
        };
        Settings::from_options(options, Options::default(), &Environment::current()).expect("valid")
    }

    fn open(&self) -> ServerCertificate {
        ServerCertificate::open(&self.settings(), &self.layout(), &domain()).expect("it opens")
    }

    fn layout(&self) -> Layout {
        Layout::new(self.folder.path())
    }

    fn files(&self) -> Files {
        Files::of(&self.layout(), &domain(), &self.issuer.directory())
    }

    async fn refresh(&self, certificate: &mut ServerCertificate, now: SystemTime) -> Result<bool> {
        certificate.refresh(now, &self.stop).await
    }

    /// Status as `hearth doctor` prints it.
    fn status(&self, now: SystemTime) -> (bool, String) {
        let settings = self.settings().acme.expect("ACME is on");
        CertificateStatus::read(&settings, &self.layout(), &domain()).expect("it can be read").describe(now)
    }
}

fn domain() -> Domain {
    HOST.parse().expect("a domain")
}

/// Returns the certificate that a client, which trusts only this authority, gets for a name over a real connection.
async fn served(certificate: &ServerCertificate, authority: &str, name: &str) -> Result<CertificateDer<'static>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tasks = TaskSet::new();
    let handler = tower::service_fn(|_| async { Ok::<_, std::convert::Infallible>(http::Response::new(empty())) });
    let bounds = serve::Config { connections_max: 1, idle_timeout: serve::IDLE_TIMEOUT, drain_timeout: Duration::ZERO };
    let server = serve::serve(Listener::Tls(listener, certificate.acceptor()), handler, bounds, tasks.token());
    tasks.spawn("server", server);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await;
    tasks.shutdown(MINUTE).await;
    let stream = stream?;
    let chain = stream.get_ref().1.peer_certificates().context("a chain")?;
    Ok(chain.first().context("a certificate")?.clone().into_owned())
}

fn read(path: &Path) -> Vec<u8> {
    assert_eq!(fs::metadata(path).expect("it exists").permissions().mode() & 0o777, 0o600, "{}", path.display());
    fs::read(path).expect("it exists")
}

#[tokio::test]
async fn a_certificate_is_issued_stored_and_renewed() {
    let Some(mut instance) = Instance::new().await else { return };
    let now = SystemTime::now();
    // The start does not wait for the issuer: until then a certificate of the own authority is served.
    let mut certificate = instance.open();
    let own = fs::read_to_string(TrustFiles::of(&instance.layout(), &domain()).ca).expect("created");
    served(&certificate, &own, HOST).await.expect("the own authority's");
    assert_eq!(instance.status(now), (false, "none yet".to_owned()));

    assert!(instance.refresh(&mut certificate, now).await.expect("issued"));
    let authority = instance.issuer.authority().await.expect("its authority");
    let first = served(&certificate, &authority, HOST).await.expect("the domain");
    for name in ["api.sandboxes.example.com", "49983-i1.sandboxes.example.com"] {
        assert_eq!(served(&certificate, &authority, name).await.expect(name), first);
    }
    served(&certificate, &authority, "a.b.sandboxes.example.com").await.expect_err("not for this name");
    served(&certificate, &own, HOST).await.expect_err("the own authority's certificate was replaced");

    // The domain and its wildcard were proved by two records of one name, set at the same time; both were removed.
    let calls = instance.issuer.hook_calls();
    let [first_set, second_set, removed @ ..] = calls.as_slice() else { panic!("{calls:?}") };
    assert!([first_set, second_set].iter().all(|call| call.starts_with(&format!("set {RECORD} "))), "{calls:?}");
    assert_ne!(first_set, second_set);
    assert_eq!(removed, [first_set, second_set].map(|call| call.replacen("set", "remove", 1)));
    assert_eq!(instance.issuer.txt_record_count(RECORD).expect("an answer"), 0);
    let files = instance.files();
    assert!(!files.records().exists() && !files.failure().exists());
    let account = read(&files.account());
    read(&files.certificate());

    // It is renewed after two thirds of its validity, with the same account.
    assert!(!instance.refresh(&mut certificate, now).await.expect("nothing to do"));
    let due =
        StoredCertificate::read(&files.certificate(), &names(&domain())).expect("it fits").expect("it exists").due();
    assert!(!instance.refresh(&mut certificate, due - MINUTE).await.expect("nothing to do"));
    assert!(instance.refresh(&mut certificate, due + MINUTE).await.expect("renewed"));
    let second = served(&certificate, &authority, HOST).await.expect("renewed");
    assert_ne!(first, second);
    assert_eq!(read(&files.account()), account);
    // A changed contact is updated at the issuer, without another account.
    instance.contact = "grace@example.com";
    let mut certificate = instance.open();
    let due =
        StoredCertificate::read(&files.certificate(), &names(&domain())).expect("it fits").expect("it exists").due();
    assert!(instance.refresh(&mut certificate, due + MINUTE).await.expect("renewed"));
    let second = served(&certificate, &authority, HOST).await.expect("renewed");
    let credentials = |account: &[u8]| {
        let account: serde_json::Value = serde_json::from_slice(account).expect("JSON");
        (account["contact"].to_string(), account["credentials"].to_string())
    };
    let (before, after) = (credentials(&account), credentials(&read(&files.account())));
    assert_eq!(before.1, after.1);
    assert_eq!((before.0.as_str(), after.0.as_str()), ("\"ada@example.com\"", "\"grace@example.com\""));
    let (found, text) = instance.status(now);
    assert!(found && text.starts_with("valid until 2") && !text.contains("failure"), "{text}");

    // A new start serves the stored certificate and does not contact the issuer.
    instance.issuer.stop();
    let mut certificate = instance.open();
    assert_eq!(served(&certificate, &authority, HOST).await.expect("stored"), second);
    assert!(!instance.refresh(&mut certificate, now).await.expect("nothing to do"));
    // An invalid stored certificate counts as none.
    fs::write(files.certificate(), "").expect("writes");
    served(&instance.open(), &own, HOST).await.expect("the own authority's");
}

#[tokio::test]
async fn attempts_are_retried_later_and_an_unknown_account_is_replaced() {
    let Some(mut instance) = Instance::new().await else { return };
    let now = SystemTime::now();
    let mut certificate = instance.open();
    assert!(instance.refresh(&mut certificate, now).await.expect("issued"));
    let authority = instance.issuer.authority().await.expect("its authority");
    let files = instance.files();
    let (first, account) = (read(&files.certificate()), read(&files.account()));

    instance.issuer.stop();
    let held = StoredCertificate::read(&files.certificate(), &names(&domain())).expect("it fits").expect("it exists");
    let due = held.due() + MINUTE;
    let error = format!("{:#}", instance.refresh(&mut certificate, due).await.expect_err("it is down"));
    let directory = instance.issuer.directory();
    for part in [&directory, "fetching the issuer's directory: GET", "refused", "next attempt not before 2"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let (found, text) = instance.status(due);
    assert!(found && text.contains("1 consecutive failures, the last at 2") && text.contains("refused"), "{text}");
    assert_eq!(read(&files.certificate()), first);
    served(&certificate, &authority, HOST).await.expect("the previous certificate is still served");
    read(&files.failure());

    // No attempt before the delay is over, except after a start of the daemon.
    assert!(!instance.refresh(&mut certificate, due + 11 * MINUTE).await.expect("delayed"));
    let mut certificate = instance.open();
    instance.refresh(&mut certificate, due + MINUTE).await.expect_err("it is still down");
    instance.issuer.restart().await.expect("it runs again");
    assert!(!instance.refresh(&mut certificate, due + 24 * MINUTE).await.expect("delayed"));
    assert!(instance.refresh(&mut certificate, due + 26 * MINUTE).await.expect("renewed"));
    assert_ne!(read(&files.account()), account, "the issuer no longer knew the account");
    assert!(!files.failure().exists());
    let authority = instance.issuer.authority().await.expect("its new authority");
    served(&certificate, &authority, HOST).await.expect("renewed");
}

#[tokio::test]
async fn a_hook_that_fails_is_quoted_and_its_record_removed() {
    let Some(mut instance) = Instance::new().await else { return };
    let now = SystemTime::now();
    let script = "\"$HOOK\" \"$@\"; echo no such zone >&2; [ \"$1\" = remove ]";
    instance.hook = instance.issuer.custom_hook("failing", script).expect("a hook");
    let mut certificate = instance.open();
    let error = format!("{:#}", instance.refresh(&mut certificate, now).await.expect_err("it fails"));
    for part in [&format!("failing set {RECORD} "), "exit status: 1", "output: no such zone"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    // The hook had set the record before it failed, so the record is removed.
    let calls = instance.issuer.hook_calls();
    assert_eq!(calls[1..], [calls[0].replacen("set", "remove", 1)]);
    assert_eq!(instance.issuer.txt_record_count(RECORD).expect("an answer"), 0);
    let (found, text) = instance.status(now);
    assert!(!found && text.starts_with("none yet; 1 consecutive failures") && text.contains("no such zone"), "{text}");

    // The issuer detects a hook that succeeds without setting the record.
    instance.hook = instance.issuer.custom_hook("idle", "exit 0").expect("a hook");
    let error = format!("{:#}", instance.refresh(&mut instance.open(), now).await.expect_err("the issuer rejects it"));
    for part in
        ["did not accept the records as proof", "--acme-wait", "sandboxes.example.com: API error", "unauthorized"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }

    // A failed removal is retried later, and does not prevent the certificate.
    let script = "[ \"$1\" = set ] && exec \"$HOOK\" \"$@\"; exit 9";
    instance.hook = instance.issuer.custom_hook("half", script).expect("a hook");
    let mut certificate = instance.open();
    assert!(instance.refresh(&mut certificate, now).await.expect("issued"));
    assert_eq!(instance.issuer.txt_record_count(RECORD).expect("an answer"), 2);
    read(&instance.files().records());
    instance.hook = instance.issuer.hook();
    assert!(!instance.refresh(&mut instance.open(), now).await.expect("only the removal is due"));
    assert_eq!(instance.issuer.txt_record_count(RECORD).expect("an answer"), 0);
}

#[tokio::test]
async fn a_crash_or_a_stop_leaves_no_record() {
    let Some(mut instance) = Instance::new().await else { return };
    instance.wait = 3600;
    let (mut certificate, now) = (instance.open(), SystemTime::now());
    let is_set = || async { Ok((instance.issuer.txt_record_count(RECORD)? == 2).then_some(())) };
    tokio::select! {
        refreshed = instance.refresh(&mut certificate, now) => panic!("it waits: {refreshed:?}"),
        set = hearth_testkit::until("both records", is_set) => set.expect("they are set"),
    }
    // A crash leaves the records; the next start removes them.
    drop(certificate);
    assert_eq!(instance.issuer.txt_record_count(RECORD).expect("an answer"), 2);
    let mut certificate = instance.open();
    let is_swept = || async { Ok((instance.issuer.hook_calls().len() >= 4).then_some(())) };
    let is_in_progress = async {
        hearth_testkit::until("the sweep", is_swept).await.expect("the records of the crash are removed");
        hearth_testkit::until("both records", is_set).await.expect("they are set again");
    };
    let mut refreshed = Box::pin(instance.refresh(&mut certificate, now));
    tokio::select! {
        refreshed = &mut refreshed => panic!("it waits: {refreshed:?}"),
        () = is_in_progress => instance.stop.cancel(),
    }
    assert!(!refreshed.await.expect("a stop is no failure"));
    assert_eq!(instance.issuer.txt_record_count(RECORD).expect("an answer"), 0);
    assert!(!instance.files().failure().exists() && !instance.files().records().exists());
}

#[tokio::test]
async fn a_missing_hook_or_root_is_an_error_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |hook: &str, root: Option<PathBuf>| {
        let options = Options {
            domain: Some(HOST.to_owned()),
            acme_contact: Some("ada@example.com".to_owned()),
            acme_hook: Some(hook.into()),
            acme_root: root,
            ..Options::default()
        };
        let settings = Settings::from_options(options, Options::default(), &Environment::current()).expect("valid");
        let opened = ServerCertificate::open(&settings, &Layout::new(folder.path()), &domain());
        format!("{:#}", opened.err().expect("something is missing"))
    };
    assert!(open("/no/such/hook", None).contains("--acme-hook /no/such/hook"));
    let root = folder.path().join("root.pem");
    assert!(open("/bin/true", Some(root.clone())).contains("--acme-root"));
    fs::write(&root, "nothing").expect("writes");
    let error = open("/bin/true", Some(root));
    assert!(error.contains("contains no certificate"), "{error}");
}
