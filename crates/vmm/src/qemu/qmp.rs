//! QEMU's monitor: one JSON object per line over a Unix socket (QEMU, `docs/interop/qmp-spec.rst`).

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::Error;

/// Maximum length of a line. Replies are a few hundred bytes; a VMM taken over by its guest could send anything.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Maximum number of events before a reply; with more, the connection counts as broken.
const EVENTS_MAX: usize = 10_000;
/// Limit for one command. The longest, saving device state, takes milliseconds.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// An open monitor connection.
#[derive(Debug)]
pub(super) struct Monitor {
    lines: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Beginning of the next line, if reading it was cancelled.
    partial: Vec<u8>,
    /// The VMM has stopped the CPUs because a write found no space, and `out_of_space` has not reported it yet.
    out_of_space: bool,
}

impl Monitor {
    /// Connects to a monitor socket that already listens, and completes the greeting.
    ///
    /// The VMM sends the greeting when its main loop first runs, so this also waits for its start.
    pub(super) async fn connect(socket: &Path) -> Result<Self, Error> {
        let action = "connecting to the monitor";
        let monitor = |source| Error::Monitor { action, source };
        let (reader, writer) = UnixStream::connect(socket).await.map_err(monitor)?.into_split();
        let lines = BufReader::new(reader);
        let mut connection = Self { lines, writer, partial: Vec::new(), out_of_space: false };
        let greeting = connection.line().await.map_err(monitor)?;
        if greeting.get("QMP").is_none() {
            return Err(monitor(io::Error::new(io::ErrorKind::InvalidData, "the greeting is not QMP's")));
        }
        connection.execute("qmp_capabilities", json!({})).await?;
        Ok(connection)
    }

    /// Runs one command and returns its result.
    pub(super) async fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        match tokio::time::timeout(COMMAND_TIMEOUT, self.exchange(command, arguments)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { action: command, limit: COMMAND_TIMEOUT }),
        }
    }

    async fn exchange(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        let monitor = |source| Error::Monitor { action: command, source };
        let mut request = json!({ "execute": command, "arguments": arguments }).to_string();
        request.push('\n');
        self.writer.write_all(request.as_bytes()).await.map_err(monitor)?;
        for _ in 0..EVENTS_MAX {
            let mut reply = self.line().await.map_err(monitor)?;
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = reply.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
                return Err(Error::Rejected { command: command.to_owned(), reason });
            }
            self.record_event(&reply);
        }
        Err(monitor(io::Error::new(io::ErrorKind::InvalidData, "only events, no reply")))
    }

    /// Waits until the VMM stops the CPUs because a write of the guest found no space. Cancel safe.
    ///
    /// The event is `BLOCK_IO_ERROR` (QEMU, `qapi/block-core.json`).
    pub(super) async fn out_of_space(&mut self) -> Result<(), Error> {
        while !self.out_of_space {
            let action = "waiting for events";
            let event = self.line().await.map_err(|source| Error::Monitor { action, source })?;
            self.record_event(&event);
        }
        self.out_of_space = false;
        Ok(())
    }

    fn record_event(&mut self, event: &Value) {
        let is_disk_error = event.get("event").and_then(Value::as_str) == Some("BLOCK_IO_ERROR");
        let action = event.get("data").and_then(|data| data.get("action")).and_then(Value::as_str);
        self.out_of_space |= is_disk_error && action == Some("stop");
    }

    /// Reads the next line. Cancel safe: the part already read is retained.
    async fn line(&mut self) -> io::Result<Value> {
        loop {
            let chunk = self.lines.fill_buf().await?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            self.partial.extend_from_slice(&chunk[..taken]);
            self.lines.consume(taken);
            if self.partial.len() > LINE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.partial);
                return serde_json::from_slice(&line)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    use super::*;

    async fn served(script: &'static str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("binds");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            stream.write_all(script.as_bytes()).await.expect("writes");
            let mut sink = Vec::new();
            let _ = stream.read_to_end(&mut sink).await;
        });
        (folder, path)
    }

    #[tokio::test]
    async fn events_are_skipped_and_errors_are_returned() {
        let (_folder, path) = served(concat!(
            "{\"QMP\":{}}\n{\"return\":{}}\n",
            "{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"paused\"}}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n"
        ))
        .await;
        let mut monitor = Monitor::connect(&path).await.expect("greets");
        let status = monitor.execute("query-status", json!({})).await.expect("replies");
        assert_eq!(status["status"], "paused");
        let rejected = monitor.execute("cont", json!({})).await.expect_err("rejected");
        assert!(matches!(rejected, Error::Rejected { reason, .. } if reason == "no"));
    }

    #[tokio::test]
    async fn each_lack_of_space_is_reported_once() {
        const FULL: &str = "{\"event\":\"BLOCK_IO_ERROR\",\"data\":{\"action\":\"stop\",\"nospace\":true}}\n";
        const REPORTED: &str = "{\"event\":\"BLOCK_IO_ERROR\",\"data\":{\"action\":\"report\"}}\n";
        // Between a command and its reply, and afterwards.
        let script = format!(
            "{{\"QMP\":{{}}}}\n{{\"return\":{{}}}}\n{FULL}{{\"return\":{{}}}}\n{REPORTED}{{\"event\":\"STOP\"}}\n{FULL}"
        );
        let (_folder, path) = served(Box::leak(script.into_boxed_str())).await;
        let mut monitor = Monitor::connect(&path).await.expect("greets");
        monitor.execute("query-status", json!({})).await.expect("replies");
        monitor.out_of_space().await.expect("reported");
        monitor.out_of_space().await.expect("reported again");
        let third = tokio::time::timeout(Duration::from_millis(50), monitor.out_of_space()).await;
        assert!(third.is_err(), "a third one was reported: {third:?}");
    }

    #[tokio::test]
    async fn invalid_data_is_an_error() {
        for script in ["{\"QMP\":{}}\nnonsense\n", "{}\n", "\u{0}\n"] {
            let (_folder, path) = served(script).await;
            assert!(matches!(Monitor::connect(&path).await, Err(Error::Monitor { .. })), "{script:?}");
        }
    }
}
