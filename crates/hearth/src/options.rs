//! Configuration: one name for each option, as a flag (`--api-listen`), a variable (`HEARTH_API_LISTEN`) and a key of the
//! TOML file (`api_listen`). A flag wins over a variable, a variable over the file, the file over the default.

pub(crate) mod acme;
mod disk;
mod egress;
mod values;

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use hearth_api::KeySet;
use hearth_types::{NodeId, Secret};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::domain::Domain;
use crate::tls::CertificateFiles;
pub(crate) use values::{Accelerator, GuestLogs, LogFormat, NetworkMode, TlsListen};

/// Where the first listeners are when nobody says otherwise.
const API_LISTEN: &str = "127.0.0.1:3000";
const EDGE_LISTEN: &str = "127.0.0.1:3002";
const TLS_LISTEN: &str = "127.0.0.1:3443";
/// The range that guests' uplinks get addresses from.
const NETWORK_BLOCK: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 0);
/// Slots kept ready: a burst of creates this long costs no waiting for namespaces.
const SLOTS_PREPARED: usize = 8;
/// Host memory per sandbox when the limit is derived: an idle guest takes a tenth of it, a busy one up to twice.
const MEMORY_MIB_PER_SANDBOX: u64 = 256;
/// How long a guest may take until it answers, with many starting at once under emulation.
const READY_SECONDS: u64 = 30;
/// The control role gives a create up after 55 s: the node must have told why before.
const READY_SECONDS_MAX: u64 = 50;

