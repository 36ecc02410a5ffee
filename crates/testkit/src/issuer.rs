//! ACME server for tests: Let's Encrypt's Pebble, with a name server that answers its DNS-01 queries.
//!
//! Both listen on loopback. Each start has a new certificate authority, new accounts and new addresses.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hearth_host::process::find_program;
use serde_json::json;

use crate::until;

/// Start attempts: another process may take a chosen port before the server binds it.
const TRIES: usize = 5;
/// Ports to choose from, below those that the kernel assigns (ip(7), `ip_local_port_range`).
///
/// No connection of another process has one of them as its local port.
const PORTS: Range<u16> = 12_000..32_000;
/// Limit for a DNS reply. The name server runs on this machine and forwards nothing.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(2);
/// Number of DNS queries until one must have a reply: a packet may be lost on a busy machine.
const LOOKUPS: usize = 5;

/// Pebble and its name server. Both are killed when this is dropped.
#[derive(Debug)]
pub struct Issuer {
    folder: tempfile::TempDir,
    addresses: Addresses,
    pebble: Option<Server>,
    _names: Server,
}

/// Listen addresses of Pebble and of the name server.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    directory: SocketAddr,
    management: SocketAddr,
    /// DNS.
    names: SocketAddr,
    /// HTTP interface of the name server to add and remove records.
    records: SocketAddr,
}

impl Addresses {
    fn choose() -> Result<Self> {
        // All are bound at the same time, so that they differ.
        let [a, b, c, d] = [Port::choose()?, Port::choose()?, Port::choose()?, Port::choose()?];
        Ok(Self { directory: a.address, management: b.address, names: c.address, records: d.address })
    }
}

/// Free port, bound until this is dropped.
struct Port {
    address: SocketAddr,
    _stream: TcpListener,
    _datagrams: UdpSocket,
}

impl Port {
    /// Binds a random port for TCP and UDP.
    fn choose() -> Result<Self> {
        const ATTEMPTS: usize = 100;
        for _ in 0..ATTEMPTS {
            let mut random = [0; 2];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let port = PORTS.start + u16::from_ne_bytes(random) % (PORTS.end - PORTS.start);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if let (Ok(stream), Ok(datagrams)) = (TcpListener::bind(address), UdpSocket::bind(address)) {
                return Ok(Self { address, _stream: stream, _datagrams: datagrams });
            }
        }
        bail!("no free port between {} and {}", PORTS.start, PORTS.end)
    }
}

impl Issuer {
    /// Starts an issuer. Prints a line and returns `None` if Debian's package `pebble` is not installed.
    pub async fn start() -> Result<Option<Self>> {
        // Other programs are called `pebble` as well, so this looks for the name server of the package.
        if find_program("pebble-challtestsrv".as_ref()).is_none() {
            println!("skipped: pebble is not installed (scripts/packages.sh test)");
            return Ok(None);
        }
        for _ in 1..TRIES {
            let (folder, addresses) = (tempfile::tempdir()?, Addresses::choose()?);
            if let Ok(issuer) = Self::start_at(folder, addresses).await {
                return Ok(Some(issuer));
            }
        }
        let (folder, addresses) = (tempfile::tempdir()?, Addresses::choose()?);
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
        // A hook as operators use it. The name server can only remove all records of a name together.
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
        issuer.restart().await?;
        Ok(issuer)
    }

    /// Stops Pebble. Its accounts, orders and authority are lost. The name server continues.
    pub fn stop(&mut self) {
        self.pebble = None;
    }

    /// Starts Pebble again at the same address, without accounts and with a new authority.
    pub async fn restart(&mut self) -> Result<()> {
        // A short connection of another process may occupy the port temporarily.
        for _ in 1..TRIES {
            if self.try_restart().await.is_ok() {
                return Ok(());
            }
        }
        self.try_restart().await
    }

    async fn try_restart(&mut self) -> Result<()> {
        let mut command = Command::new("pebble");
        command.arg("-config").arg(self.folder.path().join("pebble.json"));
        command.args(["-dnsserver", &self.addresses.names.to_string()]);
        // Fast and deterministic: validates without a delay, validates every order again, and rejects no nonces at random.
        command.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0"), ("PEBBLE_WFE_NONCEREJECT", "0")]);
        let log = self.folder.path().join("pebble.log");
        self.pebble = Some(Server::start(command, &log, self.addresses.directory).await?);
        Ok(())
    }

