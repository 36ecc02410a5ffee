//! The command line.

use std::path::PathBuf;

use hearth_types::guest::DAEMON_PORT;

use crate::VERSION;

/// Mount point of the control groups (cgroups(7)).
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const KNOWN: &str =
    "-version, -commit, -port N, -isnotfc, -cgroup-root DIRECTORY, -no-cgroups, -verbose and -restarted";

/// Parsed command line. Long options with a single dash are accepted, as the contract requires.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) port: u16,
    pub(crate) in_microvm: bool,
    pub(crate) is_restart: bool,
    /// Directory below which processes get control groups; `None` disables them.
    pub(crate) cgroup_root: Option<PathBuf>,
    /// Writes log lines to standard output as well.
    pub(crate) is_verbose: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: DAEMON_PORT,
            in_microvm: true,
            is_restart: false,
            cgroup_root: Some(PathBuf::from(CGROUP_ROOT)),
            is_verbose: false,
        }
    }
}

/// Requested action.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Print(&'static str),
    Serve(Options),
}

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Action, String> {
    let mut options = Options::default();
    while let Some(arg) = args.next() {
        let name = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or(&arg);
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        match name {
            "version" => return Ok(Action::Print(VERSION)),
            "commit" => return Ok(Action::Print(option_env!("BUILT_FROM_COMMIT").unwrap_or("unknown"))),
            "isnotfc" => options.in_microvm = false,
            // Hearth's extension: set by PID 1 after an earlier daemon exited.
            "restarted" => options.is_restart = true,
            "verbose" => options.is_verbose = true,
            "no-cgroups" => options.cgroup_root = None,
            "cgroup-root" => {
                let value = value.or_else(|| args.next()).ok_or("-cgroup-root needs a directory")?;
                options.cgroup_root = Some(value.into());
            }
            "port" => {
                let value = value.or_else(|| args.next()).ok_or("-port needs a number")?;
                options.port = value.parse().map_err(|_| format!("`{value}` is not a port"))?;
            }
            _ => return Err(format!("unknown option `{arg}`; known are {KNOWN}")),
        }
    }
    Ok(Action::Serve(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &[&str]) -> Result<Action, String> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn options_with_one_and_two_dashes() {
        let serving = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            Ok(Action::Serve(options))
        };
        assert_eq!(request(&[]), serving(|_| ()));
        assert_eq!(request(&["-restarted"]), serving(|options| options.is_restart = true));
        for args in [&["-port", "1234", "-isnotfc"][..], &["--port=1234", "--isnotfc"]] {
            assert_eq!(
                request(args),
                serving(|options| {
                    options.port = 1234;
                    options.in_microvm = false;
                })
            );
        }
        for args in [&["-cgroup-root", "/c", "-verbose"][..], &["--verbose", "--cgroup-root=/c"]] {
            assert_eq!(
                request(args),
                serving(|options| {
                    options.cgroup_root = Some("/c".into());
                    options.is_verbose = true;
                })
            );
        }
        assert_eq!(request(&["-no-cgroups"]), serving(|options| options.cgroup_root = None));
        for version in ["-version", "--version"] {
            assert_eq!(request(&[version]), Ok(Action::Print(VERSION)));
        }
        for odd in [&["-port", "x"][..], &["-port"], &["-port", "70000"], &["-wat"]] {
            assert!(request(odd).is_err(), "{odd:?}");
        }
    }
}