/// What an operator may set. All optional: see [`Settings`] for what becomes of it.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Everything Hearth keeps [default: /var/lib/hearth as root, hearth in the XDG data folder otherwise]
    #[arg(long, env = "HEARTH_DATA_DIR", global = true, value_name = "FOLDER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the REST API listens [default: 127.0.0.1:3000]
    #[arg(long, env = "HEARTH_API_LISTEN", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_listen: Option<SocketAddr>,
    /// Where sandboxes are reached [default: 127.0.0.1:3002]
    #[arg(long, env = "HEARTH_EDGE_LISTEN", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) edge_listen: Option<SocketAddr>,
    /// Where `api.DOMAIN` and `PORT-SANDBOX.DOMAIN` are served over TLS, or `off` [default: 127.0.0.1:3443]
    #[arg(long, env = "HEARTH_TLS_LISTEN", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_listen: Option<TlsListen>,
    /// The certificate for the domain and `*.DOMAIN`, with its chain, as PEM [default: of an authority of this instance]
    #[arg(long, env = "HEARTH_TLS_CERT", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of that certificate, as PEM
    #[arg(long, env = "HEARTH_TLS_KEY", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Certificates for the domain and `*.DOMAIN` by ACME: whom the issuer writes to, who agrees to its terms
    #[arg(long, env = "HEARTH_ACME_CONTACT", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_contact: Option<String>,
    /// The issuer of those certificates [default: Let's Encrypt's https://acme-v02.api.letsencrypt.org/directory]
    #[arg(long, env = "HEARTH_ACME_DIRECTORY", global = true, value_name = "URL", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_directory: Option<String>,
    /// What proves that the domain is ours (DNS-01): called as `PROGRAM set NAME VALUE`, it adds a TXT record, and as
    /// `PROGRAM remove NAME VALUE` it takes that one away
    #[arg(long, env = "HEARTH_ACME_HOOK", global = true, value_name = "PROGRAM", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_hook: Option<PathBuf>,
    /// An authority, as PEM, that is trusted besides the host's, towards the issuer only [default: none]
    #[arg(long, env = "HEARTH_ACME_ROOT", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_root: Option<PathBuf>,
    /// Seconds until the domain's name servers all have a record that was set [default: 30]
    #[arg(long, env = "HEARTH_ACME_WAIT", global = true, value_name = "SECONDS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_wait: Option<u64>,
    /// Domain of names, with the port where it is not 443, told to clients [default: hearth.localhost:3443]
    #[arg(long, env = "HEARTH_DOMAIN", global = true, value_name = "DOMAIN", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    /// This host's name among nodes [default: local]
    #[arg(long, env = "HEARTH_NODE_ID", global = true, value_name = "NAME", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_id: Option<String>,
    /// Where rows are kept: sqlite://PATH?mode=rwc or postgres://USER@HOST/DATABASE, with the password in PGPASSWORD or
    /// ~/.pgpass [default: hearth.db in the data directory]
    #[arg(long, env = "HEARTH_DATABASE_URL", global = true, value_name = "URL", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database_url: Option<String>,
    /// The secret that signs tokens of users (JWT, HS256), as Supabase has one
    #[arg(long, env = "HEARTH_USER_SECRET_FILE", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_secret_file: Option<PathBuf>,
    /// The published keys of who issues tokens of users (JWT): a JSON Web Key Set in a file, or at https://…
    #[arg(long, env = "HEARTH_USER_JWKS", global = true, value_name = "FILE|URL", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_jwks: Option<String>,
    /// Whom tokens of users have to be for, their claim `aud` [default: --oidc-client-id, or not checked]
    #[arg(long, env = "HEARTH_USER_AUDIENCE", global = true, value_name = "TEXT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_audience: Option<String>,
    /// Who has to have issued tokens of users, their claim `iss` [default: --oidc-issuer, or not checked]
    #[arg(long, env = "HEARTH_USER_ISSUER", global = true, value_name = "TEXT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_issuer: Option<String>,
    /// Where users log in, an OpenID Connect issuer: https://… [default: here, with passwords]
    #[arg(long, env = "HEARTH_OIDC_ISSUER", global = true, value_name = "URL", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc_issuer: Option<String>,
    /// What that issuer calls this server; it has to know https://DOMAIN/docs/api/cli/callback
    #[arg(long, env = "HEARTH_OIDC_CLIENT_ID", global = true, value_name = "ID", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc_client_id: Option<String>,
    /// What this server proves itself to that issuer with [default: nothing, as a public client]
    #[arg(long, env = "HEARTH_OIDC_SECRET_FILE", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc_secret_file: Option<PathBuf>,
    /// API requests of one team in a minute [default: any number]
    #[arg(
        long,
        env = "HEARTH_TEAM_REQUESTS_PER_MINUTE",
        global = true,
        value_name = "NUMBER",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) team_requests_per_minute: Option<NonZeroU32>,
    /// API requests from one address in a minute [default: any number]
    #[arg(
        long,
        env = "HEARTH_ADDRESS_REQUESTS_PER_MINUTE",
        global = true,
        value_name = "NUMBER",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address_requests_per_minute: Option<NonZeroU32>,
    /// Sandboxes this host runs at once [default: one for every 256 MiB of memory]
    #[arg(long, env = "HEARTH_SANDBOXES_MAX", global = true, value_name = "NUMBER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandboxes_max: Option<usize>,
    /// MiB of the data directory's disk that sandboxes never get [default: 1024]
    #[arg(long, env = "HEARTH_DISK_RESERVE_MIB", global = true, value_name = "MIB", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_reserve_mib: Option<u64>,
    /// How many times more disk sandboxes see than they are certain to get; with 1, each can fill its disk [default: 4]
    #[arg(long, env = "HEARTH_DISK_OVERCOMMIT", global = true, value_name = "NUMBER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_overcommit: Option<u32>,
    /// Seconds a guest may take until it answers [default: 30]
    #[arg(long, env = "HEARTH_READY_SECONDS", global = true, value_name = "SECONDS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_seconds: Option<u64>,
    /// How guests are connected [default: auto]
    #[arg(long, env = "HEARTH_NETWORK_MODE", global = true, value_name = "MODE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network_mode: Option<NetworkMode>,
    /// First address of the private /16 for guests' uplinks [default: 10.11.0.0]
    #[arg(long, env = "HEARTH_NETWORK_BLOCK", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network_block: Option<Ipv4Addr>,
    /// Network slots kept ready [default: 8]
    #[arg(long, env = "HEARTH_SLOTS_PREPARED", global = true, value_name = "NUMBER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slots_prepared: Option<usize>,
    /// IPv4 ranges that no guest may send to, besides private and reserved ones; repeated, or separated by commas
    #[arg(
        long,
        env = "HEARTH_EGRESS_DENY",
        global = true,
        value_delimiter = ',',
        value_name = "CIDR",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) egress_deny: Vec<String>,
    /// What executes guests' instructions [default: auto]
    #[arg(long, env = "HEARTH_ACCELERATOR", global = true, value_name = "KIND", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accelerator: Option<Accelerator>,
    /// The QEMU program [default: qemu-system-x86_64]
    #[arg(long, env = "HEARTH_QEMU", global = true, value_name = "PROGRAM", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) qemu: Option<PathBuf>,
    /// Where Debian's packages for guests come from [default: this host's own mirror, or Debian's]
    #[arg(long, env = "HEARTH_MIRROR", global = true, value_name = "URL", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mirror: Option<String>,
    /// What is logged: a level, or a filter such as info,hearth_api=debug [default: warn on a terminal, info elsewhere]
    #[arg(long, env = "HEARTH_LOG", global = true, value_name = "FILTER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, env = "HEARTH_LOG_FORMAT", global = true, value_name = "FORMAT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_format: Option<LogFormat>,
    /// What sandboxes' logs have [default: events]
    #[arg(long, env = "HEARTH_GUEST_LOGS", global = true, value_name = "WHAT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest_logs: Option<GuestLogs>,
}

