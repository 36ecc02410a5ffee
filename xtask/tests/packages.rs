//! Tests of `scripts/packages.sh` with the real apt, in a private root with its own repository.
//!
//! Nothing is installed: a wrapper records the install commands, and apt only simulates them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const SCRIPT: &str = include_str!("../../scripts/packages.sh");
const BACKPORT: &str = "1:10.0+ds-2~bpo12+1";

/// Formats the paragraph of one package, as in apt's package lists.
fn package(name: &str, version: &str, source: &str, relations: &str) -> String {
    format!(
        "Package: {name}\nSource: {source}\nVersion: {version}\nArchitecture: amd64\n\
         Maintainer: A <a@example.com>\nDescription: {name}\n{relations}"
    )
}

/// Machine with two missing packages: `emulator`, which conflicts with newer `emulator-tools`, and `filter`.
struct Machine {
    root: TempDir,
}

impl Machine {
    fn new(installed: &[String]) -> Self {
        let machine = Self { root: tempfile::tempdir().expect("a folder") };
        for folder in [
            "bin",
            "scripts",
            "admin",
            "lists/partial",
            "cache/archives/partial",
            "etc/sources",
            "etc/parts",
            "etc/preferences.d",
        ] {
            fs::create_dir_all(machine.path(folder)).expect("a folder");
        }
        machine.write("scripts/packages.sh", SCRIPT);
        machine.write("scripts/packages.txt", "run | emulator | false | guests\nrun | filter | false | packet rules\n");
        let status: Vec<_> =
            installed.iter().map(|package| format!("{package}Status: install ok installed\n")).collect();
        machine.write("admin/status", &status.join("\n"));
        machine.release(
            "bookworm",
            &[
                package("emulator", "1:7.2", "emulator", "Depends: emulator-common (= 1:7.2)\n"),
                package("emulator-common", "1:7.2", "emulator", "Breaks: emulator-tools (>> 1:8)\n"),
                package("emulator-tools", "1:7.2", "emulator", ""),
                package("filter", "1.0", "filter", ""),
            ],
        );
        machine.release(
            "bookworm-backports",
            &[
                package("emulator", BACKPORT, "emulator", &format!("Depends: emulator-common (= {BACKPORT})\n")),
                package("emulator-common", BACKPORT, "emulator", "Depends: firmware (>= 1.16)\n"),
                package("firmware", "1.17~bpo12+1", "firmware", ""),
                package("filter", "2.0~bpo12+1", "filter", ""),
            ],
        );
        let root = machine.root.path().display();
        machine.write("etc/sources/main.list", &format!("deb file:{root}/repository bookworm main\n"));
        machine.write("apt.conf", &format!(
            "Dir::State \"{root}\";\nDir::State::status \"{root}/admin/status\";\nDir::State::lists \"{root}/lists\";\n\
             Dir::Cache \"{root}/cache\";\nDir::Etc \"{root}/etc\";\nDir::Etc::sourceparts \"{root}/etc/sources\";\n\
             Dir::Etc::parts \"{root}/etc/parts\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"root\";\nAcquire::AllowInsecureRepositories \"true\";\nDebug::NoLocking \"true\";\n\
             APT::Get::AllowUnauthenticated \"true\";\nAcquire::Languages \"none\";\n"
        ));
        machine.program("apt-get", &format!(
            "case \" $* \" in *' -s '* | *' update '*) ;; *) printf '%s\\n' \"$*\" >>{root}/installs; set -- -s \"$@\" ;; esac\n\
             exec \"$REAL_APT_GET\" \"$@\" </dev/null\n"
        ));
        // The tests also run as an ordinary user: nothing here needs root.
        machine.program("sudo", "exec \"$@\"\n");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
    }

    fn release(&self, name: &str, packages: &[String]) {
        let folder = self.path("repository/dists").join(name);
        fs::create_dir_all(folder.join("main/binary-amd64")).expect("a folder");
        let archive = format!("Filename: pool/archive\nSize: 1\nSHA256: {}\n", "0".repeat(64));
        let text = packages.iter().map(|package| format!("{package}{archive}")).collect::<Vec<_>>().join("\n");
        let list = "main/binary-amd64/Packages";
        fs::write(folder.join(list), &text).expect("a file");
        let sum = Command::new("sha256sum").arg(folder.join(list)).output().expect("coreutils").stdout;
        let sum = String::from_utf8_lossy(&sum[..64]).into_owned();
        let automatic = if name.ends_with("backports") { "NotAutomatic: yes\nButAutomaticUpgrades: yes\n" } else { "" };
        let text = format!(
            "Origin: Debian\nLabel: Debian\nSuite: {name}\nCodename: {name}\nVersion: 12.1\nArchitectures: amd64\n\
             Components: main\nDate: Sat, 01 Jan 2022 00:00:00 UTC\n{automatic}\
             SHA256:\n {sum} {} {list}\n",
            text.len()
        );
        fs::write(folder.join("Release"), text).expect("a file");
    }

