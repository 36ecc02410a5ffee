//! State of the daemon and identity of its sandbox, which the host sets by `/init`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use connectrpc::{ConnectError, RequestContext};
use hearth_types::Secret;
use http::HeaderMap;
use rustix::process::Rlimit;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

use crate::cgroups::Groups;
use crate::connections::Connections;
use crate::freeze::Freezer;
use crate::idle::Idle;
use crate::log::Log;
use crate::path_calls::{self, PathCalls};
use crate::regular;
use crate::users::User;

/// Environment variable with the sandbox's id.
pub(crate) const SANDBOX_ID: &str = "E2B_SANDBOX_ID";
/// Directory with the identity of the sandbox, for programs.
const RUN_DIRECTORY: &str = "/run/e2b";

/// State shared by all requests. Locks are held only for short sections without an await.
#[derive(Debug)]
pub(crate) struct State {
    identity: RwLock<Identity>,
    pub(crate) init: tokio::sync::Mutex<crate::init::InitState>,
    pub(crate) freezer: Freezer,
    pub(crate) connections: Arc<Connections>,
    pub(crate) idle: Idle,
    /// Notified when a process starts or ends, and when the guest is restored.
    pub(crate) activity: Notify,
    /// Slots of calls on files and directories.
    pub(crate) file_calls: Arc<PathCalls>,
    /// Slots of process starts.
    pub(crate) starts: Arc<PathCalls>,
    log: Log,
    config: DaemonConfig,
}

/// Fixed settings of the daemon.
#[derive(Debug, Clone, Default)]
pub(crate) struct DaemonConfig {
    /// In a guest the daemon manages the machine: it sets the clock and writes to `/run`. Elsewhere it changes nothing.
    pub(crate) in_microvm: bool,
    /// Limit of open files restored for children; `None` if the daemon did not change its own.
    pub(crate) child_descriptors: Option<Rlimit>,
    /// Control groups for processes; `None` if there are none.
    pub(crate) groups: Option<Arc<Groups>>,
    /// An earlier daemon exited here, and its identity is lost.
    pub(crate) is_restart: bool,
    /// Writes log lines to standard output as well.
    pub(crate) is_verbose: bool,
}

#[derive(Debug, Default)]
struct Identity {
    /// Set in a restarted daemon, which has no token.
    ///
    /// Requests except `/health` and `/init` are rejected until the host has sent the identity.
    is_awaiting_init: bool,
    access_token: Option<Secret>,
    /// Variables of the daemon itself; `/init` cannot replace them.
    internal: BTreeMap<String, String>,
    env_vars: BTreeMap<String, String>,
    default_user: String,
    default_workdir: Option<String>,
}

impl State {
    pub(crate) fn new(config: DaemonConfig) -> Arc<Self> {
        let in_microvm = config.in_microvm;
        let state = Self {
            identity: RwLock::new(Identity {
                is_awaiting_init: config.is_restart,
                default_user: "root".to_owned(),
                ..Identity::default()
            }),
            init: tokio::sync::Mutex::default(),
            freezer: Freezer::default(),
            connections: Arc::default(),
            idle: Idle::default(),
            activity: Notify::new(),
            file_calls: PathCalls::new("file calls", path_calls::FILE_CALLS_MAX, path_calls::FILE_CALLS_PER_MOUNT_MAX),
            starts: PathCalls::new("command starts", path_calls::STARTS_MAX, path_calls::STARTS_PER_MOUNT_MAX),
            log: Log::new(config.is_verbose),
            config,
        };
        state.set_internal("E2B_SANDBOX", if in_microvm { "true" } else { "false" }, 0o444);
        Arc::new(state)
    }

    /// Creates a state for tests, which changes nothing on the machine.
    #[cfg(test)]
    pub(crate) fn outside() -> Arc<Self> {
        Self::new(DaemonConfig::default())
    }

    /// Returns true in a restarted daemon until the host has sent the identity.
    pub(crate) fn is_awaiting_init(&self) -> bool {
        self.read(|identity| identity.is_awaiting_init)
    }

    /// Records that the host has sent the identity.
    pub(crate) fn mark_initialized(&self) {
        self.write(|identity| identity.is_awaiting_init = false);
    }

    pub(crate) fn in_microvm(&self) -> bool {
        self.config.in_microvm
    }

