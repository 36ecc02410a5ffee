//! Jupyter's kernel specifications: the command that starts a kernel, and its transport.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::language::Language;

/// Largest specification that is read, in bytes.
const SPEC_BYTES_MAX: u64 = 1 << 20;
/// Kernel names that an error message lists.
const LISTED_MAX: usize = 32;

/// Reason that a language has no kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Written as the reference's kernel server does.
    #[error(
        "{{\"message\": \"The '{name}' kernel is not available. Installed kernels: {installed}\", \
         \"short_message\": \"{name} not found\"}}"
    )]
    Unknown { name: String, installed: String },
    #[error("reading {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
}

/// Kernel specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelSpec {
    /// Program and arguments, with placeholders.
    argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) interrupt: Interrupt,
    pub(crate) transport: Transport,
    /// Language that the kernel says it runs.
    pub(crate) language: String,
    folder: PathBuf,
}

/// Means of interrupting an execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interrupt {
    #[default]
    Signal,
    Message,
}

/// Transport of a kernel's sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// Unix sockets in a private directory.
    Ipc,
    /// Loopback ports, with signed messages.
    #[default]
    Tcp,
}

#[derive(Deserialize)]
struct Parsed {
    argv: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    language: String,
    #[serde(default)]
    interrupt_mode: Option<Interrupt>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    hearth: HearthMetadata,
}

#[derive(Default, Deserialize)]
struct HearthMetadata {
    #[serde(default)]
    transport: Transport,
}

impl KernelSpec {
    /// Finds the kernel of a language in `directories`.
    pub(crate) fn find(language: &Language, directories: &[PathBuf]) -> Result<Self, Error> {
        for name in language.kernels() {
            for directory in directories {
                let folder = directory.join("kernels").join(name);
                let path = folder.join("kernel.json");
                match read(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::Unreadable { path, reason: error.to_string() }),
                    Ok(text) => {
                        let spec = Self::parse(&text, folder);
                        return spec.map_err(|reason| Error::Unreadable { path, reason });
                    }
                }
            }
        }
        // The name is a client's and may contain anything.
        let name = language.name().chars().filter(|character| !character.is_control() && *character != '"').take(64);
        Err(Error::Unknown { name: name.collect(), installed: installed(directories).join(", ") })
    }

    fn parse(text: &str, folder: PathBuf) -> Result<Self, String> {
        let Parsed { argv, env, language, interrupt_mode, metadata } =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        if argv.is_empty() {
            return Err("argv is empty".to_owned());
        }
        let interrupt = interrupt_mode.unwrap_or_default();
        let env = env.into_iter().map(|(name, value)| (name, expanded(&value, |name| std::env::var(name).ok())));
        let env = env.collect();
        Ok(Self { argv, env, interrupt, transport: metadata.hearth.transport, language, folder })
    }

    /// Returns the program and its arguments.
    pub(crate) fn command(&self, connection_file: &Path) -> Vec<String> {
        let fill = |argument: &String| {
            let filled = argument.replace("{connection_file}", &connection_file.display().to_string());
            filled.replace("{resource_dir}", &self.folder.display().to_string())
        };
        let mut argv: Vec<_> = self.argv.iter().map(fill).collect();
        if let Some(program) = argv.first_mut() {
            *program = self.program(program);
        }
        argv
    }

    /// Finds a program that is named without a path beside its specification: packages name only `python`.
    fn program(&self, name: &str) -> String {
        // `<prefix>/share/jupyter/kernels/<name>` belongs to the programs in `<prefix>/bin`.
        let prefix = self.folder.ancestors().nth(4).filter(|_| !name.contains('/'));
        let names = [name, if name == "python" { "python3" } else { name }];
        let mut paths = names.iter().filter_map(|name| Some(prefix?.join("bin").join(name)));
        paths.find(|path| path.is_file()).map_or_else(|| name.to_owned(), |path| path.display().to_string())
    }
}

/// Replaces `${NAME}` by the variable's value, as Jupyter does; an unknown variable stays as it is.
fn expanded(text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let mut parts = text.split("${");
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('}').and_then(|(name, rest)| Some((variable(name)?, rest))) {
            Some((value, rest)) => expanded.extend([value.as_str(), rest]),
            None => expanded.extend(["${", part]),
        }
    }
    expanded
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(SPEC_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn installed(directories: &[PathBuf]) -> Vec<String> {
    let folders = directories.iter().filter_map(|directory| fs::read_dir(directory.join("kernels")).ok());
    let entries = folders.flatten().flatten().filter(|entry| entry.path().join("kernel.json").is_file());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.dedup();
    names.truncate(LISTED_MAX);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded() {
        let variable = |name: &str| (name == "PATH").then(|| "/bin".to_owned());
        for (text, expected) in
            [("/x:${PATH}:${PATH}", "/x:/bin:/bin"), ("$PATH ${NONE} ${", "$PATH ${NONE} ${"), ("", "")]
        {
            assert_eq!(expanded(text, variable), expected);
        }
    }

    #[test]
    fn the_first_directory_with_the_kernel_counts() {
        let (first, second) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let write = |root: &Path, name: &str, text: &str| {
            let folder = root.join("kernels").join(name);
            fs::create_dir_all(&folder).expect("created");
            fs::write(folder.join("kernel.json"), text).expect("written");
        };
        let directories = [first.path().to_owned(), second.path().to_owned()];
        write(second.path(), "python3", r#"{"argv":["b","{connection_file}","{resource_dir}/x"],"display_name":"x"}"#);
        let find = |name: &str| KernelSpec::find(&Language::new(name), &directories);
        let spec = find("python").expect("found");
        assert_eq!((spec.transport, spec.interrupt), (Transport::Tcp, Interrupt::Signal));
        let folder = second.path().join("kernels/python3");
        assert_eq!(spec.command(Path::new("/c")), ["b", "/c", &format!("{}/x", folder.display())]);
        let text =
            r#"{"argv":["a"],"env":{"K":"v"},"interrupt_mode":"message","metadata":{"hearth":{"transport":"ipc"}}}"#;
        write(first.path(), "python3", text);
        let spec = find("").expect("found");
        assert_eq!((spec.transport, spec.interrupt), (Transport::Ipc, Interrupt::Message));
        assert_eq!(spec.env["K"], "v");
        write(first.path(), "odd", "{");
        assert!(find("odd").expect_err("invalid").to_string().starts_with("reading "));
        let unknown = find("x").expect_err("unknown").to_string();
        let parsed: serde_json::Value = serde_json::from_str(&unknown).expect("JSON");
        assert_eq!(parsed["short_message"], "x not found");
        assert!(find("../../x\"\n").is_err());
    }
}