/// Where users log in, if it is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Oidc {
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    pub(crate) secret_file: Option<PathBuf>,
}

/// What is in force.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) api_listen: SocketAddr,
    pub(crate) edge_listen: SocketAddr,
    pub(crate) tls_listen: TlsListen,
    /// `None`: asked for, or of an authority of ours.
    pub(crate) tls_files: Option<CertificateFiles>,
    /// `None`: nobody is asked for certificates.
    pub(crate) acme: Option<acme::Acme>,
    /// `None`: that of an instance on this machine.
    pub(crate) domain: Option<Domain>,
    pub(crate) node_id: NodeId,
    pub(crate) database_url: Option<String>,
    pub(crate) user_secret_file: Option<PathBuf>,
    pub(crate) user_jwks: Option<String>,
    pub(crate) user_audience: Option<String>,
    pub(crate) user_issuer: Option<String>,
    /// `None`: users log in here.
    pub(crate) oidc: Option<Oidc>,
    pub(crate) team_requests_per_minute: Option<NonZeroU32>,
    pub(crate) address_requests_per_minute: Option<NonZeroU32>,
    pub(crate) sandboxes_max: usize,
    pub(crate) disk: disk::Sharing,
    pub(crate) ready_timeout: Duration,
    pub(crate) network_mode: NetworkMode,
    pub(crate) network_block: Ipv4Addr,
    pub(crate) slots_prepared: usize,
    pub(crate) egress_denied: Vec<Ipv4Net>,
    pub(crate) accelerator: Accelerator,
    pub(crate) qemu: PathBuf,
    pub(crate) mirror: Option<String>,
    pub(crate) log: Option<String>,
    pub(crate) log_format: LogFormat,
    pub(crate) guest_logs: GuestLogs,
}

/// What of the surroundings has a say in defaults. By value, so that the rules can be tested.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) is_root: bool,
    pub(crate) home: Option<PathBuf>,
    pub(crate) xdg_data_home: Option<PathBuf>,
    pub(crate) xdg_config_home: Option<PathBuf>,
    pub(crate) memory_mib: u64,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn here() -> Self {
        let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            is_root: hearth_host::requirement::is_root(),
            home: folder("HOME"),
            xdg_data_home: folder("XDG_DATA_HOME"),
            xdg_config_home: folder("XDG_CONFIG_HOME"),
            memory_mib: hearth_host::requirement::memory_mib().unwrap_or(4096),
        }
    }

    fn data_dir(&self) -> Result<PathBuf> {
        if self.is_root {
            return Ok(PathBuf::from("/var/lib/hearth"));
        }
        let data = self.xdg_data_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/share")));
        Ok(data.context("neither HOME nor XDG_DATA_HOME is set: name a folder with --data-dir")?.join("hearth"))
    }

    /// The configuration file that is read when none is named.
    fn config_file(&self) -> Option<PathBuf> {
        let folder = if self.is_root {
            PathBuf::from("/etc")
        } else {
            self.xdg_config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")))?
        };
        Some(folder.join("hearth/hearth.toml"))
    }
}

