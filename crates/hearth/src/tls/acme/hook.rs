//! The operator's program that sets and removes DNS records of the domain.
//!
//! It is run as `PROGRAM set NAME VALUE` and `PROGRAM remove NAME VALUE`, in its own process group, which is killed at
//! the timeout. Its environment is `PATH`, `HOME` and `LC_ALL` only, so that it contains no secret of Hearth; the
//! program has to find credentials for the domain's name servers itself.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

/// Time limit for one call: programs of DNS providers may wait until all name servers have a record.
const CALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Time limit for reading the output after the exit: a background process may hold the pipe open.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Length of the end of the output that an error quotes.
const OUTPUT_BYTES_MAX: usize = 2048;
/// Search path if `PATH` is not set: that of a systemd service (systemd.exec(5)).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// TXT record of one proof. It is not secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Begins with `_acme-challenge.`, without a dot at the end.
    pub(super) name: String,
    pub(super) value: String,
}

/// Operation on a record. Other records with the same name must not change.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Set,
    Remove,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "set",
            Self::Remove => "remove",
        })
    }
}

/// Hook program with its environment.
#[derive(Debug, Clone)]
pub(super) struct Hook {
    program: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    timeout: Duration,
}

impl Hook {
    /// Checks that the program exists and is executable.
    ///
    /// # Errors
    /// It does not exist, or is not an executable file.
    pub(super) fn new(program: &Path) -> Result<Self> {
        let name = || format!("--acme-hook {}", program.display());
        let attributes = program.metadata().with_context(name)?;
        if !attributes.is_file() || attributes.permissions().mode() & 0o111 == 0 {
            bail!("{}: not an executable file (run chmod +x on a script)", name());
        }
        let mut environment = vec![("LC_ALL", OsString::from("C.UTF-8"))];
        environment.push(("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())));
        environment.extend(std::env::var_os("HOME").map(|home| ("HOME", home)));
        Ok(Self { program: program.to_owned(), environment, timeout: CALL_TIMEOUT })
    }

    /// Runs the program and waits for it. Dropping the future kills its process group.
    ///
    /// # Errors
    /// It did not start, failed, or did not exit in time. The error quotes the end of its output.
    pub(super) async fn call(&self, change: Change, record: &Record) -> Result<()> {
        let name = || format!("{} {change} {} {}", self.program.display(), record.name, record.value);
        let mut output = Vec::new();
        let ended = tokio::time::timeout(self.timeout, self.run(change, record, &mut output)).await;
        let printed = quoted(&output);
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => bail!("`{}` failed: {status}, output: {printed}", name()),
            Ok(Err(error)) => Err(error).with_context(|| format!("running `{}`", name())),
            Err(_) => bail!("`{}` did not exit within {:?}, output: {printed}", name(), self.timeout),
        }
    }

    async fn run(&self, change: Change, record: &Record, output: &mut Vec<u8>) -> std::io::Result<ExitStatus> {
        let mut command = Command::new(&self.program);
        command.arg(change.to_string()).args([&record.name, &record.value]);
        command.env_clear().envs(self.environment.iter().cloned()).current_dir("/");
        // One pipe for both outputs, so that their order is preserved.
        let (read, written) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(written.try_clone()?).stderr(written);
        let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
        let mut group = Group::of(&child);
        // The command holds copies of the pipe's write end.
        drop(command);
        let reading = read_tail(Receiver::from_owned_fd(read.into())?, output);
        tokio::pin!(reading);
        let mut still_reading = true;
        // Both arms are cancel safe.
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                () = &mut reading, if still_reading => still_reading = false,
            }
        };
        group.leader = None;
        if still_reading {
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, reading).await;
        }
        Ok(status)
    }
}

/// Reads to the end and stores the last part in `tail`. Cancel safe: `tail` holds what was read so far.
async fn read_tail(mut output: Receiver, tail: &mut Vec<u8>) {
    let mut buffer = [0; OUTPUT_BYTES_MAX];
    // A read error is ignored: the exit status decides.
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..count]);
        tail.drain(..tail.len().saturating_sub(OUTPUT_BYTES_MAX));
    }
}

/// Formats the output as one line without control characters, which could affect a terminal.
fn quoted(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join("; ").replace(char::is_control, " ");
    if line.is_empty() { "nothing".to_owned() } else { line }
}

/// Process group that is killed on drop, unless its leader has exited.
struct Group {
    leader: Option<Pid>,
}

