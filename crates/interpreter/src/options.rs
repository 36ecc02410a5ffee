//! The command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use hearth_types::guest::{DAEMON_PORT, GENERATION_FILE, INTERPRETER_PORT};

/// Directories of kernel specifications, in order of preference: of the template's administrator, of its packages.
const KERNELS: [&str; 2] = ["/usr/local/share/jupyter", "/usr/share/jupyter"];
const KNOWN: &str = "--address IP, --port N, --kernels DIRECTORY (repeatable), --runtime-dir DIRECTORY, \
                     --warm-up-dir DIRECTORY, --envd URL, --home DIRECTORY and --generation FILE";

/// Parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Address of the server.
    pub(crate) listen: SocketAddr,
    /// Directories with `kernels/<name>/kernel.json`.
    pub(crate) kernels: Vec<PathBuf>,
    /// Directory of sockets and connection files.
    pub(crate) runtime: PathBuf,
    /// Directory of the code that the first contexts run before the server is ready.
    pub(crate) warm_up: PathBuf,
    /// Base URL of the guest daemon, for the sandbox's environment variables.
    pub(crate) envd: String,
    /// Default working directory of contexts.
    pub(crate) home: PathBuf,
    /// File that changes with each restore.
    pub(crate) generation: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, INTERPRETER_PORT)),
            kernels: KERNELS.map(PathBuf::from).to_vec(),
            runtime: PathBuf::from("/run/hearth/kernels"),
            warm_up: PathBuf::from("/etc/hearth/interpreter"),
            envd: format!("http://127.0.0.1:{DAEMON_PORT}"),
            home: PathBuf::from("/home/user"),
            generation: PathBuf::from(GENERATION_FILE),
        }
    }
}

/// Parses the arguments behind the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut kernels = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value = || value.clone().or_else(|| arguments.next()).ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--port" => {
                let port = value()?;
                options.listen.set_port(port.parse().map_err(|_| format!("`{port}` is not a port"))?);
            }
            "--address" => {
                let address = value()?;
                let address: IpAddr = address.parse().map_err(|_| format!("`{address}` is not an IP address"))?;
                options.listen.set_ip(address);
            }
            "--kernels" => kernels.push(path(&value()?)?),
            "--runtime-dir" => options.runtime = path(&value()?)?,
            "--warm-up-dir" => options.warm_up = path(&value()?)?,
            "--envd" => options.envd = value()?,
            "--home" => options.home = path(&value()?)?,
            "--generation" => options.generation = path(&value()?)?,
            _ => return Err(format!("unknown option `{name}`; known are {KNOWN}")),
        }
    }
    if !kernels.is_empty() {
        options.kernels = kernels;
    }
    Ok(options)
}

/// Makes a path absolute: kernels run in other directories.
fn path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| format!("`{text}` is not a path: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options, String> {
        parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn options_replace_defaults() {
        assert_eq!(parsed(&[]), Ok(Options::default()));
        let options =
            parsed(&["--port=0", "--address", "127.0.0.1", "--kernels", "/a", "--kernels=/b", "--home", "/h"]);
        let options = options.expect("valid");
        assert_eq!(options.listen, SocketAddr::from(([127, 0, 0, 1], 0)));
        assert_eq!(options.kernels, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(options.home, PathBuf::from("/h"));
        for odd in [&["--port"][..], &["--port", "x"], &["--wat"], &["--address", "host"]] {
            assert!(parsed(odd).is_err(), "{odd:?}");
        }
    }
}
