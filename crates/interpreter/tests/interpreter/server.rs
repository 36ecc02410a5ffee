//! The server under test, and its clients.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Timeout of every operation without a limit of its own. No test asserts that an operation is faster.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Kernel whose code is a script of its messages.
const FAKE_KERNEL: &str = include_str!("fake_kernel.py");

/// A running server, killed when dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    pub(crate) folder: TempDir,
    arguments: Vec<String>,
}

/// Reply of a route without a stream.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the environment with the kernels, or prints the reason that a test is skipped.
fn environment() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kernels/python");
    if path.join("bin/python").exists() {
        return Some(path.canonicalize().expect("it exists"));
    }
    eprintln!("skipped: no language kernels, which `cargo xtask kernels` installs");
    None
}

impl Server {
    /// Starts a server with the real kernels and the fake one.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a server with further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Option<Self> {
        let environment = environment()?;
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["home", "elsewhere"] {
            fs::create_dir(folder.path().join(name)).expect("created");
        }
        let fake = folder.path().join("kernels/fake");
        fs::create_dir_all(&fake).expect("created");
        let script = fake.join("fake_kernel.py");
        fs::write(&script, FAKE_KERNEL).expect("written");
        let python = environment.join("bin/python");
        let spec =
            json!({ "argv": [&python, &script, "{connection_file}"], "display_name": "fake", "language": "fake" });
        fs::write(fake.join("kernel.json"), spec.to_string()).expect("written");
        // Python by another name, on Unix sockets.
        let science = folder.path().join("kernels/science");
        fs::create_dir_all(&science).expect("created");
        let spec = json!({
            "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "science",
            "language": "python",
            "metadata": { "hearth": { "transport": "ipc" } },
        });
        fs::write(science.join("kernel.json"), spec.to_string()).expect("written");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let kernels = environment.join("share/jupyter").display().to_string();
        let mut all: Vec<String> = ["--address", "127.0.0.1", "--envd", "http://127.0.0.1:1"].map(str::to_owned).into();
        for (name, value) in [
            ("--kernels", kernels),
            ("--kernels", at("")),
            ("--home", at("home")),
            ("--runtime-dir", at("run")),
            ("--warm-up-dir", at("warm-up")),
            ("--generation", at("generation")),
        ] {
            all.extend([name.to_owned(), value]);
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let mut server = Self { child: spawn(&all, 0, folder.path()), port: 0, folder, arguments: all };
        server.listen().await;
        Some(server)
    }

    /// Starts the process on a free port and waits until it is ready.
    async fn listen(&mut self) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            self.kill();
            // Another program may take the port first; then the server exits, and the next port is tried.
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            self.port = free.local_addr().expect("bound").port();
            drop(free);
            self.child = spawn(&self.arguments, self.port, self.folder.path());
            while self.child.try_wait().expect("poll the server").is_none() {
                if TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                    assert_eq!(self.get("/health").await.text, "\"OK\"");
                    return;
                }
                assert!(Instant::now() < deadline, "the server does not listen");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the server and starts the next one.
    pub(crate) async fn replace(&mut self) {
        self.listen().await;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the server in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("the server listens");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        sender
    }

    pub(crate) async fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).expect("valid");
        let exchange = async {
            let response = self.connect().await.send_request(request).await.expect("a response");
            let (parts, body) = response.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let text = String::from_utf8_lossy(&body).into_owned();
            Reply { status: parts.status, headers: parts.headers, text }
        };
        timeout(TEST_TIMEOUT, exchange).await.expect("in time")
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.request(Method::POST, path, &[("content-type", "application/json")], &body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.request(Method::DELETE, path, &[], "").await
    }

    /// Creates a context and returns its id.
    pub(crate) async fn create(&self, body: Value) -> String {
        let reply = self.post("/contexts", &body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Starts an execution.
    pub(crate) async fn open(&self, body: &Value) -> Execution {
        self.open_with(body, &[]).await
    }

    pub(crate) async fn open_with(&self, body: &Value, headers: &[(&str, &str)]) -> Execution {
        let mut request = Request::post("/execute").header("host", "localhost");
        request = request.header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_string())).expect("valid");
        let mut sender = self.connect().await;
        let response = timeout(TEST_TIMEOUT, sender.send_request(request)).await.expect("in time").expect("a response");
        assert_eq!(response.status(), 200);
        Execution { _sender: sender, body: response.into_body(), unread: Vec::new() }
    }

    /// Runs an execution to its end.
    pub(crate) async fn execute(&self, body: Value) -> Vec<Value> {
        self.open(&body).await.rest().await
    }

    /// Runs Python in the default context.
    pub(crate) async fn python(&self, code: &str) -> Vec<Value> {
        self.execute(json!({ "code": code })).await
    }

    /// Runs a script of the fake kernel.
    pub(crate) async fn fake(&self, script: &str) -> Vec<Value> {
        self.execute(json!({ "code": script, "language": "fake" })).await
    }
}

fn spawn(arguments: &[String], port: u16, folder: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-interpreter"));
    command.args(arguments).arg("--port").arg(port.to_string()).stdin(Stdio::null());
    command.env("HOME", folder).env("IPYTHONDIR", folder.join("ipython"));
    command.spawn().expect("the server starts")
}

/// Stream of an execution. Dropping it disconnects the client.
pub(crate) struct Execution {
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    unread: Vec<u8>,
}

impl Execution {
    /// Returns the next event; none at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.unread.drain(..=end).collect();
                assert!(line[..end].iter().all(|byte| (b' '..=b'~').contains(byte)), "only ASCII in {line:?}");
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            let frame = timeout(TEST_TIMEOUT, self.body.frame()).await.expect("in time");
            match frame {
                Some(frame) => self.unread.extend_from_slice(&frame.expect("sound").into_data().unwrap_or_default()),
                None => {
                    assert!(self.unread.is_empty(), "the stream ends in a line");
                    return None;
                }
            }
        }
    }

    /// Returns the next event of a type; panics at the end of the stream.
    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await.expect("the event comes before the end");
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// Returns all further events except keepalives; the last one must be the end.
    pub(crate) async fn rest(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            if event["type"] != "keepalive" {
                events.push(event);
            }
        }
        assert_eq!(events.pop(), Some(json!({ "type": "end_of_execution" })), "{events:?}");
        assert!(events.iter().all(|event| event["type"] != "end_of_execution"), "one end");
        events
    }
}

/// Returns the text of the only result.
pub(crate) fn text(events: &[Value]) -> &str {
    let mut results = events.iter().filter(|event| event["type"] == "result");
    let text = results.next().and_then(|result| result["text"].as_str());
    text.unwrap_or_else(|| panic!("a result in {events:?}"))
}

/// Returns all text of a type of event.
pub(crate) fn output(events: &[Value], kind: &str) -> String {
    events.iter().filter(|event| event["type"] == kind).filter_map(|event| event["text"].as_str()).collect()
}

/// Returns name and value of the errors.
pub(crate) fn errors(events: &[Value]) -> Vec<(&str, &str)> {
    let errors = events.iter().filter(|event| event["type"] == "error");
    errors.map(|error| (error["name"].as_str().expect("a name"), error["value"].as_str().expect("a value"))).collect()
}

/// Waits until a condition holds.
pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
