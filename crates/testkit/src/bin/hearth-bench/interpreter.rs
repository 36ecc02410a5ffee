//! The code interpreter: first and later executions, and the cost of its server in the guest.
//!
//! The bounds are measured in guests restored by the bare driver from the same artifacts: an execution over the kernel's
//! own ZeroMQ sockets, by a Python program in the guest that prints how long it took.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hearth_sdk::{NewSandbox, Sandbox};
use hearth_testkit::{Instance, PreparedDataDir};
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::bare::{BareDriver, Vm};
use crate::density::cpu_percent;
use crate::edge::address_of;
use crate::report::{Goal, Report};
use crate::statistics::{Percentiles, milliseconds};
use crate::{BASE, Rounds};

/// Template with the code interpreter, and those that the section's instance prepares.
const TEMPLATE: &str = "code-interpreter-v1";
pub(crate) const PREPARED: &str = "base,code-interpreter-v1";
/// Port of the code interpreter in the guest.
const PORT: u16 = 49_999;
/// Number of the first VM of this section; the numbers of other sections are lower.
const FIRST_VM: usize = 20_000;
/// Sandboxes whose processor time is measured.
const IDLE_SANDBOXES: usize = 3;
/// Time without requests after which sandboxes count as idle.
const SETTLE: Duration = Duration::from_secs(5);
/// Size of the output after which the server's memory is measured.
const OUTPUT_MIB: usize = 100;
/// Goal for the memory of the idle server.
const IDLE_MIB_MAX: f64 = 10.0;
/// Goal for the growth of the server's memory after a large output.
///
/// A message of the output is 1 MiB. The server may hold it several times, and the next ones in buffers of its sockets.
const GROWTH_MIB_MAX: f64 = 16.0;
/// Goal for processor time: measurements of a mostly idle guest vary by a tenth.
const IDLE_TIMES_BASE_MAX: f64 = 1.1;

/// Python program that executes `1+1` on the warm Python kernel, and prints the durations in nanoseconds.
///
/// An execution ends when both the reply and the status `idle` have arrived, as for the server.
const RAW: &str = r#"
import glob, hashlib, hmac, json, sys, time, uuid, zmq
def words(path):
    try: return open(path).read().split("\0")
    except OSError: return []
kernels = [argv for argv in map(words, glob.glob("/proc/[0-9]*/cmdline")) if "python" in argv[0]]
[path] = {word for argv in kernels for word in argv if word.endswith("connection.json")}
file = json.load(open(path))
def socket(kind, name):
    made = zmq.Context.instance().socket(kind)
    separator = "-" if file["transport"] == "ipc" else ":"
    made.connect("{}://{}{}{}".format(file["transport"], file["ip"], separator, file[name + "_port"]))
    return made
shell, output = socket(zmq.DEALER, "shell"), socket(zmq.SUB, "iopub")
output.subscribe(b"")
def send(kind, content):
    identifier = uuid.uuid4().hex
    header = {"msg_id": identifier, "session": "raw", "username": "", "date": "2026-01-01T00:00:00Z",
              "msg_type": kind, "version": "5.3"}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    key = file["key"].encode()
    signature = hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode() if key else b""
    shell.send_multipart([b"<IDS|MSG>", signature, *parts])
    return identifier
def receive(socket):
    parts = socket.recv_multipart()
    start = parts.index(b"<IDS|MSG>") + 2
    header, parent, _, content = map(json.loads, parts[start:start + 4])
    return header["msg_type"], parent.get("msg_id"), content
def is_idle(message, identifier):
    kind, parent, content = message
    return kind == "status" and parent == identifier and content["execution_state"] == "idle"
while True:
    identifier = send("kernel_info_request", {})
    receive(shell)
    if output.poll(1000):
        while not is_idle(receive(output), identifier): pass
        break
for _ in range(int(sys.argv[1])):
    begin = time.monotonic_ns()
    identifier = send("execute_request", {"code": "1+1", "silent": False, "store_history": True,
                                          "user_expressions": {}, "allow_stdin": False, "stop_on_error": True})
    results = []
    while not is_idle(message := receive(output), identifier):
        results += [message[2]["data"]["text/plain"]] if message[0] == "execute_result" else []
    receive(shell)
    print(time.monotonic_ns() - begin)
    assert results == ["2"], results
