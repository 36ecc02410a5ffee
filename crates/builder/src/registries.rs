//! The host's settings for reaching the registries of Python and Node packages.
//!
//! As with apt, only settings for reaching the network are used: registries and their credentials, proxies and
//! certificates, retries. They are written to a folder that the package managers see while they fetch packages, and
//! that never becomes part of an image.
//!
//! ```text
//! environment   shell script with the variables of the package managers
//! pip.conf      see pip's documentation of its configuration
//! npmrc         see npmrc(5)
//! ca.pem        certificates of all authorities that this host trusts
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// Path of the folder in the root filesystem while packages are fetched.
const PATH_INSIDE: &str = "/run/registries";
const PIP_SETTINGS: &[&str] =
    &["client-cert", "default-timeout", "extra-index-url", "index-url", "proxy", "retries", "timeout", "trusted-host"];
const NPM_SETTINGS: &[&str] = &[
    "ca",
    "fetch-retries",
    "fetch-retry-factor",
    "fetch-retry-maxtimeout",
    "fetch-retry-mintimeout",
    "fetch-timeout",
    "https-proxy",
    "maxsockets",
    "noproxy",
    "proxy",
    "registry",
    "replace-registry-host",
    "strict-ssl",
];
const PROXY_VARIABLES: &[&str] = &["http_proxy", "https_proxy", "all_proxy", "no_proxy"];
/// Variables that name a file of certificates.
const CERTIFICATE_VARIABLES: &[&str] =
    &["PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "NPM_CONFIG_CAFILE"];
/// Certificates that distributions trust.
const CERTIFICATE_FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Maximum size of a configuration file or of a file of certificates, which are some hundred KiB.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Settings, by name.
type Settings = BTreeMap<String, String>;

/// Settings of a host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Registries {
    pip: Settings,
    npm: Settings,
    proxies: Settings,
    certificates: Vec<PathBuf>,
}

impl Registries {
    /// Reads the settings of the host whose root folder is `root`, and of the user with these variables.
    pub(crate) fn read(root: &Path, variables: &Settings) -> Self {
        let variable = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        let absolute = |path: &str| root.join(path.trim_start_matches('/'));
        let home = variable("HOME").map(|home| absolute(home));
        let below_home = |path: &str| home.iter().map(|home| home.join(path)).collect::<Vec<_>>();
        let from_variable = |name: &str| variable(name).map(|path| absolute(path)).into_iter().collect::<Vec<_>>();

        let pip_files = [
            vec![absolute("etc/xdg/pip/pip.conf"), absolute("etc/pip.conf")],
            below_home(".pip/pip.conf"),
            below_home(".config/pip/pip.conf"),
            from_variable("PIP_CONFIG_FILE"),
        ];
        let mut pip = Settings::new();
        for file in pip_files.concat() {
            pip.extend(pip_settings(&text(&file)));
        }
        let npm_files = [
            ["etc/npmrc", "usr/etc/npmrc", "usr/local/etc/npmrc"].map(absolute).to_vec(),
            from_variable("NPM_CONFIG_GLOBALCONFIG"),
            below_home(".npmrc"),
            from_variable("NPM_CONFIG_USERCONFIG"),
        ];
        let mut npm = Settings::new();
        for file in npm_files.concat() {
            npm.extend(npm_settings(&text(&file), variables));
        }
        for (name, value) in variables {
            if let Some(setting) = name.strip_prefix("PIP_") {
                pip.insert(setting.to_lowercase().replace('_', "-"), value.clone());
            } else if name.to_ascii_lowercase().starts_with("npm_config_") {
                npm.insert(name["npm_config_".len()..].to_lowercase().replace('_', "-"), value.clone());
            }
        }

        let named = CERTIFICATE_VARIABLES.iter().filter_map(|name| variable(name));
        let configured = pip.get("cert").into_iter().chain(npm.get("cafile"));
        let mut certificates: Vec<PathBuf> = Vec::new();
        for path in named.chain(configured).map(String::as_str).chain(CERTIFICATE_FILES.iter().copied()) {
            if let Ok(path) = absolute(path).canonicalize()
                && path.is_file()
                && !certificates.contains(&path)
            {
                certificates.push(path);
            }
        }
        pip.retain(|name, _| PIP_SETTINGS.contains(&name.as_str()));
        npm.retain(|name, _| is_npm_setting(name));
        let is_proxy = |name: &str| PROXY_VARIABLES.contains(&name.to_ascii_lowercase().as_str());
        let proxies = variables.iter().filter(|(name, _)| is_proxy(name));
        Self { pip, npm, proxies: proxies.map(|(name, value)| (name.clone(), value.clone())).collect(), certificates }
    }