    /// Command for the script, with the private apt.
    fn script(&self) -> Command {
        let real = which("apt-get");
        let mut path = self.path("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").expect("a path"));
        let mut command = Command::new("sh");
        command.arg(self.path("scripts/packages.sh")).arg("run");
        command.env("PATH", path).env("REAL_APT_GET", real).env("APT_CONFIG", self.path("apt.conf"));
        command.env("DPKG_ADMINDIR", self.path("admin")).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Returns the arguments of all install commands, without updates and simulations.
    fn installs(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("installs")).unwrap_or_default();
        let install = |line: &str| line.split_once("install ").map_or(line, |(_, rest)| rest).to_owned();
        text.lines().map(install).collect()
    }
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("a path");
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program)).filter(|path| path.exists());
    found.next().unwrap_or_else(|| panic!("{program} is missing"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn nothing_is_installed_when_nothing_is_missing() {
    let machine = Machine::new(&[]);
    machine.write("scripts/packages.txt", "run | emulator | true | guests\ntest | filter | false | packet rules\n");
    let output = machine.script().output().expect("sh");
    assert!(output.status.success() && text(&output).is_empty(), "{}", text(&output));
    assert_eq!(machine.installs(), Vec::<String>::new());
}

#[test]
fn default_versions_are_installed_if_they_fit() {
    let tools = package("emulator-tools", "1:7.1", "emulator", "");
    for installed in [&[][..], &[tools]] {
        let machine = Machine::new(installed);
        let output = machine.script().output().expect("sh");
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(machine.installs(), ["-y --no-remove --no-install-recommends emulator filter"], "{}", text(&output));
    }
}

#[test]
fn packages_for_an_installed_backport_come_from_the_backports() {
    let machine =
        Machine::new(&[package("emulator-tools", BACKPORT, "emulator", "Breaks: emulator-common (<< 1:8)\n")]);
    let output = machine.script().output().expect("sh");
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    assert!(!printed.contains("Remv ") && printed.contains(&format!("Inst emulator ({BACKPORT}")), "{printed}");
    // A package that needs no backport is not installed from there.
    assert!(printed.contains("Inst filter (1.0"), "{printed}");
    let expected = [
        "-y --no-remove --no-install-recommends filter",
        "-y --no-remove --no-install-recommends -t bookworm-backports emulator",
    ];
    assert_eq!(machine.installs(), expected, "{printed}");
    let sources: Vec<_> = fs::read_dir(machine.path("etc/sources")).expect("a folder").collect();
    assert_eq!(sources.len(), 1, "the machine's own sources must not change");
}

/// Returns a machine with tools for which no source has a compatible emulator.
fn incompatible() -> Machine {
    Machine::new(&[package("emulator-tools", "1:99", "emulator", "Breaks: emulator-common (<< 1:98)\n")])
}

#[test]
fn nothing_is_removed_without_a_terminal() {
    let machine = incompatible();
    let output = machine.script().output().expect("sh");
    let printed = text(&output);
    assert!(!output.status.success(), "{printed}");
    for part in ["emulator-tools [1:99]", "nothing was changed", "apt-get install --no-install-recommends emulator\n"] {
        assert!(printed.contains(part), "`{part}` is missing in: {printed}");
    }
    assert_eq!(machine.installs(), Vec::<String>::new(), "{printed}");
}

#[test]
fn removals_need_a_confirmation_at_the_terminal() {
    for (answer, success, expected) in [
        ("n\n", false, &[][..]),
        ("\n", false, &[]),
        (
            "y\n",
            true,
            &[
                "-y --no-remove --no-install-recommends filter",
                "-y --allow-downgrades --no-install-recommends emulator",
            ],
        ),
    ] {
        let machine = incompatible();
        let output = on_a_terminal(&machine.script(), answer);
        let printed = text(&output);
        assert!(printed.contains("emulator-tools [1:99]") && printed.contains("[y/N]"), "{printed}");
        assert_eq!(output.status.success(), success, "{answer:?}: {printed}");
        assert_eq!(machine.installs(), expected, "{answer:?}: {printed}");
    }
}

/// Runs a command on a new terminal, with `typed` as input.
fn on_a_terminal(command: &Command, typed: &str) -> Output {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut running = terminal
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("script, of the package bsdutils");
    running.stdin.as_mut().expect("a pipe").write_all(typed.as_bytes()).expect("it is typed");
    running.wait_with_output().expect("it exits")
}
