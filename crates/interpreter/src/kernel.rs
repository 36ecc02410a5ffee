//! One kernel: its process, its sockets, and its directory.
//!
//! A new kernel receives requests for its protocol until it has replied on both of its sockets; only then its output
//! is known to arrive. Dropping a kernel kills its process group.

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Serialize;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::content::{self, Activity};
use crate::kernelspec::{Interrupt, KernelSpec, Transport};
use crate::launch;
use crate::message::{self, Kind, Message, Signer};
use crate::zmtp::{Connection, Endpoint, Multipart, SocketKind};

/// Time in which a kernel must be reachable. Long, because kernels import many files from a cold disk.
const START_MAX: Duration = Duration::from_secs(90);
/// Pause between attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Time after which a request whose status was missed is repeated: a subscription takes effect late.
const ASK_AGAIN: Duration = Duration::from_millis(30);
/// Time in which a kernel's socket must take a request. Sockets have threads of their own, so a busy kernel does.
const SEND_MAX: Duration = Duration::from_secs(10);
/// Attempts to start a kernel on free ports, which another program may take in between.
const PORT_ATTEMPTS: usize = 3;
/// Bytes of a kernel's standard error that are kept for error messages.
const STDERR_BYTES_MAX: usize = 2048;
/// Sockets of a kernel, in the order of a connection file.
const PORTS: usize = 5;

/// Error of a start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("preparing {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("starting the process: {0}")]
    Spawn(io::Error),
    #[error("the kernel exited ({status}){}", after_colon(stderr))]
    Exited { status: ExitStatus, stderr: String },
    #[error("the kernel did not answer within {} s{}", START_MAX.as_secs(), after_colon(stderr))]
    Silent { stderr: String },
}

fn after_colon(text: &str) -> String {
    if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
}

/// Parameters of a start.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) spec: KernelSpec,
    /// Directory for this kernel only.
    pub(crate) folder: PathBuf,
    pub(crate) directory: PathBuf,
}

/// Running kernel.
pub(crate) struct Kernel {
    process: Process,
    shell: Connection,
    output: Connection,
    control: Connection,
    signer: Signer,
    session: String,
    requests: u64,
    interrupt: Interrupt,
    _folder: Folder,
}

/// Process group that is killed on drop.
struct Process {
    child: Child,
    group: Option<Pid>,
    stderr: Tail,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once the process is reaped, its number may belong to another one.
        if self.child.id().is_some() {
            self.signal(Signal::KILL);
        }
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // The group may have ended.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Waits for the exit, and kills what the kernel started in its group. Cancel safe.
    async fn exited(&mut self) -> ExitStatus {
        match self.child.wait().await {
            Ok(status) => {
                self.signal(Signal::KILL);
                status
            }
            // A process that cannot be waited for is not there.
            Err(_) => ExitStatus::default(),
        }
    }
}

/// Directory that is removed on drop.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // The directory may be in use by what the kernel left; the next start removes it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Last bytes of a kernel's standard error.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// Reads a stream to its end.
    async fn follow(self, mut stream: ChildStderr) {
        let mut chunk = [0; 1024];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            tail.extend(&chunk[..read]);
            let surplus = tail.len().saturating_sub(STDERR_BYTES_MAX);
            tail.drain(..surplus);
        }
    }

    fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&tail.iter().copied().collect::<Vec<_>>()).into_owned()
    }
}

