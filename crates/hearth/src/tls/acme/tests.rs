//! Against a real issuer that looks at real records: Pebble, which Let's Encrypt tests clients with.

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
use crate::options::{Options, Settings, Surroundings};
use crate::tls::{Identity, TrustFiles};

const HOST: &str = "sandboxes.example.com";
const RECORD: &str = "_acme-challenge.sandboxes.example.com";
/// A simulated clock goes on by this where it has to go on at all.
const MINUTE: Duration = Duration::from_secs(60);

/// A data directory, an issuer, and what is said on the command line.
struct Instance {
    folder: tempfile::TempDir,
    issuer: Issuer,
    contact: &'static str,
    hook: PathBuf,
    wait: u64,
    stop: CancellationToken,
}

impl Instance {
    /// `None` where there is no issuer to be had.
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
        Settings::settle(options, Options::default(), &Surroundings::here()).expect("valid")
    }

    fn open(&self) -> Identity {
        Identity::open(&self.settings(), &self.layout(), &domain()).expect("it opens")
    }

    fn layout(&self) -> Layout {
        Layout::new(self.folder.path())
    }

    fn files(&self) -> Files {
        Files::of(&self.layout(), &domain(), &self.issuer.directory())
    }

    async fn refresh(&self, identity: &mut Identity, now: SystemTime) -> Result<bool> {
        identity.refresh(now, &self.stop).await
    }

    /// What `hearth doctor` says.
    fn standing(&self, now: SystemTime) -> (bool, String) {
        let asked = self.settings().acme.expect("it is on");
        Standing::of(&asked, &self.layout(), &domain()).expect("it can be read").tell(now)
    }
}

fn domain() -> Domain {
    HOST.parse().expect("a domain")
}

/// The certificate that clients of this authority are shown for a name, over a real connection.
async fn shown(identity: &Identity, authority: &str, name: &str) -> Result<CertificateDer<'static>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tasks = TaskSet::new();
    let handler = tower::service_fn(|_| async { Ok::<_, std::convert::Infallible>(http::Response::new(empty())) });
    let bounds =
        serve::Config { connections_max: 1, idle_timeout: serve::IDLE_TIMEOUT, drain_patience: Duration::ZERO };
    let served = serve::serve(Listener::Tls(listener, identity.acceptor()), handler, bounds, tasks.token());
    tasks.spawn("server", served);
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
    assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o777, 0o600, "{}", path.display());
    fs::read(path).expect("there")
}