impl Group {
    fn of(child: &Child) -> Self {
        Self { leader: child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The process ID cannot have been reused: the leader has not been waited for.
        if let Some(leader) = self.leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn hook(folder: &Path, script: &str) -> Hook {
        let program = folder.join("hook");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("writes");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("own file");
        Hook::new(&program).expect("a program")
    }

    fn record() -> Record {
        Record { name: "_acme-challenge.example.com".to_owned(), value: "abc".to_owned() }
    }

    #[tokio::test]
    async fn the_program_gets_its_arguments_and_a_minimal_environment() {
        let folder = tempfile::tempdir().expect("a folder");
        let noted = folder.path().join("noted");
        let hook = hook(folder.path(), &format!("echo \"$@\" >>{0}; env >>{0}; pwd >>{0}", noted.display()));
        hook.call(Change::Set, &record()).await.expect("it works");
        let text = fs::read_to_string(&noted).expect("it ran");
        assert!(text.starts_with("set _acme-challenge.example.com abc\n") && text.ends_with("\n/\n"), "{text}");
        let known = ["PATH=", "HOME=", "LC_ALL=C.UTF-8", "PWD=", "SHLVL=", "_=", "OLDPWD="];
        let others = text.lines().skip(1).filter(|line| line.contains('='));
        assert_eq!(others.filter(|line| !known.iter().any(|name| line.starts_with(name))).count(), 0, "{text}");
        hook.call(Change::Remove, &record()).await.expect("it works");
        assert!(fs::read_to_string(&noted).expect("it ran").contains("remove _acme-challenge.example.com abc\n"));
    }

    #[tokio::test]
    async fn a_failure_quotes_the_end_of_the_output() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "for i in $(seq 1 9999); do echo line $i; done; printf 'no\\033[1m such zone\\n' >&2; exit 7";
        let error = hook(folder.path(), script).call(Change::Set, &record()).await.expect_err("it fails").to_string();
        assert!(error.contains("exit status: 7") && error.ends_with("line 9999; no [1m such zone"), "{error}");
        assert!(error.len() < OUTPUT_BYTES_MAX + 300, "{}", error.len());
    }

    #[tokio::test]
    async fn a_hanging_program_is_killed_with_its_process_group() {
        let folder = tempfile::tempdir().expect("a folder");
        let mark = format!("1000.{}", std::process::id());
        let hook = hook(folder.path(), &format!("echo waiting; sleep {mark}; echo never"));
        let hook = Hook { timeout: Duration::from_millis(300), ..hook };
        let error = hook.call(Change::Set, &record()).await.expect_err("it hangs").to_string();
        assert!(error.contains("did not exit within 300ms") && error.ends_with("output: waiting"), "{error}");
        for process in hearth_host::process::Process::find_by_argument(&mark) {
            // The signal was sent; the exit may take a moment.
            process.wait().await;
        }
    }

    #[tokio::test]
    async fn background_processes_are_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let ending = folder.path().join("ending");
        let script = format!("(while [ ! -e {} ]; do sleep 0.02; done) & echo done; exit 1", ending.display());
        let error = hook(folder.path(), &script).call(Change::Set, &record()).await.expect_err("it fails").to_string();
        assert!(error.ends_with("output: done"), "{error}");
        fs::write(&ending, "").expect("writes");
    }

    /// Runs the example in the documentation with a fake nsupdate that records its input.
    #[tokio::test]
    async fn the_example_adds_and_removes_one_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/samples/acme-nsupdate.sh");
        let given = folder.path().join("given");
        let nsupdate = folder.path().join("nsupdate");
        fs::write(&nsupdate, format!("#!/bin/sh\necho \"$@\" >{0}\ncat >>{0}\n", given.display())).expect("writes");
        fs::set_permissions(&nsupdate, fs::Permissions::from_mode(0o755)).expect("own file");
        let mut hook = Hook::new(Path::new(example)).expect("a program");
        hook.environment = vec![("PATH", format!("{}:{DEFAULT_PATH}", folder.path().display()).into())];
        for (change, expected) in [
            (Change::Set, "update add _acme-challenge.example.com. 60 TXT \"abc\""),
            (Change::Remove, "update delete _acme-challenge.example.com. TXT \"abc\""),
        ] {
            hook.call(change, &record()).await.expect("it works");
            let text = fs::read_to_string(&given).expect("it ran");
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines, ["-k /etc/hearth/acme.key", "server ns1.example.com 53", expected, "send"]);
        }
    }

    #[test]
    fn a_file_that_is_not_executable_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hook");
        assert!(format!("{:#}", Hook::new(&path).expect_err("missing")).contains("--acme-hook"));
        fs::write(&path, "#!/bin/sh\n").expect("writes");
        assert!(Hook::new(&path).expect_err("no program").to_string().contains("chmod +x"));
    }
}