impl Options {
    /// Reads the file that is named, or the usual one if it is there.
    pub(crate) fn from_file(named: Option<&Path>, surroundings: &Surroundings) -> Result<Self> {
        let path = match (named, surroundings.config_file()) {
            (Some(path), _) => path.to_owned(),
            (None, Some(path)) if path.exists() => path,
            (None, _) => return Ok(Self::default()),
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading the configuration {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))
    }

    /// Fills what is not set here from `lower`.
    fn over(self, lower: Self) -> Self {
        let Self {
            data_dir,
            api_listen,
            edge_listen,
            tls_listen,
            tls_cert,
            tls_key,
            acme_contact,
            acme_directory,
            acme_hook,
            acme_root,
            acme_wait,
            domain,
            node_id,
            database_url,
            user_secret_file,
            user_jwks,
            user_audience,
            user_issuer,
            oidc_issuer,
            oidc_client_id,
            oidc_secret_file,
            team_requests_per_minute,
            address_requests_per_minute,
            sandboxes_max,
            disk_reserve_mib,
            disk_overcommit,
            ready_seconds,
            network_mode,
            network_block,
            slots_prepared,
            egress_deny,
            accelerator,
            qemu,
            mirror,
            log,
            log_format,
            guest_logs,
        } = self;
        Self {
            data_dir: data_dir.or(lower.data_dir),
            api_listen: api_listen.or(lower.api_listen),
            edge_listen: edge_listen.or(lower.edge_listen),
            tls_listen: tls_listen.or(lower.tls_listen),
            tls_cert: tls_cert.or(lower.tls_cert),
            tls_key: tls_key.or(lower.tls_key),
            acme_contact: acme_contact.or(lower.acme_contact),
            acme_directory: acme_directory.or(lower.acme_directory),
            acme_hook: acme_hook.or(lower.acme_hook),
            acme_root: acme_root.or(lower.acme_root),
            acme_wait: acme_wait.or(lower.acme_wait),
            domain: domain.or(lower.domain),
            node_id: node_id.or(lower.node_id),
            database_url: database_url.or(lower.database_url),
            user_secret_file: user_secret_file.or(lower.user_secret_file),
            user_jwks: user_jwks.or(lower.user_jwks),
            user_audience: user_audience.or(lower.user_audience),
            user_issuer: user_issuer.or(lower.user_issuer),
            oidc_issuer: oidc_issuer.or(lower.oidc_issuer),
            oidc_client_id: oidc_client_id.or(lower.oidc_client_id),
            oidc_secret_file: oidc_secret_file.or(lower.oidc_secret_file),
            team_requests_per_minute: team_requests_per_minute.or(lower.team_requests_per_minute),
            address_requests_per_minute: address_requests_per_minute.or(lower.address_requests_per_minute),
            sandboxes_max: sandboxes_max.or(lower.sandboxes_max),
            disk_reserve_mib: disk_reserve_mib.or(lower.disk_reserve_mib),
            disk_overcommit: disk_overcommit.or(lower.disk_overcommit),
            ready_seconds: ready_seconds.or(lower.ready_seconds),
            network_mode: network_mode.or(lower.network_mode),
            network_block: network_block.or(lower.network_block),
            slots_prepared: slots_prepared.or(lower.slots_prepared),
            egress_deny: if egress_deny.is_empty() { lower.egress_deny } else { egress_deny },
            accelerator: accelerator.or(lower.accelerator),
            qemu: qemu.or(lower.qemu),
            mirror: mirror.or(lower.mirror),
            log: log.or(lower.log),
            log_format: log_format.or(lower.log_format),
            guest_logs: guest_logs.or(lower.guest_logs),
        }
    }
}