#[tokio::test]
async fn a_certificate_comes_is_kept_and_renewed() {
    let Some(mut instance) = Instance::new().await else { return };
    let now = SystemTime::now();
    // Nothing waits for the issuer: until it has answered, ours is shown.
    let mut identity = instance.open();
    let ours = fs::read_to_string(TrustFiles::of(&instance.layout(), &domain()).ca).expect("made");
    shown(&identity, &ours, HOST).await.expect("ours");
    assert_eq!(instance.standing(now), (false, "none yet".to_owned()));

    assert!(instance.refresh(&mut identity, now).await.expect("it comes"));
    let authority = instance.issuer.authority().await.expect("its authority");
    let first = shown(&identity, &authority, HOST).await.expect("the domain");
    for name in ["api.sandboxes.example.com", "49983-i1.sandboxes.example.com"] {
        assert_eq!(shown(&identity, &authority, name).await.expect(name), first);
    }
    shown(&identity, &authority, "a.b.sandboxes.example.com").await.expect_err("not for this one");
    shown(&identity, &ours, HOST).await.expect_err("ours is shown no longer");

    // The domain and what is below it were proved by records of one name, both at the same time; none of them stays.
    let calls = instance.issuer.calls();
    let [first_set, second_set, removed @ ..] = calls.as_slice() else { panic!("{calls:?}") };
    assert!([first_set, second_set].iter().all(|call| call.starts_with(&format!("set {RECORD} "))), "{calls:?}");
    assert_ne!(first_set, second_set);
    assert_eq!(removed, [first_set, second_set].map(|call| call.replacen("set", "remove", 1)));
    assert_eq!(instance.issuer.records(RECORD).expect("an answer"), 0);
    let files = instance.files();
    assert!(!files.records().exists() && !files.failure().exists());
    let account = read(&files.account());
    read(&files.certificate());

    // It is renewed when two thirds of its time are over, with the same account.
    assert!(!instance.refresh(&mut identity, now).await.expect("nothing to do"));
    let due = Held::read(&files.certificate(), &names(&domain())).expect("it fits").expect("there").due();
    assert!(!instance.refresh(&mut identity, due - MINUTE).await.expect("nothing to do"));
    assert!(instance.refresh(&mut identity, due + MINUTE).await.expect("renewed"));
    let second = shown(&identity, &authority, HOST).await.expect("renewed");
    assert_ne!(first, second);
    assert_eq!(read(&files.account()), account);
    // The issuer is told of another person without another account.
    instance.contact = "grace@example.com";
    let mut identity = instance.open();
    let due = Held::read(&files.certificate(), &names(&domain())).expect("it fits").expect("there").due();
    assert!(instance.refresh(&mut identity, due + MINUTE).await.expect("renewed"));
    let second = shown(&identity, &authority, HOST).await.expect("renewed");
    let credentials = |account: &[u8]| {
        let account: serde_json::Value = serde_json::from_slice(account).expect("JSON");
        (account["contact"].to_string(), account["credentials"].to_string())
    };
    let (before, after) = (credentials(&account), credentials(&read(&files.account())));
    assert_eq!(before.1, after.1);
    assert_eq!((before.0.as_str(), after.0.as_str()), ("\"ada@example.com\"", "\"grace@example.com\""));
    let (found, text) = instance.standing(now);
    assert!(found && text.starts_with("until 2") && !text.contains("failure"), "{text}");

    // A new start shows the kept one and asks nobody.
    instance.issuer.stop();
    let mut identity = instance.open();
    assert_eq!(shown(&identity, &authority, HOST).await.expect("kept"), second);
    assert!(!instance.refresh(&mut identity, now).await.expect("nothing to do"));
    // One that is of no use counts as none.
    fs::write(files.certificate(), "").expect("writes");
    shown(&instance.open(), &ours, HOST).await.expect("ours");
}

