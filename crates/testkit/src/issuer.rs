//! An issuer of certificates by ACME: Let's Encrypt's Pebble, with a name server whose records it goes by.
//!
//! Everything is on loopback, and random each time: its authority, its accounts, its addresses.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_host::process::find_program;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::until;

/// Somebody else may take an address between our choice and the server's.
const TRIES: usize = 5;
/// The name server is on this machine and has nothing to look up.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(5);

/// The issuer and its name server. Ended when dropped.
#[derive(Debug)]
pub struct Issuer {
    folder: tempfile::TempDir,
    addresses: Addresses,
    pebble: Option<Server>,
    _names: Server,
}

/// Where everything listens.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    directory: SocketAddr,
    management: SocketAddr,
    names: SocketAddr,
    records: SocketAddr,
}

impl Addresses {
    async fn choose() -> Result<Self> {
        // All at once, so that they differ.
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (a, b, c, d) = tokio::try_join!(free(), free(), free(), free())?;
        Ok(Self {
            directory: a.local_addr()?,
            management: b.local_addr()?,
            names: c.local_addr()?,
            records: d.local_addr()?,
        })
    }
}

impl Issuer {
    /// Starts one; `None`, and a line that says so, where Debian's package `pebble` is not installed.
    pub async fn start() -> Result<Option<Self>> {
        // Not by the name `pebble`, which other programs have as well.
        if find_program("pebble-challtestsrv".as_ref()).is_none() {
            println!("skipped: there is no pebble here (scripts/packages.sh test)");
            return Ok(None);
        }
        for _ in 1..TRIES {
            let (folder, addresses) = (tempfile::tempdir()?, Addresses::choose().await?);
            if let Ok(issuer) = Self::start_at(folder, addresses).await {
                return Ok(Some(issuer));
            }
        }
        let (folder, addresses) = (tempfile::tempdir()?, Addresses::choose().await?);
        Self::start_at(folder, addresses).await.map(Some)
    }

    async fn start_at(folder: tempfile::TempDir, addresses: Addresses) -> Result<Self> {
        let path = |name: &str| folder.path().join(name);
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        fs::write(path("root.pem"), own.cert.pem())?;
        fs::write(path("key.pem"), own.signing_key.serialize_pem())?;
        let config = json!({ "pebble": {
            "listenAddress": addresses.directory.to_string(),
            "managementListenAddress": addresses.management.to_string(),
            "certificate": path("root.pem"),
            "privateKey": path("key.pem"),
            "httpPort": 5002,
            "tlsPort": 5001,
        }});
        fs::write(path("pebble.json"), config.to_string())?;
        // A hook as operators have one. The name server only knows how to forget all records of a name.
        let hook = format!(
            "#!/bin/sh\necho \"$1 $2 $3\" >>{calls}\ncase $1 in\n\
             set) way=set-txt ;;\nremove) way=clear-txt ;;\nesac\n\
             exec python3 - \"$way\" \"$2\" \"$3\" <<'END'\n\
             import json, sys, urllib.request\n\
             body = json.dumps({{'host': sys.argv[2] + '.', 'value': sys.argv[3]}}).encode()\n\
             urllib.request.urlopen('http://{records}/' + sys.argv[1], body, 10)\n\
             END\n",
            calls = path("calls").display(),
            records = addresses.records,
        );
        write_program(&path("hook"), &hook)?;
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        names.args(["-dns01", &addresses.names.to_string(), "-management", &addresses.records.to_string()]);
        let names = Server::start(names, &path("names.log"), addresses.records).await?;
        let mut issuer = Self { folder, addresses, pebble: None, _names: names };
        issuer.resume().await?;
        Ok(issuer)
    }

    /// It is gone. What it knows is lost with it.
    pub fn stop(&mut self) {
        self.pebble = None;
    }

    /// It is there again, as another one at the same address, without accounts and with a new authority.
    pub async fn resume(&mut self) -> Result<()> {
        // A passing connection of somebody else may have the port for a moment.
        for _ in 1..TRIES {
            if self.try_resume().await.is_ok() {
                return Ok(());
            }
        }
        self.try_resume().await
    }

    async fn try_resume(&mut self) -> Result<()> {
        let mut command = Command::new("pebble");
        command.arg("-config").arg(self.folder.path().join("pebble.json"));
        command.args(["-dnsserver", &self.addresses.names.to_string()]);
        // At full speed, and the same each time: it looks at once, at every order anew, and refuses no nonce for practice.
        command.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0"), ("PEBBLE_WFE_NONCEREJECT", "0")]);
        let log = self.folder.path().join("pebble.log");
        self.pebble = Some(Server::start(command, &log, self.addresses.directory).await?);
        Ok(())
    }

    /// For `--acme-directory`.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.addresses.directory)
    }

    /// For `--acme-root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// For `--acme-hook`.
    #[must_use]
    pub fn hook(&self) -> PathBuf {
        self.folder.path().join("hook")
    }

    /// Another hook: a script of the shell, which finds the working one in `$HOOK`.
    pub fn hook_that(&self, name: &str, script: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        write_program(&path, &format!("#!/bin/sh\nHOOK={}\n{script}\n", self.hook().display()))?;
        Ok(path)
    }

    /// How the working hook was called, in order: `set` or `remove`, name, value.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The authority that its certificates are of, as PEM.
    pub async fn authority(&self) -> Result<String> {
        let (root, management) = (self.root(), self.addresses.management);
        let mut fetch = tokio::process::Command::new("python3");
        fetch.args(["-c", FETCH, &format!("https://{management}/roots/0")]).arg(root).kill_on_drop(true);
        let output = fetch.output().await.context("starting python3")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// How many TXT records the name server has of this name.
    pub fn records(&self, name: &str) -> Result<u16> {
        // RFC 1035, 4.1: one question, recursion desired.
        let mut question = vec![0x48, 0x45, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len())?);
            question.extend_from_slice(label.as_bytes());
        }
        question.extend_from_slice(&[0, 0, 16, 0, 1]);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(LOOKUP_PATIENCE))?;
        socket.send_to(&question, self.addresses.names)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        ensure!(length >= 12 && answer[..2] == question[..2], "no answer to this question");
        Ok(u16::from_be_bytes([answer[6], answer[7]]))
    }
}

/// The management of Pebble is HTTPS as well.
const FETCH: &str = "import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10, context=context).read().decode())";

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A process that ends with this, or with the thread that started it.
#[derive(Debug)]
struct Server(Child);

impl Server {
    /// Returns when it listens.
    async fn start(command: Command, log: &Path, address: SocketAddr) -> Result<Self> {
        let output = fs::File::create(log)?;
        let mut with_end = Command::new("setpriv");
        with_end.args(["--pdeathsig=KILL", "--"]).arg(command.get_program()).args(command.get_args());
        with_end.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        with_end.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let server = std::sync::Mutex::new(Self(with_end.spawn().context("starting setpriv")?));
        until("a server to listen", || async {
            let ended = server.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.0.try_wait()?;
            let said = || fs::read_to_string(log).unwrap_or_default();
            ensure!(ended.is_none(), "{:?} ended: {}", command.get_program(), said());
            Ok(TcpStream::connect(address).await.ok())
        })
        .await?;
        Ok(server.into_inner()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