impl Settings {
    /// What follows from flags and variables, the file, and the surroundings.
    pub(crate) fn settle(flags: Options, file: Options, surroundings: &Surroundings) -> Result<Self> {
        let options = flags.over(file);
        let data_dir = match &options.data_dir {
            Some(path) => std::path::absolute(path).with_context(|| format!("--data-dir {}", path.display()))?,
            None => surroundings.data_dir()?,
        };
        if data_dir.as_os_str().len() > DATA_DIR_BYTES_MAX {
            bail!(
                "the data directory's path is longer than {DATA_DIR_BYTES_MAX} bytes, and a socket in it must have a \
                 path of at most 107 (unix(7)): choose a shorter --data-dir"
            );
        }
        let node_id = options.node_id.as_deref().unwrap_or("local");
        let derived = usize::try_from(surroundings.memory_mib / MEMORY_MIB_PER_SANDBOX).unwrap_or(usize::MAX);
        let sandboxes_max = options.sandboxes_max.unwrap_or(derived.clamp(1, SANDBOXES_MAX));
        if !(1..=SANDBOXES_MAX).contains(&sandboxes_max) {
            bail!("--sandboxes-max {sandboxes_max}: choose 1 to {SANDBOXES_MAX}");
        }
        let ready_seconds = options.ready_seconds.unwrap_or(READY_SECONDS);
        if !(1..=READY_SECONDS_MAX).contains(&ready_seconds) {
            bail!("--ready-seconds {ready_seconds}: choose 1 to {READY_SECONDS_MAX}, a create is given up soon after");
        }
        let domain = match &options.domain {
            Some(domain) => Some(domain.parse::<Domain>().context("--domain")?),
            None => None,
        };
        let tls_listen = options.tls_listen.unwrap_or(TlsListen::At(TLS_LISTEN.parse().expect("a socket address")));
        let acme = acme::Acme::settle(&options, domain.as_ref(), tls_listen)?;
        let tls_files = match (options.tls_cert, options.tls_key) {
            (None, None) => None,
            (Some(chain), Some(key)) => Some(CertificateFiles {
                chain: std::path::absolute(&chain).with_context(|| format!("--tls-cert {}", chain.display()))?,
                key: std::path::absolute(&key).with_context(|| format!("--tls-key {}", key.display()))?,
            }),
            _ => bail!("--tls-cert and --tls-key go together: a certificate is of no use without its key"),
        };
        let oidc = match (options.oidc_issuer, options.oidc_client_id, options.oidc_secret_file) {
            (None, None, None) => None,
            (Some(issuer), Some(client_id), secret_file) => Some(Oidc { issuer, client_id, secret_file }),
            _ => bail!("--oidc-issuer and --oidc-client-id go together: an issuer knows this server by its client ID"),
        };
        Ok(Self {
            data_dir,
            api_listen: options.api_listen.unwrap_or(API_LISTEN.parse().expect("a socket address")),
            edge_listen: options.edge_listen.unwrap_or(EDGE_LISTEN.parse().expect("a socket address")),
            tls_listen,
            tls_files,
            acme,
            domain,
            node_id: node_id.parse().with_context(|| format!("--node-id {node_id}"))?,
            database_url: options.database_url,
            user_secret_file: options.user_secret_file,
            user_jwks: options.user_jwks,
            user_audience: options.user_audience,
            user_issuer: options.user_issuer,
            oidc,
            team_requests_per_minute: options.team_requests_per_minute,
            address_requests_per_minute: options.address_requests_per_minute,
            sandboxes_max,
            ready_timeout: Duration::from_secs(ready_seconds),
            network_mode: options.network_mode.unwrap_or(NetworkMode::Auto),
            network_block: options.network_block.unwrap_or(NETWORK_BLOCK),
            slots_prepared: options.slots_prepared.unwrap_or(SLOTS_PREPARED),
            disk: disk::Sharing::settle(options.disk_reserve_mib, options.disk_overcommit)?,
            egress_denied: egress::denied(&options.egress_deny)?,
            accelerator: options.accelerator.unwrap_or(Accelerator::Auto),
            qemu: options.qemu.unwrap_or_else(|| PathBuf::from("qemu-system-x86_64")),
            mirror: options.mirror,
            log: options.log,
            log_format: options.log_format.unwrap_or(LogFormat::Text),
            guest_logs: options.guest_logs.unwrap_or(GuestLogs::Events),
        })
    }