impl Kernel {
    /// Starts a kernel and waits until it answers. Cancel safe: a cancelled start kills the process.
    pub(crate) async fn start(launch: &Launch) -> Result<Self, StartError> {
        let mut attempt = 1;
        loop {
            match Self::start_once(launch).await {
                Err(StartError::Exited { .. })
                    if attempt < PORT_ATTEMPTS && launch.spec.transport == Transport::Tcp =>
                {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn start_once(launch: &Launch) -> Result<Self, StartError> {
        let Launch { spec, folder, directory } = launch;
        let in_folder = |source| StartError::Folder { path: folder.clone(), source };
        let prepared = prepare(folder, spec.transport).map_err(in_folder)?;
        let argv = spec.command(&prepared.file);
        let mut command = launch::command(&argv);
        command.envs(&spec.env);
        let directory = if directory.is_dir() { directory.as_path() } else { Path::new("/") };
        let mut child = command.current_dir(directory).spawn().map_err(StartError::Spawn)?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let stderr = Tail::default();
        if let Some(stream) = child.stderr.take() {
            tokio::spawn(stderr.clone().follow(stream));
        }
        let mut process = Process { child, group, stderr };
        let reached = tokio::select! {
            biased;
            status = process.exited() => {
                return Err(StartError::Exited { status, stderr: process.stderr.text() });
            }
            reached = timeout(START_MAX, reach(&prepared.endpoints, &prepared.signer)) => reached,
        };
        let Ok((shell, output, control)) = reached else {
            return Err(StartError::Silent { stderr: process.stderr.text() });
        };
        let Prepared { signer, folder, .. } = prepared;
        let session = Uuid::new_v4().to_string();
        Ok(Self {
            process,
            shell,
            output,
            control,
            signer,
            session,
            requests: 0,
            interrupt: spec.interrupt,
            _folder: folder,
        })
    }

    /// Sends a request on the shell socket and returns its id.
    pub(crate) async fn request(&mut self, kind: &str, content: &impl Serialize) -> io::Result<String> {
        self.requests += 1;
        let id = format!("{}-{}", self.session, self.requests);
        let frames = message::request(&self.signer, &self.session, &id, kind, content);
        timeout(SEND_MAX, self.shell.send(&frames)).await.map_err(io::Error::from)??;
        Ok(id)
    }

    /// Parses a message; none if it is malformed.
    pub(crate) fn parse(&self, message: Multipart) -> Option<Message> {
        Message::parse(message, &self.signer).ok()
    }

    /// Waits for the exit. Cancel safe.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        self.process.exited().await
    }

    /// Returns the end of what the process wrote to its standard error.
    pub(crate) fn stderr(&self) -> String {
        self.process.stderr.text()
    }

    /// Interrupts the running request, with the processes that the kernel started in its group.
    pub(crate) async fn interrupt(&mut self) {
        match self.interrupt {
            Interrupt::Signal => self.process.signal(Signal::INT),
            Interrupt::Message => {
                let id = format!("{}-interrupt", self.session);
                let frames = message::request(&self.signer, &self.session, &id, "interrupt_request", &json!({}));
                // A kernel that does not take the message is killed by the deadline of the interrupt.
                let _ = timeout(SEND_MAX, self.control.send(&frames)).await;
            }
        }
    }

    /// Waits for the next message, or the exit. Output is received only if `with_output`. Cancel safe.
    ///
    /// Messages come first: a kernel that exited may have sent some.
    pub(crate) async fn next(&mut self, with_output: bool) -> KernelEvent {
        let received = tokio::select! {
            biased;
            message = self.output.receive(), if with_output => message.map(KernelEvent::Output),
            message = self.shell.receive() => message.map(KernelEvent::Reply),
            message = self.control.receive() => message.map(|_| KernelEvent::Ignored),
            _ = self.process.exited() => return KernelEvent::Exited,
        };
        received.unwrap_or(KernelEvent::Lost)
    }

    /// Kills the process group and waits for the exit of the kernel.
    pub(crate) async fn kill(mut self) {
        self.process.signal(Signal::KILL);
        self.process.exited().await;
    }
}

/// Event of a kernel.
pub(crate) enum KernelEvent {
    /// Message for everyone.
    Output(Multipart),
    /// Message for the sender of a request.
    Reply(Multipart),
    Ignored,
    /// A connection broke, which a kernel that exits causes as well.
    Lost,
    Exited,
}

/// Prepared directory of a kernel.
struct Prepared {
    folder: Folder,
    /// Connection file.
    file: PathBuf,
    endpoints: Endpoints,
    signer: Signer,
}

/// Sockets that the server uses.
struct Endpoints {
    shell: Endpoint,
    output: Endpoint,
    control: Endpoint,
}

/// Creates the directory and the connection file, readable only by this user.
fn prepare(folder: &Path, transport: Transport) -> io::Result<Prepared> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    let folder = Folder(folder.to_owned());
    let (address, ports, key) = match transport {
        Transport::Ipc => (folder.0.join("s").display().to_string(), [1, 2, 3, 4, 5], String::new()),
        Transport::Tcp => (Ipv4Addr::LOCALHOST.to_string(), free_ports()?, Uuid::new_v4().to_string()),
    };
    let [shell, output, stdin, control, heartbeat] = ports;
    let connection = json!({
        "transport": match transport { Transport::Ipc => "ipc", Transport::Tcp => "tcp" },
        "ip": address,
        "shell_port": shell,
        "iopub_port": output,
        "stdin_port": stdin,
        "control_port": control,
        "hb_port": heartbeat,
        "key": key,
        "signature_scheme": "hmac-sha256",
        "kernel_name": "",
    });
    let file = folder.0.join("connection.json");
    let mut options = fs::OpenOptions::new();
    io::Write::write_all(
        &mut options.write(true).create_new(true).mode(0o600).open(&file)?,
        connection.to_string().as_bytes(),
    )?;
    let endpoint = |port: u16| match transport {
        Transport::Ipc => Endpoint::Unix(PathBuf::from(format!("{address}-{port}"))),
        Transport::Tcp => Endpoint::Loopback(port),
    };
    let endpoints = Endpoints { shell: endpoint(shell), output: endpoint(output), control: endpoint(control) };
    Ok(Prepared { folder, file, endpoints, signer: Signer::new(&key) })
}

fn free_ports() -> io::Result<[u16; PORTS]> {
    // All are bound before any is released, so they differ.
    let mut listeners = Vec::with_capacity(PORTS);
    let mut ports = [0; PORTS];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// Connects to the sockets, and waits until the kernel answers on both.
async fn reach(endpoints: &Endpoints, signer: &Signer) -> (Connection, Connection, Connection) {
    let shell = connect(&endpoints.shell, SocketKind::Dealer).await;
    let output = connect(&endpoints.output, SocketKind::Subscriber).await;
    let control = connect(&endpoints.control, SocketKind::Dealer).await;
    let mut reached = (shell, output, control);
    loop {
        match ask(&mut reached.0, &mut reached.1, signer).await {
            Ok(()) => return reached,
            // The process may be exiting, which ends the start.
            Err(_) => {
                sleep(CONNECT_PAUSE).await;
                reached.0 = connect(&endpoints.shell, SocketKind::Dealer).await;
                reached.1 = connect(&endpoints.output, SocketKind::Subscriber).await;
            }
        }
    }
}

async fn connect(endpoint: &Endpoint, kind: SocketKind) -> Connection {
    loop {
        match timeout(SEND_MAX, Connection::open(endpoint, kind)).await {
            Ok(Ok(connection)) => return connection,
            _ => sleep(CONNECT_PAUSE).await,
        }
    }
}

/// Requests the kernel's protocol until the reply and its status messages arrive, then reads until it is idle.
async fn ask(shell: &mut Connection, output: &mut Connection, signer: &Signer) -> io::Result<()> {
    let session = Uuid::new_v4().to_string();
    let mut asked = 0_u32;
    let (mut replies, mut idle_reports) = (0_u32, 0_u32);
    let mut ask_at = Instant::now();
    // Requests without a status were sent before the subscription took effect; all of them have a reply.
    while replies < asked || idle_reports == 0 {
        tokio::select! {
            biased;
            message = shell.receive() => {
                let reply = Message::parse(message?, signer).ok();
                replies += u32::from(reply.is_some_and(|reply| is_own(&reply, &session) && reply.kind == Kind::KernelInfoReply));
            }
            message = output.receive() => {
                let status = Message::parse(message?, signer).ok().filter(|status| is_own(status, &session));
                let status = status.filter(|status| status.kind == Kind::Status);
                let is_idle = status.is_some_and(|status| content::activity(&status.content) == Some(Activity::Idle));
                idle_reports += u32::from(is_idle);
            }
            // While a reply is due, the kernel is only slow: more requests would not make it faster.
            () = tokio::time::sleep_until(ask_at), if replies == asked && idle_reports == 0 => {
                asked += 1;
                ask_at = Instant::now() + ASK_AGAIN;
                let id = format!("{session}-{asked}");
                let request = message::request(signer, &session, &id, "kernel_info_request", &json!({}));
                timeout(SEND_MAX, shell.send(&request)).await.map_err(io::Error::from)??;
            }
        }
    }
    Ok(())
}

fn is_own(message: &Message, session: &str) -> bool {
    message.parent.starts_with(session)
}