"#;

/// Keep-alive connection to the code interpreter of a sandbox, through the edge.
struct Interpreter {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Interpreter {
    async fn open(instance: &Instance, sandbox: &Sandbox) -> Result<Self> {
        let stream = TcpStream::connect(address_of(instance.sandbox_url())?).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // The task exits when the connection is closed.
        tokio::spawn(connection);
        Ok(Self { sender, host: format!("{PORT}-{}.example.com", sandbox.id()) })
    }

    /// Runs Python code and passes each event to `on_event`. Returns the duration.
    async fn run(&mut self, code: &str, mut on_event: impl FnMut(&Value)) -> Result<Duration> {
        let request = Request::post("/execute")
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(json!({ "code": code }).to_string()))?;
        let start = Instant::now();
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            pending.extend_from_slice(frame?.data_ref().map_or(&[][..], |data| &data[..]));
            ensure!(status.is_success(), "the code interpreter replied with {status}: {}", pending.escape_ascii());
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let event: Value = serde_json::from_slice(&pending[..end])?;
                ensure!(event["type"] != "error", "{code}: {event}");
                on_event(&event);
                pending.drain(..=end);
            }
        }
        Ok(start.elapsed())
    }

    async fn run_one_plus_one(&mut self) -> Result<Duration> {
        let mut results = Vec::new();
        let took = self.run("1+1", |event| results.extend(event["text"].as_str().map(str::to_owned))).await?;
        ensure!(results == ["2"], "1+1 is {results:?}");
        Ok(took)
    }
}

/// Measures the code interpreter with an instance and a bare driver of its own.
pub(crate) async fn measure(report: &mut Report, prepared: &PreparedDataDir, rounds: Rounds) -> Result<()> {
    let bare = BareDriver::open(prepared, TEMPLATE).await?;
    let instance = Instance::start(prepared, &[]).await;
    let measured = match &instance {
        Ok(instance) => measure_with(report, &bare, instance, rounds).await,
        Err(_) => Ok(()),
    };
    bare.close().await;
    instance?.terminate().await?;
    measured
}

async fn measure_with(report: &mut Report, bare: &BareDriver, instance: &Instance, rounds: Rounds) -> Result<()> {
    creates(report, bare, instance, rounds.creates).await?;
    executions(report, bare, instance, rounds.commands).await?;
    server(report, instance).await?;
    idle(report, instance, rounds).await
}

/// Measures from the create request to the first result. The bound is a bare restore and one raw execution.
async fn creates(report: &mut Report, bare: &BareDriver, instance: &Instance, rounds: usize) -> Result<()> {
    let (mut measured, mut bounds) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        bare.wait_for_slots().await;
        let (vm, first_reply) = bare.restore(FIRST_VM + number).await?;
        let raw = raw_executions(&vm, 1).await;
        bare.discard(vm).await;
        bounds.push(first_reply + *raw?.first().context("nothing was executed")?);
        let start = Instant::now();
        let sandbox = instance.client().create(&NewSandbox::of(TEMPLATE)).await?;
        Interpreter::open(instance, &sandbox).await?.run_one_plus_one().await?;
        measured.push(start.elapsed());
        sandbox.kill().await?;
    }
    let (measured, bounds) = (Percentiles::of(measured), Percentiles::of(bounds));
    for (name, measured, bound, goal) in [
        ("create to first `run_code`, p50", measured.p50, bounds.p50, Some(Goal::TimesBound(1.3))),
        ("create to first `run_code`, p95", measured.p95, bounds.p95, None),
    ] {
        report.bounded(name, "ms", milliseconds(measured), milliseconds(bound), goal);
    }
    Ok(())
}