#[tokio::test]
async fn an_issuer_that_is_down_is_asked_later_and_may_have_forgotten_us() {
    let Some(mut instance) = Instance::new().await else { return };
    let now = SystemTime::now();
    let mut identity = instance.open();
    assert!(instance.refresh(&mut identity, now).await.expect("it comes"));
    let authority = instance.issuer.authority().await.expect("its authority");
    let files = instance.files();
    let (first, account) = (read(&files.certificate()), read(&files.account()));

    instance.issuer.stop();
    let held = Held::read(&files.certificate(), &names(&domain())).expect("it fits").expect("there");
    let due = held.due() + MINUTE;
    let error = format!("{:#}", instance.refresh(&mut identity, due).await.expect_err("it is down"));
    let directory = instance.issuer.directory();
    for part in [&directory, "asking the issuer what it offers: GET", "refused", "not asked again before 2"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let (found, text) = instance.standing(due);
    assert!(found && text.contains("the last of 1 failures in a row, at 2") && text.contains("refused"), "{text}");
    assert_eq!(read(&files.certificate()), first);
    shown(&identity, &authority, HOST).await.expect("the one before is still shown");
    read(&files.failure());

    // Not before its time, unless the daemon is started anew.
    assert!(!instance.refresh(&mut identity, due + 11 * MINUTE).await.expect("held back"));
    let mut identity = instance.open();
    instance.refresh(&mut identity, due + MINUTE).await.expect_err("it is down still");
    instance.issuer.resume().await.expect("it is back");
    assert!(!instance.refresh(&mut identity, due + 24 * MINUTE).await.expect("held back"));
    assert!(instance.refresh(&mut identity, due + 26 * MINUTE).await.expect("renewed"));
    assert_ne!(read(&files.account()), account, "the issuer had forgotten it");
    assert!(!files.failure().exists());
    let authority = instance.issuer.authority().await.expect("its new authority");
    shown(&identity, &authority, HOST).await.expect("renewed");
}

#[tokio::test]
async fn a_hook_that_fails_is_quoted_and_its_record_removed() {
    let Some(mut instance) = Instance::new().await else { return };
    let now = SystemTime::now();
    let script = "\"$HOOK\" \"$@\"; echo no such zone >&2; [ \"$1\" = remove ]";
    instance.hook = instance.issuer.hook_that("failing", script).expect("a hook");
    let mut identity = instance.open();
    let error = format!("{:#}", instance.refresh(&mut identity, now).await.expect_err("it fails"));
    for part in [&format!("failing set {RECORD} "), "exit status: 1", "said: no such zone"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    // It had set the record before it failed.
    let calls = instance.issuer.calls();
    assert_eq!(calls[1..], [calls[0].replacen("set", "remove", 1)]);
    assert_eq!(instance.issuer.records(RECORD).expect("an answer"), 0);
    let (found, text) = instance.standing(now);
    assert!(!found && text.starts_with("none yet; the last of 1 failures") && text.contains("no such zone"), "{text}");

    // One that only says that it did something is found out by the issuer.
    instance.hook = instance.issuer.hook_that("idle", "exit 0").expect("a hook");
    let error = format!("{:#}", instance.refresh(&mut instance.open(), now).await.expect_err("it is found out"));
    for part in ["did not take the records as proof", "--acme-wait", "sandboxes.example.com: API error", "unauthorized"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }

    // One that cannot remove is asked again later; the certificate is there all the same.
    let script = "[ \"$1\" = set ] && exec \"$HOOK\" \"$@\"; exit 9";
    instance.hook = instance.issuer.hook_that("half", script).expect("a hook");
    let mut identity = instance.open();
    assert!(instance.refresh(&mut identity, now).await.expect("it comes"));
    assert_eq!(instance.issuer.records(RECORD).expect("an answer"), 2);
    read(&instance.files().records());
    instance.hook = instance.issuer.hook();
    assert!(!instance.refresh(&mut instance.open(), now).await.expect("nothing to do but that"));
    assert_eq!(instance.issuer.records(RECORD).expect("an answer"), 0);
}

#[tokio::test]
async fn whoever_stops_us_leaves_no_record() {
    let Some(mut instance) = Instance::new().await else { return };
    instance.wait = 3600;
    let (mut identity, now) = (instance.open(), SystemTime::now());
    let is_set = || async { Ok((instance.issuer.records(RECORD)? == 2).then_some(())) };
    tokio::select! {
        refreshed = instance.refresh(&mut identity, now) => panic!("it waits: {refreshed:?}"),
        set = hearth_testkit::until("both records", is_set) => set.expect("they are set"),
    }
    // That was a crash: nobody could do anything. The next start does.
    drop(identity);
    assert_eq!(instance.issuer.records(RECORD).expect("an answer"), 2);
    let mut identity = instance.open();
    let stop = instance.stop.clone();
    let stopped = async {
        hearth_testkit::until("the sweep", || async { Ok((instance.issuer.calls().len() >= 4).then_some(())) }).await?;
        hearth_testkit::until("both records", is_set).await?;
        stop.cancel();
        Ok::<_, anyhow::Error>(())
    };
    let (refreshed, stopped) = tokio::join!(instance.refresh(&mut identity, now), stopped);
    stopped.expect("it was at work");
    assert!(!refreshed.expect("no failure of anybody"));
    assert_eq!(instance.issuer.records(RECORD).expect("an answer"), 0);
    assert!(!instance.files().failure().exists() && !instance.files().records().exists());
}

#[tokio::test]
async fn what_is_not_there_is_told_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |hook: &str, root: Option<PathBuf>| {
        let options = Options {
            domain: Some(HOST.to_owned()),
            acme_contact: Some("ada@example.com".to_owned()),
            acme_hook: Some(hook.into()),
            acme_root: root,
            ..Options::default()
        };
        let settings = Settings::settle(options, Options::default(), &Surroundings::here()).expect("valid");
        let opened = Identity::open(&settings, &Layout::new(folder.path()), &domain());
        format!("{:#}", opened.err().expect("something is missing"))
    };
    assert!(open("/no/such/hook", None).contains("--acme-hook /no/such/hook"));
    let root = folder.path().join("root.pem");
    assert!(open("/bin/true", Some(root.clone())).contains("--acme-root"));
    fs::write(&root, "nothing").expect("writes");
    let error = open("/bin/true", Some(root));
    assert!(error.contains("there is no certificate in it"), "{error}");
}
