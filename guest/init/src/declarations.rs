//! Services of a template, which PID 1 runs beside the daemon.
//!
//! A file `/etc/hearth/services/<name>` in the root declares a service: one line with an absolute program and its
//! arguments, separated by blanks. A service runs as root, in `/home/user` if that exists, in a control group of its
//! own kind.
//!
//! This process starts a service through its own program ([`enter`]): the new process drops the privileges that PID 1
//! and the daemon have over other processes (signal mask, OOM score, priority, control group) and then executes the
//! service's program. Between fork and exec, safe code could not do that.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::SigSet;
use rustix::process::setpriority_process;

use crate::Error;
use crate::console::{print_error, print_line};

/// Folder of the declarations.
pub(crate) const FOLDER: &str = "/etc/hearth/services";
/// First argument of this program when it becomes a service.
pub(crate) const ENTER: &str = "service";
/// Maximum number of services. A template has one or two; more would delay the boot and crowd the console.
const SERVICES_MAX: usize = 16;
/// Maximum size of a declaration.
const DECLARATION_BYTES_MAX: u64 = 4096;
/// Control group of all services.
const GROUP: &str = "/sys/fs/cgroup/services";
/// Weights of a service: those of a client's terminal, because clients wait for its replies.
const WEIGHTS: &[(&str, &str)] = &[("cpu.weight", "200"), ("io.weight", "default 50")];
/// Upper bound of the memory reserved for the daemon and the kernel; the reserve is an eighth of the guest's.
const MEMORY_RESERVE_MAX: u64 = 128 << 20;
const HOME: &str = "/home/user";

/// A declared service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Declaration {
    pub(crate) name: String,
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
}

/// Returns the declared services, sorted by name, and creates their control group. Invalid declarations are printed.
pub(crate) fn declared() -> Vec<Declaration> {
    let services = read(Path::new(FOLDER));
    if !services.is_empty() {
        create_group();
    }
    services
}

fn read(folder: &Path) -> Vec<Declaration> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries.flatten(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            print_error("could not list the services", &error);
            return Vec::new();
        }
    };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| is_name(name));
    names.sort();
    if names.len() > SERVICES_MAX {
        print_line(&format!("{FOLDER} declares {} services; the first {SERVICES_MAX} are started", names.len()));
        names.truncate(SERVICES_MAX);
    }
    let mut services = Vec::new();
    for name in names {
        match declaration(&folder.join(&name)) {
            Ok((program, arguments)) => services.push(Declaration { name, program, arguments }),
            Err(error) => print_error(&format!("could not read the service {name}"), &error),
        }
    }
    services
}

/// Checks a name, which is printed on the console. Temporary files of editors and dpkg have other names.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !name.is_empty() && name.bytes().all(plain)
}

fn declaration(path: &Path) -> io::Result<(String, Vec<String>)> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > DECLARATION_BYTES_MAX {
        return Err(io::Error::other(format!("it must be a file of at most {DECLARATION_BYTES_MAX} bytes")));
    }
    parse(&fs::read_to_string(path)?).map_err(io::Error::other)
}

fn parse(text: &str) -> Result<(String, Vec<String>), &'static str> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let (Some(line), None) = (lines.next(), lines.next()) else { return Err("it must have one line") };
    let mut words = line.split_whitespace().map(str::to_owned);
    let program = words.next().filter(|program| program.starts_with('/'));
    Ok((program.ok_or("its program must be an absolute path")?, words.collect()))
}

fn create_group() {
    if let Err(error) = fs::create_dir_all(GROUP) {
        return print_error("could not create the control group of services", &error);
    }
    let limit = memory_limit().map(|bytes| bytes.to_string());
    let limits = limit.iter().flat_map(|limit| [("memory.high", limit.as_str()), ("memory.max", limit.as_str())]);
    for (file, value) in WEIGHTS.iter().copied().chain(limits) {
        let path = format!("{GROUP}/{file}");
        // The file is missing when its controller is not enabled.
        if Path::new(&path).exists()
            && let Err(error) = fs::write(&path, value)
        {
            print_error(&format!("could not write {value} to {path}"), &error);
        }
    }
}

/// Returns the memory limit of all services together, in bytes.
fn memory_limit() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.split_whitespace().next()?.parse::<u64>().ok()? << 10;
    Some(total - (total / 8).min(MEMORY_RESERVE_MAX))
}

/// Makes this process, a child of PID 1, a service: arguments are the program and its own arguments.
///
/// Returns only if the program cannot be executed. Failures of other steps are printed.
pub(crate) fn enter(mut arguments: impl Iterator<Item = OsString>) -> Result<Infallible, Error> {
    // PID 1 blocks the signals that it reads from a descriptor.
    if let Err(errno) = SigSet::empty().thread_set_mask() {
        print_error("could not unblock the signals of a service", &errno);
    }
    for (path, value) in [("/proc/self/oom_score_adj", "0"), (&format!("{GROUP}/cgroup.procs"), "0")] {
        if let Err(error) = fs::write(path, value) {
            print_error(&format!("could not write {value} to {path}"), &error);
        }
    }
    if let Err(errno) = setpriority_process(None, 0) {
        print_error("could not reset the priority of a service", &io::Error::from(errno));
    }
    let program = arguments.next().unwrap_or_default();
    let folder = if Path::new(HOME).is_dir() { HOME } else { "/" };
    let error = Command::new(&program).args(arguments).current_dir(folder).exec();
    Err(Error::on("executing", program.to_string_lossy())(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_one_line_with_an_absolute_program() {
        for (text, expected) in [
            ("/usr/bin/x", Ok(("/usr/bin/x", vec![]))),
            ("\n /usr/bin/x  -a\tb \n", Ok(("/usr/bin/x", vec!["-a", "b"]))),
            ("x -a", Err("its program must be an absolute path")),
            ("", Err("it must have one line")),
            ("/a\n/b\n", Err("it must have one line")),
        ] {
            let expected = expected.map(|(program, arguments): (&str, Vec<&str>)| {
                (program.to_owned(), arguments.into_iter().map(str::to_owned).collect::<Vec<_>>())
            });
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn services_are_sorted_and_bounded_and_invalid_ones_are_skipped() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(read(&folder.path().join("missing")), []);
        for (name, text) in [("b", "/b 1"), ("a", "/a"), (".a.swp", "/c"), ("a.dpkg-new", "/d"), ("bad", "e")] {
            fs::write(folder.path().join(name), text).expect("writes");
        }
        fs::create_dir(folder.path().join("folder")).expect("creates");
        let names = |services: Vec<Declaration>| services.into_iter().map(|service| service.name).collect::<Vec<_>>();
        assert_eq!(names(read(folder.path())), ["a", "b"]);
        for number in 0..SERVICES_MAX {
            fs::write(folder.path().join(format!("a{number}")), "/a").expect("writes");
        }
        assert_eq!(read(folder.path()).len(), SERVICES_MAX);
    }
}