    /// The domain whose names are served, on this port if it is a local one; none without TLS, unless there is one of the
    /// operator's, whose names something in front may serve.
    pub(crate) fn domain_at(&self, tls_port: Option<u16>) -> Option<Domain> {
        self.domain.clone().or_else(|| tls_port.map(Domain::local))
    }

    /// Whether clients have to trust an authority of this instance.
    pub(crate) fn is_authority_ours(&self) -> bool {
        self.tls_files.is_none() && self.acme.is_none()
    }

    /// Where rows are kept.
    pub(crate) fn store(&self, database: &Path) -> Result<hearth_store::Config> {
        match &self.database_url {
            Some(url) => Ok(hearth_store::Config { url: url.clone() }),
            None => hearth_store::Config::sqlite(database).context("the data directory's path is not UTF-8"),
        }
    }

    /// Which tokens of users are believed.
    pub(crate) fn user_tokens(&self) -> Result<hearth_api::UserTokens> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        let secret = self.user_secret_file.as_deref().map(read).transpose()?.map(|text| Secret::new(text.trim()));
        let jwks = match &self.user_jwks {
            Some(address) if address.contains("://") => Some(KeySet::Address(address.clone())),
            Some(path) => Some(KeySet::Text(read(Path::new(path))?)),
            None => self.oidc.as_ref().map(|oidc| KeySet::Issuer(oidc.issuer.clone())),
        };
        if secret.as_ref().is_some_and(|secret| secret.expose().len() < USER_SECRET_BYTES_MIN) {
            bail!("the secret in --user-secret-file has fewer than {USER_SECRET_BYTES_MIN} bytes: it could be guessed");
        }
        let oidc = self.oidc.as_ref();
        Ok(hearth_api::UserTokens {
            secrets: secret.into_iter().collect(),
            jwks,
            // A token that somebody gave to another application of the same issuer must not open this one.
            audience: self.user_audience.clone().or(oidc.map(|oidc| oidc.client_id.clone())),
            issuer: self.user_issuer.clone().or(oidc.map(|oidc| oidc.issuer.clone())),
            ..hearth_api::UserTokens::default()
        })
    }

    /// Who says who somebody is, if it is not a password.
    pub(crate) fn provider(&self) -> Result<Option<hearth_api::Provider>> {
        let Some(Oidc { issuer, client_id, secret_file }) = self.oidc.clone() else { return Ok(None) };
        let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()));
        let client_secret = secret_file.map(read).transpose()?.map(|text| Secret::new(text.trim()));
        Ok(Some(hearth_api::Provider { issuer, client_id, client_secret }))
    }

    /// The options that lead to exactly these settings anywhere.
    pub(crate) fn to_options(&self) -> Options {
        let settings = self.clone();
        let (tls_cert, tls_key) = settings.tls_files.map(|files| (files.chain, files.key)).unzip();
        let acme = settings.acme.map(acme::Acme::into_options).unwrap_or_default();
        let (oidc_issuer, oidc_client_id) = settings.oidc.clone().map(|oidc| (oidc.issuer, oidc.client_id)).unzip();
        Options {
            data_dir: Some(settings.data_dir),
            api_listen: Some(settings.api_listen),
            edge_listen: Some(settings.edge_listen),
            tls_listen: Some(settings.tls_listen),
            tls_cert,
            tls_key,
            acme_contact: acme.acme_contact,
            acme_directory: acme.acme_directory,
            acme_hook: acme.acme_hook,
            acme_root: acme.acme_root,
            acme_wait: acme.acme_wait,
            domain: settings.domain.map(|domain| domain.to_string()),
            node_id: Some(settings.node_id.to_string()),
            database_url: settings.database_url,
            user_secret_file: settings.user_secret_file,
            user_jwks: settings.user_jwks,
            user_audience: settings.user_audience,
            user_issuer: settings.user_issuer,
            oidc_issuer,
            oidc_client_id,
            oidc_secret_file: settings.oidc.and_then(|oidc| oidc.secret_file),
            team_requests_per_minute: settings.team_requests_per_minute,
            address_requests_per_minute: settings.address_requests_per_minute,
            sandboxes_max: Some(settings.sandboxes_max),
            disk_reserve_mib: Some(settings.disk.reserve_mib),
            disk_overcommit: Some(settings.disk.overcommit),
            ready_seconds: Some(settings.ready_timeout.as_secs()),
            network_mode: Some(settings.network_mode),
            network_block: Some(settings.network_block),
            slots_prepared: Some(settings.slots_prepared),
            egress_deny: settings.egress_denied.iter().map(Ipv4Net::to_string).collect(),
            accelerator: Some(settings.accelerator),
            qemu: Some(settings.qemu),
            mirror: settings.mirror,
            log: settings.log,
            log_format: Some(settings.log_format),
            guest_logs: Some(settings.guest_logs),
        }
    }
}