    /// Writes the files to a new folder, which only this user can read: the settings may have credentials.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        fs::DirBuilder::new().mode(0o700).create(folder).map_err(Error::file("creating the folder", folder))?;
        let mut certificates = String::new();
        for file in &self.certificates {
            certificates.push_str(&text(file));
            certificates.push('\n');
        }
        let files = [
            ("environment", self.environment()),
            ("pip.conf", self.pip_conf()),
            ("npmrc", self.npmrc()),
            ("ca.pem", certificates),
        ];
        for (name, content) in files {
            let path = folder.join(name);
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, content.as_bytes()));
            written.map_err(Error::file("writing", &path))?;
        }
        Ok(())
    }

    fn environment(&self) -> String {
        let mut variables = Settings::from(
            [
                ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
                ("LANG", "C.UTF-8".to_owned()),
                ("HOME", format!("{PATH_INSIDE}/home")),
                ("PIP_CONFIG_FILE", format!("{PATH_INSIDE}/pip.conf")),
                ("NPM_CONFIG_USERCONFIG", format!("{PATH_INSIDE}/npmrc")),
                ("NPM_CONFIG_CACHE", format!("{PATH_INSIDE}/npm-cache")),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        if !self.certificates.is_empty() {
            for name in CERTIFICATE_VARIABLES {
                variables.insert((*name).to_owned(), format!("{PATH_INSIDE}/ca.pem"));
            }
        }
        variables.extend(self.proxies.clone());
        let lines = variables.iter().map(|(name, value)| format!("export {name}={}\n", shell_quoted(value)));
        lines.collect()
    }

    fn pip_conf(&self) -> String {
        let mut text = "[global]\n".to_owned();
        for (name, value) in &self.pip {
            // Continued lines are indented.
            text.push_str(&format!("{name} = {}\n", value.lines().collect::<Vec<_>>().join("\n    ")));
        }
        text
    }

    fn npmrc(&self) -> String {
        self.npm.iter().map(|(name, value)| format!("{name}={}\n", value.replace('\n', " "))).collect()
    }
}

/// Returns the text of a file, or an empty one: a host need not have any of these files.
fn text(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= FILE_BYTES_MAX => {
            fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// Parses the sections of a pip.conf that apply to `pip install`. Indented lines continue a value.
fn pip_settings(text: &str) -> Settings {
    let mut settings = Settings::new();
    let (mut applies, mut last) = (false, None);
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[') {
            applies = section.starts_with("global]") || section.starts_with("install]");
            last = None;
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = last.as_ref().and_then(|name| settings.get_mut(name)) {
                *value = format!("{value}\n{}", line.trim());
            }
        } else if applies && let Some((name, value)) = line.split_once(['=', ':']) {
            let name = name.trim().to_lowercase().replace('_', "-");
            settings.insert(name.clone(), value.trim().to_owned());
            last = Some(name);
        }
    }
    settings
}

/// Parses an npmrc and replaces `${NAME}` by the variable.
fn npm_settings(text: &str, variables: &Settings) -> Settings {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| {
            let mut value = value.trim().to_owned();
            for (variable, text) in variables {
                value = value.replace(&format!("${{{variable}}}"), text);
            }
            (name.trim().to_owned(), value)
        })
        .collect()
}

/// Returns true for settings that concern the network: also those of one registry, and the registry of a scope.
fn is_npm_setting(name: &str) -> bool {
    NPM_SETTINGS.contains(&name) || name.starts_with("//") || (name.starts_with('@') && name.ends_with(":registry"))
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("creates");
            fs::write(path, text).expect("writes");
        }
        root
    }

    #[test]
    fn only_settings_for_the_network_are_used() {
        let root = host(&[
            (
                "etc/pip.conf",
                "[global]\nindex-url = https://one.example/simple\ncert = /ca/own.pem\n[list]\ntimeout = 1\n",
            ),
            (
                "home/u/.config/pip/pip.conf",
                "[install]\n# comment\nextra_index_url =\n    https://two.example\n    https://three.example\ntarget = /x\n",
            ),
            ("etc/npmrc", "prefix=/x\ncafile=/ca/own.pem\n"),
            (
                "home/u/.npmrc",
                "registry=https://npm.example/\n//npm.example/:_authToken=${TOKEN}\n@a:registry=https://a.example\nignore-scripts=false\n",
            ),
            ("ca/own.pem", "own"),
            ("etc/ssl/certs/ca-certificates.crt", "system"),
        ]);
        let variables = variables(&[
            ("HOME", "/home/u"),
            ("TOKEN", "secret"),
            ("PIP_CERT", "/ca/own.pem"),
            ("PIP_DEFAULT_TIMEOUT", "180"),
            ("PIP_TARGET", "/y"),
            ("npm_config_maxsockets", "3"),
            ("HTTPS_PROXY", "http://it's.example"),
            ("PATH", "/host"),
        ]);
        let registries = Registries::read(root.path(), &variables);
        let folder = root.path().join("registries");
        registries.write(&folder).expect("writes");
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect("written");
        assert_eq!(
            read("pip.conf"),
            "[global]\ndefault-timeout = 180\nextra-index-url = \n    https://two.example\n    https://three.example\n\
             index-url = https://one.example/simple\n"
        );
        assert_eq!(
            read("npmrc"),
            "//npm.example/:_authToken=secret\n@a:registry=https://a.example\nmaxsockets=3\n\
             registry=https://npm.example/\n"
        );
        assert_eq!(read("ca.pem"), "own\nsystem\n");
        let environment = read("environment");
        assert!(environment.contains("export HTTPS_PROXY='http://it'\\''s.example'\n"), "{environment}");
        assert!(environment.contains("export PIP_CERT='/run/registries/ca.pem'\n"), "{environment}");
        assert!(!environment.contains("/host") && !environment.contains("secret"), "{environment}");
    }

    #[test]
    fn a_host_without_settings_uses_the_defaults() {
        let root = host(&[]);
        let registries = Registries::read(root.path(), &Settings::new());
        assert_eq!(registries, Registries::default());
        assert!(!registries.environment().contains("PIP_CERT"));
    }
}