    pub(crate) fn child_descriptors(&self) -> Option<Rlimit> {
        self.config.child_descriptors
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn groups(&self) -> Option<&Arc<Groups>> {
        self.config.groups.as_ref()
    }

    fn read<T>(&self, look: impl FnOnce(&Identity) -> T) -> T {
        look(&self.identity.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Identity)) {
        change(&mut self.identity.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sets a variable of the daemon itself, and writes its file for programs that do not see the environment.
    pub(crate) fn set_internal(&self, name: &str, value: &str, mode: u32) {
        if self.read(|identity| identity.internal.get(name).is_some_and(|known| known == value)) {
            return;
        }
        self.write(|identity| {
            identity.internal.insert(name.to_owned(), value.to_owned());
        });
        if !self.in_microvm() {
            return;
        }
        let folder = Path::new(RUN_DIRECTORY);
        let path = folder.join(format!(".{name}"));
        let written = fs::create_dir_all(folder)
            .and_then(|()| regular::write(&path, value.as_bytes()))
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(mode)));
        if let Err(error) = written {
            self.log.error("envd", format!("writing {}: {error}", path.display()));
        }
    }

    pub(crate) fn set_env_vars(&self, vars: BTreeMap<String, String>) {
        self.write(|identity| identity.env_vars = vars);
    }

    pub(crate) fn set_access_token(&self, token: Option<Secret>) {
        self.write(|identity| identity.access_token = token);
    }

    pub(crate) fn set_default_user(&self, name: String) {
        self.write(|identity| identity.default_user = name);
    }

    pub(crate) fn set_default_workdir(&self, path: String) {
        self.write(|identity| identity.default_workdir = Some(path));
    }

    /// Returns the environment of every process: the user's variables, overridden by the daemon's.
    pub(crate) fn envs(&self) -> BTreeMap<String, String> {
        self.read(|identity| {
            let mut envs = identity.env_vars.clone();
            envs.extend(identity.internal.clone());
            envs
        })
    }

    pub(crate) fn default_user(&self) -> String {
        self.read(|identity| identity.default_user.clone())
    }

    pub(crate) fn default_workdir(&self) -> Option<String> {
        self.read(|identity| identity.default_workdir.clone())
    }

    pub(crate) fn access_token(&self) -> Option<Secret> {
        self.read(|identity| identity.access_token.clone())
    }

    /// Returns true if `given` is the access token, or if no token is set.
    ///
    /// Takes the same time for every wrong token of one length.
    pub(crate) fn admits(&self, given: Option<&[u8]>) -> bool {
        self.read(|identity| match (&identity.access_token, given) {
            (None, _) => true,
            (Some(token), Some(given)) => token.expose().as_bytes().ct_eq(given).into(),
            (Some(_), None) => false,
        })
    }

    /// Returns the user of an RPC: the one in its Basic credentials, or the default one.
    pub(crate) fn rpc_user(&self, context: &RequestContext) -> Result<User, ConnectError> {
        match basic_user(context.headers()) {
            Some(name) => {
                User::find(&name).ok_or_else(|| ConnectError::unauthenticated(format!("invalid username: '{name}'")))
            }
            None => {
                let name = self.default_user();
                if name.is_empty() {
                    return Err(ConnectError::unauthenticated("no user specified"));
                }
                let invalid = || ConnectError::unauthenticated(format!("invalid default user: '{name}'"));
                User::find(&name).ok_or_else(invalid)
            }
        }
    }
}

/// Returns the user name of Basic credentials (RFC 7617). Malformed ones are ignored, as is the password.
pub(crate) fn basic_user(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;

    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(credentials.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_admitted() {
        let state = State::outside();
        assert!(state.admits(None) && state.admits(Some(b"anything")));
        state.set_access_token(Some(Secret::new("secret")));
        assert!(state.admits(Some(b"secret")));
        for wrong in [None, Some(&b""[..]), Some(b"secre"), Some(b"secrets"), Some(b"Secret")] {
            assert!(!state.admits(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn the_daemon_s_variables_have_precedence() {
        let state = State::outside();
        state.set_env_vars([("E2B_SANDBOX", "forged"), ("A", "b")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let envs = state.envs();
        assert_eq!((envs["E2B_SANDBOX"].as_str(), envs["A"].as_str()), ("false", "b"));
    }

    #[test]
    fn basic_credentials() {
        let user = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value.parse().expect("a header value"));
            basic_user(&headers)
        };
        assert_eq!(user("Basic dXNlcjo="), Some("user".to_owned()));
        assert_eq!(user("basic cm9vdDpwdw=="), Some("root".to_owned()));
        for odd in ["Basic", "Basic ???", "Bearer dXNlcjo=", "Basic dXNlcg=="] {
            assert_eq!(user(odd), None, "{odd}");
        }
    }
}