/// The effective configuration, as a file that says the same.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(&self.to_options()).map_err(|_| fmt::Error)?)
    }
}

/// As many bytes as HS256's hash has (RFC 7518, section 3.2).
const USER_SECRET_BYTES_MIN: usize = 32;
/// As many as there are network slots.
const SANDBOXES_MAX: usize = 2048;
/// The longest socket in the data directory is `run/node-proxy.sock`, and 107 bytes are all there is (unix(7)).
const DATA_DIR_BYTES_MAX: usize = 107 - "/run/node-proxy.sock".len();

/// Variables named `HEARTH_…` that mean nothing, most likely a typing mistake.
pub(crate) fn unknown_variables<'a>(known: &[String], present: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let unknown: Vec<&str> =
        present.into_iter().filter(|name| name.starts_with("HEARTH_") && !known.iter().any(|k| k == name)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    bail!("unknown variable {}: `hearth --help` lists those that are known", unknown.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Surroundings {
        Surroundings {
            is_root: false,
            home: Some(PathBuf::from("/home/ada")),
            xdg_data_home: None,
            xdg_config_home: None,
            memory_mib: 8192,
        }
    }

    fn settle(flags: Options, file: Options) -> Result<Settings> {
        Settings::settle(flags, file, &user())
    }

    #[test]
    fn defaults_follow_the_surroundings() {
        let settings = settle(Options::default(), Options::default()).expect("valid");
        assert_eq!(settings.data_dir, Path::new("/home/ada/.local/share/hearth"));
        assert_eq!(settings.sandboxes_max, 32);
        let root = Surroundings { is_root: true, ..user() };
        let settings = Settings::settle(Options::default(), Options::default(), &root).expect("valid");
        assert_eq!(settings.data_dir, Path::new("/var/lib/hearth"));
        let homeless = Surroundings { home: None, ..user() };
        assert!(Settings::settle(Options::default(), Options::default(), &homeless).is_err());
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: Options = toml::from_str("api_listen = '127.0.0.1:1'\nedge_listen = '127.0.0.1:2'").expect("valid");
        let flags = Options { api_listen: Some("127.0.0.1:9".parse().expect("address")), ..Options::default() };
        let settings = settle(flags, file).expect("valid");
        assert_eq!(settings.api_listen.port(), 9);
        assert_eq!(settings.edge_listen.port(), 2);
    }

    #[test]
    fn unknown_keys_and_variables_are_refused_by_name() {
        let error = toml::from_str::<Options>("api_lisen = '127.0.0.1:1'").expect_err("unknown");
        assert!(error.to_string().contains("api_lisen"), "{error}");
        let known = ["HEARTH_LOG".to_owned()];
        unknown_variables(&known, ["HEARTH_LOG", "HOME"]).expect("known");
        let error = unknown_variables(&known, ["HEARTH_LGO"]).expect_err("unknown");
        assert!(error.to_string().contains("HEARTH_LGO"), "{error}");
    }

    #[test]
    fn out_of_range_values_say_what_to_choose() {
        for (options, part) in [
            (Options { sandboxes_max: Some(0), ..Options::default() }, "1 to 2048"),
            (Options { ready_seconds: Some(0), ..Options::default() }, "1 to 50"),
            (Options { node_id: Some("a b".to_owned()), ..Options::default() }, "--node-id"),
            (Options { domain: Some("localhost".to_owned()), ..Options::default() }, "two labels"),
            (Options { tls_cert: Some("/chain".into()), ..Options::default() }, "--tls-key"),
            (Options { tls_key: Some("/key".into()), ..Options::default() }, "--tls-cert"),
            (Options { oidc_issuer: Some("https://a".to_owned()), ..Options::default() }, "--oidc-client-id"),
            (Options { oidc_client_id: Some("hearth".to_owned()), ..Options::default() }, "--oidc-issuer"),
            (Options { oidc_secret_file: Some("/secret".into()), ..Options::default() }, "--oidc-issuer"),
            (Options { data_dir: Some("/x".repeat(60).into()), ..Options::default() }, "shorter"),
        ] {
            let error = format!("{:#}", settle(options, Options::default()).expect_err("out of range"));
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn secrets_of_users_are_read_from_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let tokens = |path: &Path| {
            let flags = Options { user_secret_file: Some(path.to_owned()), ..Options::default() };
            settle(flags, Options::default()).expect("valid").user_tokens()
        };
        assert!(format!("{:#}", tokens(&path).expect_err("missing")).contains("reading"));
        fs::write(&path, "short\n").expect("a file");
        assert!(tokens(&path).expect_err("short").to_string().contains("32 bytes"));
        fs::write(&path, format!("{}\n", "x".repeat(32))).expect("a file");
        assert_eq!(tokens(&path).expect("long enough").secrets, [Secret::new("x".repeat(32))]);
    }

    #[test]
    fn an_issuer_brings_its_rules_along() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "of the client\n").expect("a file");
        let issuer = "https://login.example.com".to_owned();
        let flags = Options {
            oidc_issuer: Some(issuer.clone()),
            oidc_client_id: Some("hearth".to_owned()),
            oidc_secret_file: Some(path),
            ..Options::default()
        };
        let settings = settle(flags.clone(), Options::default()).expect("valid");
        let tokens = settings.user_tokens().expect("valid");
        assert_eq!(tokens.jwks, Some(KeySet::Issuer(issuer.clone())));
        assert_eq!((tokens.issuer, tokens.audience), (Some(issuer), Some("hearth".to_owned())));
        let provider = settings.provider().expect("valid").expect("there is one");
        assert_eq!(provider.client_secret, Some(Secret::new("of the client")));
        // What is said is not guessed.
        let said = Options {
            user_jwks: Some("https://keys.example.com".to_owned()),
            user_audience: Some("all".to_owned()),
            user_issuer: Some("me".to_owned()),
            ..flags
        };
        let tokens = settle(said, Options::default()).expect("valid").user_tokens().expect("valid");
        assert_eq!(tokens.jwks, Some(KeySet::Address("https://keys.example.com".to_owned())));
        assert_eq!((tokens.issuer.as_deref(), tokens.audience.as_deref()), (Some("me"), Some("all")));
        let without = settle(Options::default(), Options::default()).expect("valid");
        assert!(without.provider().expect("valid").is_none());
    }

    #[test]
    fn the_printed_configuration_leads_to_itself() {
        let given = Options {
            tls_listen: Some(TlsListen::Off),
            tls_cert: Some("/chain".into()),
            tls_key: Some("/key".into()),
            domain: Some("Example.com:8443".to_owned()),
            oidc_issuer: Some("https://login.example.com".to_owned()),
            oidc_client_id: Some("hearth".to_owned()),
            oidc_secret_file: Some("/secret".into()),
            ..Options::default()
        };
        for options in [Options::default(), given] {
            let settings = settle(options, Options::default()).expect("valid");
            let printed: Options = toml::from_str(&settings.to_string()).expect("valid");
            assert_eq!(settle(Options::default(), printed).expect("valid"), settings);
        }
    }

    #[test]
    fn names_are_served_somewhere_or_not_at_all() {
        let listen = |text: &str| toml::from_str::<Options>(&format!("tls_listen = '{text}'")).map(|o| o.tls_listen);
        assert_eq!(listen("off").expect("valid"), Some(TlsListen::Off));
        let address = "127.0.0.1:1".parse().expect("an address");
        assert_eq!(listen("127.0.0.1:1").expect("valid"), Some(TlsListen::At(address)));
        assert!(listen("on").expect_err("neither").to_string().contains("neither an address"));
    }
}
