//! Source of Debian's packages.
//!
//! A Debian host has a mirror configured that it can reach, so that one is used; other hosts use Debian's own. In both
//! cases apt verifies the packages with Debian's keys.

use std::fs;
use std::path::Path;

use crate::Error;

/// Debian's own mirror network, which is also the default of apt's tools.
const DEFAULT: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY: &str = "http://deb.debian.org/debian-security";
/// Debian's keys, from the package of this name.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const KEYRING_PACKAGE: &str = "debian-archive-keyring";

/// Mirrors of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    suite: String,
    main: String,
    security: Option<String>,
}

impl Mirror {
    /// Returns the mirror for `suite`: the configured one, the host's, or Debian's.
    pub(crate) fn choose(suite: &str, configured: Option<&str>) -> Result<Self, Error> {
        if !Path::new(KEYRING).exists() {
            return Err(Error::ToolMissing { program: KEYRING.to_owned(), package: KEYRING_PACKAGE });
        }
        Ok(Self::of(suite, configured, HostMirrors::read(Path::new("/etc"))))
    }

    fn of(suite: &str, configured: Option<&str>, host: HostMirrors) -> Self {
        let suite = suite.to_owned();
        let Some(configured) = configured else {
            let main = host.main.unwrap_or_else(|| DEFAULT.to_owned());
            let security = host.security.unwrap_or_else(|| DEFAULT_SECURITY.to_owned());
            return Self { suite, main, security: Some(security) };
        };
        // An operator who configures a mirror may be unable to reach others. Mirrors have both archives beside each
        // other.
        let main = trimmed(configured);
        let security = main.ends_with("/debian").then(|| format!("{main}-security"));
        Self { suite, main, security }
    }

    /// Returns the lines of a `sources.list` (sources.list(5)).
    pub(crate) fn lines(&self) -> Vec<String> {
        let Self { suite, main, security } = self;
        let mut sources = vec![format!("{main} {suite}"), format!("{main} {suite}-updates")];
        sources.extend(security.iter().map(|security| format!("{security} {suite}-security")));
        sources.into_iter().map(|source| format!("deb [signed-by={KEYRING}] {source} main")).collect()
    }
}

/// Debian's mirrors in the configuration of the host's apt.
#[derive(Debug, Default, PartialEq, Eq)]
struct HostMirrors {
    main: Option<String>,
    security: Option<String>,
}

impl HostMirrors {
    /// Reads the host's sources below `etc`; empty if the host does not run Debian.
    fn read(etc: &Path) -> Self {
        let release = fs::read_to_string(etc.join("os-release")).unwrap_or_default();
        let value = |key: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        let (Some(id), Some(codename)) = (value("ID"), value("VERSION_CODENAME")) else { return Self::default() };
        if id != "debian" {
            return Self::default();
        }
        let apt = etc.join("apt");
        let mut files = vec![apt.join("sources.list")];
        let parts = fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten();
        files.extend(parts.map(|entry| entry.path()));
        files.sort();
        let mut host = Self::default();
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let sources = match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => stanzas(&text),
                Some("list") => lines(&text),
                _ => continue,
            };
            for source in sources {
                host.add_source(&codename, source);
            }
        }
        host
    }

    /// Records a source if it is Debian's. Other archives have other suites, so the suite identifies Debian's.
    fn add_source(&mut self, codename: &str, source: Source) {
        if !source.components.iter().any(|component| component == "main") {
            return;
        }
        if source.suites.iter().any(|suite| suite == codename) {
            self.main.get_or_insert_with(|| source.uri.clone());
        }
        if source.suites.iter().any(|suite| *suite == format!("{codename}-security")) {
            self.security.get_or_insert(source.uri);
        }
    }
}

struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
}

/// Parses the one-line format: `deb [options] uri suite component...`.
fn lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source { uri: trimmed(&words.next()?), suites: vec![words.next()?], components: words.collect() })
}

/// Parses the deb822 format: stanzas of `Key: value`, continued by indented lines.
fn stanzas(text: &str) -> Vec<Source> {
    let uncommented: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    uncommented.split(|line| line.trim().is_empty()).filter_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Option<Source> {
    let words = |key: &str| -> Vec<String> {
        let start =
            lines.iter().position(|line| line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(key)));
        let Some(start) = start else { return Vec::new() };
        let first = lines[start].split_once(':').map_or("", |(_, value)| value);
        let continued = lines[start + 1..].iter().take_while(|line| line.starts_with([' ', '\t']));
        std::iter::once(&first).chain(continued).flat_map(|line| line.split_whitespace()).map(str::to_owned).collect()
    };
    let disabled = words("Enabled").first().is_some_and(|word| word == "no");
    if disabled || !words("Types").iter().any(|kind| kind == "deb") {
        return None;
    }
    Some(Source { uri: trimmed(words("URIs").first()?), suites: words("Suites"), components: words("Components") })
}

fn trimmed(uri: &str) -> String {
    uri.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(release: &str, files: &[(&str, &str)]) -> HostMirrors {
        let etc = tempfile::tempdir().expect("temporary folder");
        fs::create_dir_all(etc.path().join("apt/sources.list.d")).expect("creates");
        fs::write(etc.path().join("os-release"), release).expect("writes");
        for (name, text) in files {
            fs::write(etc.path().join("apt").join(name), text).expect("writes");
        }
        HostMirrors::read(etc.path())
    }

    const DEBIAN: &str = "NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn a_debian_host_s_mirrors_are_found_in_both_formats() {
        let one_line = "# comment\ndeb [arch=amd64 signed-by=/k] https://other.example/apt stable main\n\
                        deb [signed-by=/k] http://mirror.example/debian/ bookworm main contrib\n\
                        deb-src http://mirror.example/source bookworm main\n";
        let stanzas = "Types: deb\n# comment\nURIs: http://mirror.example/security\nSuites:\n bookworm-security\n\
                       Components: main\n\nTypes: deb\nURIs: https://node.example/\nSuites: nodistro\nComponents: main\n\n\
                       Enabled: no\nTypes: deb\nURIs: https://off.example/\nSuites: bookworm\nComponents: main\n";
        let found = host(DEBIAN, &[("sources.list", one_line), ("sources.list.d/debian.sources", stanzas)]);
        assert_eq!(found.main.as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(found.security.as_deref(), Some("http://mirror.example/security"));
    }

    #[test]
    fn another_distribution_s_mirrors_are_ignored() {
        let ubuntu = "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";
        let found = host(ubuntu, &[("sources.list", "deb http://archive.example/ubuntu noble main\n")]);
        assert_eq!(found, HostMirrors::default());
        assert_eq!(host("", &[]), HostMirrors::default());
    }

    #[test]
    fn a_release_has_three_suites() {
        let lines = Mirror::of("s", None, HostMirrors::default()).lines();
        let expected = [
            format!("{DEFAULT} s main"),
            format!("{DEFAULT} s-updates main"),
            format!("{DEFAULT_SECURITY} s-security main"),
        ];
        assert_eq!(lines, expected.map(|source| format!("deb [signed-by={KEYRING}] {source}")));
    }

    #[test]
    fn a_configured_mirror_is_the_only_one() {
        let host = || HostMirrors { main: Some("http://h/debian".into()), security: Some("http://h/security".into()) };
        let security = |configured| Mirror::of("s", Some(configured), host()).security;
        assert_eq!(security("http://m.example/debian/").as_deref(), Some("http://m.example/debian-security"));
        assert_eq!(security("http://m.example/copy"), None);
        assert_eq!(Mirror::of("s", None, host()).main, "http://h/debian");
    }
}
