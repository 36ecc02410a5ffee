//! Debian's packages, fetched by an apt with its own sources, lists and cache, separate from the host's.
//!
//! A host of any distribution with apt gets the same packages, nothing is installed on it, and no hook of its apt runs.
//! Only the host's settings for reaching the network are used.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::Error;
use crate::mirror::Mirror;
use crate::progress::{Progress, Unit};
use crate::tool::Tool;

/// The host's settings that are used: proxies and certificates for reaching mirrors, retries, and checks of the clock.
const NETWORK_SETTINGS: &[&str] = &[
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::http::Proxy-Auto-Detect",
    "Acquire::https::CaInfo",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
];

/// A separate apt in a folder.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
    mirror: Mirror,
    settings: Vec<String>,
}

impl Apt {
    /// Sets up apt in `folder`. Lists and packages that an earlier run fetched there are reused.
    pub(crate) async fn open(folder: &Path, mirror: Mirror) -> Result<Self, Error> {
        let settings = host_settings().await?;
        let apt = Self { folder: folder.to_owned(), mirror, settings };
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = apt.folder.join(part);
            fs::create_dir_all(&path).map_err(Error::file("creating the folder", &path))?;
        }
        // No package counts as installed, so everything that a package needs is fetched with it.
        apt.write("state/status", "")?;
        apt.write("sources.list", &(apt.mirror.lines().join("\n") + "\n"))?;
        apt.write("apt.conf", &apt.configuration())?;
        Ok(apt)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(Error::file("writing", &path))
    }

    fn configuration(&self) -> String {
        let folder = self.folder.display();
        let mut text = format!(
            "Dir::Etc::main \"/dev/null\";
Dir::Etc::parts \"/dev/null\";
Dir::Etc::sourcelist \"{folder}/sources.list\";
Dir::Etc::sourceparts \"/dev/null\";
Dir::Etc::preferences \"/dev/null\";
Dir::Etc::preferencesparts \"/dev/null\";
Dir::State \"{folder}/state\";
Dir::State::status \"{folder}/state/status\";
Dir::Cache \"{folder}/cache\";
APT::Architecture \"amd64\";
APT::Architectures {{ \"amd64\"; }};
APT::Install-Recommends \"false\";
APT::Sandbox::User \"root\";
Acquire::Languages \"none\";
"
        );
        for setting in &self.settings {
            text.push_str(setting);
            text.push('\n');
        }
        text
    }

    /// Returns the network settings, as lines of an apt configuration.
    pub(crate) fn settings(&self) -> &[String] {
        &self.settings
    }

    /// Returns the sources, as lines of a `sources.list`.
    pub(crate) fn sources(&self) -> Vec<String> {
        self.mirror.lines()
    }

    /// Returns the folder of fetched packages.
    pub(crate) fn archives(&self) -> PathBuf {
        self.folder.join("cache/archives")
    }

    fn tool(&self, program: &'static str) -> Tool {
        let configuration = self.folder.join("apt.conf");
        // Also on the command line, because leftover processes of a killed run are found by their arguments.
        Tool::new(program, "apt").env("APT_CONFIG", &configuration).arg("-q").arg("-c").arg(configuration)
    }

    /// Fetches the package lists.
    pub(crate) async fn update(&self, progress: &dyn Progress) -> Result<(), Error> {
        progress.phase("package lists", Unit::Steps, None);
        let tool = self.tool("apt-get").args(["-o", "APT::Update::Error-Mode=any", "update"]);
        tool.run("fetching Debian's package lists", |_| {}, || {}).await
    }

    /// Returns one field of the newest version of a package.
    pub(crate) async fn field(&self, package: &str, field: &str) -> Result<String, Error> {
        let action = "looking up a package";
        let lines = self.tool("apt-cache").args(["--no-all-versions", "show", package]).lines(action).await?;
        let value = lines.iter().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let missing = || Error::Unexpected { action, reason: format!("the package {package} has no {field}") };
        Ok(value.ok_or_else(missing)?.trim().to_owned())
    }

    /// Fetches one package into `into`, without its dependencies.
    pub(crate) async fn download(&self, package: &str, into: &Path, progress: &dyn Progress) -> Result<(), Error> {
        let size: u64 = self.field(package, "Size").await?.parse().unwrap_or(0);
        progress.phase("kernel download", Unit::Bytes, Some(size));
        let tool = self.tool("apt-get").folder(into).args(["download", package]);
        tool.run("fetching the kernel", |_| {}, || progress.advance(bytes_in(into), size)).await
    }

    /// Fetches packages and their dependencies into [`archives`](Self::archives), except those already there.
    pub(crate) async fn fetch(&self, packages: &[&str], progress: &dyn Progress) -> Result<(), Error> {
        let mut install = vec!["-y", "--download-only", "install"];
        install.extend(packages);
        let plan = self.tool("apt-get").arg("--print-uris").args(&install);
        let missing = plan.lines("planning the template's packages").await?;
        let size = missing.iter().filter_map(|line| size_in_plan(line)).sum();
        progress.phase("package download", Unit::Bytes, Some(size));
        let archives = self.archives();
        let before = bytes_in(&archives);
        let tick = || progress.advance(bytes_in(&archives).saturating_sub(before), size);
        self.tool("apt-get").args(&install).run("fetching the template's packages", |_| {}, tick).await
    }
}

/// Parses the size in a line of `--print-uris`: `'uri' name size hash`.
fn size_in_plan(line: &str) -> Option<u64> {
    line.strip_prefix('\'')?.rsplit_once('\'')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the size of all files below a folder to which other processes write.
fn bytes_in(folder: &Path) -> u64 {
    let entries = WalkDir::new(folder).into_iter().flatten();
    let files = entries.filter_map(|entry| entry.metadata().ok()).filter(Metadata::is_file);
    files.map(|file| file.len()).sum()
}

/// Returns the host's network settings, as lines of an apt configuration.
async fn host_settings() -> Result<Vec<String>, Error> {
    let dump = Tool::new("apt-config", "apt").arg("dump").lines("reading apt's settings").await?;
    Ok(dump.into_iter().filter(|line| is_network_setting(line)).collect())
}

/// Checks a line of `apt-config dump`: `Name "value";`. Settings for single hosts are named below the general ones.
fn is_network_setting(line: &str) -> bool {
    let Some((name, value)) = line.split_once(' ') else { return false };
    let known = |setting: &str| {
        let rest = name.get(..setting.len()).filter(|head| head.eq_ignore_ascii_case(setting));
        rest.is_some() && matches!(name[setting.len()..].chars().next(), None | Some(':'))
    };
    value != "\"\";" && NETWORK_SETTINGS.iter().any(|setting| known(setting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_settings_of_the_host_are_used() {
        for (line, taken) in [
            ("Acquire::http::Proxy \"http://proxy.example:3128\";", true),
            ("Acquire::http::Proxy::mirror.example \"DIRECT\";", true),
            ("acquire::check-date \"false\";", true),
            ("Acquire::http::Proxy \"\";", false),
            ("Acquire::http::ProxyX \"x\";", false),
            ("APT::Update::Post-Invoke:: \"rm -f /x || true\";", false),
            ("Acquire", false),
        ] {
            assert_eq!(is_network_setting(line), taken, "{line}");
        }
    }

    #[test]
    fn sizes_follow_the_quoted_uri() {
        let line = "'http://m.example/p/a%20b_1.deb' a_1_all.deb 12345 SHA256:abc";
        assert_eq!(size_in_plan(line), Some(12345));
        assert_eq!(size_in_plan("Reading package lists..."), None);
    }
}