    /// Returns the value for `--acme-directory`.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.addresses.directory)
    }

    /// Returns the value for `--acme-root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// Returns the value for `--acme-hook`.
    #[must_use]
    pub fn hook(&self) -> PathBuf {
        self.folder.path().join("hook")
    }

    /// Writes another hook, a shell script, and returns its path. The script has the path of the working hook in `$HOOK`.
    pub fn custom_hook(&self, name: &str, script: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        write_program(&path, &format!("#!/bin/sh\nHOOK={}\n{script}\n", self.hook().display()))?;
        Ok(path)
    }

    /// Returns the calls of the working hook, in order: `set` or `remove`, name, value.
    #[must_use]
    pub fn hook_calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Fetches the certificate of the current authority, as PEM.
    pub async fn authority(&self) -> Result<String> {
        let (root, management) = (self.root(), self.addresses.management);
        let mut fetch = tokio::process::Command::new("python3");
        fetch.args(["-c", FETCH, &format!("https://{management}/roots/0")]).arg(root).kill_on_drop(true);
        let output = fetch.output().await.context("starting python3")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Counts the TXT records of a name, by a query to the name server.
    pub fn txt_record_count(&self, name: &str) -> Result<u16> {
        // RFC 1035, 4.1: one question, recursion desired.
        let mut question = vec![0x48, 0x45, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len())?);
            question.extend_from_slice(label.as_bytes());
        }
        question.extend_from_slice(&[0, 0, 16, 0, 1]);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(self.addresses.names)?;
        socket.set_read_timeout(Some(LOOKUP_PATIENCE))?;
        let mut reply = [0; 512];
        for _ in 0..LOOKUPS {
            socket.send(&question)?;
            match socket.recv(&mut reply) {
                Ok(length) if length >= 12 && reply[..2] == question[..2] => {
                    return Ok(u16::from_be_bytes([reply[6], reply[7]]));
                }
                Ok(length) => bail!("a DNS reply of {length} bytes does not match the query"),
                // A receive with a time limit is not restarted after a signal, such as that of a child's exit (signal(7)).
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("querying the name server"),
            }
        }
        bail!("the name server did not reply to {LOOKUPS} queries within {LOOKUP_PATIENCE:?} each")
    }
}

/// Python program that prints the body of a URL. Pebble's management interface is HTTPS with a certificate of its own.
const FETCH: &str = "import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10, context=context).read().decode())";

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Process that is killed when this is dropped or when the thread that started it exits.
#[derive(Debug)]
struct Server(Child);

impl Server {
    /// Starts the process and waits until it listens.
    async fn start(command: Command, log: &Path, address: SocketAddr) -> Result<Self> {
        let output = fs::File::create(log)?;
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig=KILL", "--"]).arg(command.get_program()).args(command.get_args());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let server = std::sync::Mutex::new(Self(wrapped.spawn().context("starting setpriv")?));
        until("a server to listen", || async {
            let exited = server.lock().map_err(|_| anyhow::anyhow!("poisoned lock"))?.0.try_wait()?;
            let output = || fs::read_to_string(log).unwrap_or_default();
            ensure!(exited.is_none(), "{:?} exited: {}", command.get_program(), output());
            let id = server.lock().map_err(|_| anyhow::anyhow!("poisoned lock"))?.0.id();
            Ok(listens(id, address)?.then_some(()))
        })
        .await?;
        Ok(server.into_inner()?)
    }
}

/// Returns true if the process listens on the TCP address.
///
/// A connection would prove less: another process may have taken the port, and a connection to a port of the range that
/// the kernel assigns may reach itself (simultaneous open, RFC 9293, 3.5).
fn listens(process_id: u32, address: SocketAddr) -> Result<bool> {
    let process = procfs::process::Process::new(i32::try_from(process_id)?)?;
    let sockets = process.tcp()?.into_iter().chain(process.tcp6()?);
    let listening = sockets.filter(|socket| socket.state == procfs::net::TcpState::Listen);
    let inodes: Vec<u64> =
        listening.filter(|socket| socket.local_address.port() == address.port()).map(|socket| socket.inode).collect();
    Ok(process.fd()?.flatten().any(
        |descriptor| matches!(descriptor.target, procfs::process::FDTarget::Socket(inode) if inodes.contains(&inode)),
    ))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