/// Measures later executions. The bound is the raw round trip in a guest.
async fn executions(report: &mut Report, bare: &BareDriver, instance: &Instance, rounds: usize) -> Result<()> {
    let sandbox = instance.client().create(&NewSandbox::of(TEMPLATE)).await?;
    let mut interpreter = Interpreter::open(instance, &sandbox).await?;
    let (vm, _) = bare.restore(FIRST_VM + rounds).await?;
    interpreter.run_one_plus_one().await?;
    let bounds = raw_executions(&vm, rounds).await;
    bare.discard(vm).await;
    let mut measured = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        measured.push(interpreter.run_one_plus_one().await?);
    }
    sandbox.kill().await?;
    let (measured, bounds) = (Percentiles::of(measured), Percentiles::of(bounds?));
    for (name, measured, bound, goal) in [
        ("`run_code`, warm, p50 (bound: raw ZeroMQ)", measured.p50, bounds.p50, Some(Goal::TimesBound(1.5))),
        ("`run_code`, warm, p95 (bound: raw ZeroMQ)", measured.p95, bounds.p95, None),
    ] {
        report.bounded(name, "ms", milliseconds(measured), milliseconds(bound), goal);
    }
    Ok(())
}

async fn raw_executions(vm: &Vm, count: usize) -> Result<Vec<Duration>> {
    let printed = vm.output(&format!("sudo python3 -c '{RAW}' {count}")).await?;
    let durations = printed.lines().map(|line| Ok(Duration::from_nanos(line.parse()?)));
    durations.collect::<Result<Vec<_>>>().with_context(|| format!("reading durations from {printed}"))
}

/// Measures the memory of the server, idle and after a large output.
async fn server(report: &mut Report, instance: &Instance) -> Result<()> {
    let sandbox = instance.client().create(&NewSandbox::of(TEMPLATE)).await?;
    let mut interpreter = Interpreter::open(instance, &sandbox).await?;
    let idle = server_mib(&sandbox, "VmRSS").await?;
    report.plain("code interpreter: memory of the server, idle", "MiB", idle, Some(Goal::AtMost(IDLE_MIB_MAX)));
    let before = server_mib(&sandbox, "VmHWM").await?;
    let mut bytes = 0;
    let code = format!("for _ in range({OUTPUT_MIB}): print('x' * ((1 << 20) - 1))");
    let took = interpreter.run(&code, |event| bytes += event["text"].as_str().map_or(0, str::len)).await?;
    ensure!(bytes == OUTPUT_MIB << 20, "{bytes} bytes of output arrived");
    let grown = server_mib(&sandbox, "VmHWM").await? - before;
    sandbox.kill().await?;
    let name = format!("code interpreter: growth of the server after {OUTPUT_MIB} MiB of output");
    report.plain(&name, "MiB", grown, Some(Goal::AtMost(GROWTH_MIB_MAX)));
    let rate = f64::from(u32::try_from(bytes)?) / 1e6 / took.as_secs_f64();
    report.plain("code interpreter: output of one execution", "MB/s", rate, None);
    Ok(())
}

/// Returns a field of the server's status in MiB (proc(5)). The name of a process has at most 15 characters.
async fn server_mib(sandbox: &Sandbox, field: &str) -> Result<f64> {
    let command = format!("grep {field}: /proc/$(pgrep -o -x hearth-interpre)/status");
    let output = sandbox.run(&command).await?;
    let text = String::from_utf8(output.stdout)?;
    let kib: f64 = text.split_whitespace().nth(1).with_context(|| format!("no {field}: {text}"))?.parse()?;
    Ok(kib / 1024.0)
}

/// Measures the processor time of idle sandboxes. The bound is that of the template `base`.
async fn idle(report: &mut Report, instance: &Instance, rounds: Rounds) -> Result<()> {
    let mut percents = Vec::new();
    for template in [TEMPLATE, BASE] {
        let mut sandboxes = Vec::new();
        for _ in 0..IDLE_SANDBOXES {
            sandboxes.push(instance.client().create(&NewSandbox::of(template)).await?);
        }
        tokio::time::sleep(SETTLE).await;
        percents.push(cpu_percent(instance, IDLE_SANDBOXES, rounds.idle_seconds).await?);
        for sandbox in sandboxes {
            sandbox.kill().await?;
        }
    }
    let goal = Some(Goal::TimesBound(IDLE_TIMES_BASE_MAX));
    let name = "code interpreter: CPU per idle sandbox (bound: `base`)";
    report.bounded(name, "% of a core", percents[0], percents[1], goal);
    Ok(())
}
