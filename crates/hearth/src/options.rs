//! Configuration from flags, environment variables and a TOML file.
//!
//! Each option has one name, as a flag (`--api-listen`), a variable (`HEARTH_API_LISTEN`) and a key of the file
//! (`api_listen`). A flag wins over a variable, a variable over the file, the file over the default.

pub(crate) mod acme;
mod disk;
mod egress;
mod environment;
mod redacted;
mod templates;
mod values;
pub(crate) mod variables;

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
pub(crate) use environment::Environment;
pub(crate) use templates::{Selection, names as template_names};
pub(crate) use values::{Accelerator, GuestLogs, HTTPS_PORT, LogFormat, NetworkMode, TlsListen};

/// Default addresses of the API and of the edge.
const API_LISTEN: &str = "127.0.0.1:3000";
const EDGE_LISTEN: &str = "127.0.0.1:3002";
/// Default range for the addresses of guests' uplinks.
const NETWORK_BLOCK: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 0);
/// Default number of prepared network slots: a burst of as many creates does not wait for namespaces.
const SLOTS_PREPARED: usize = 8;
/// Host memory per sandbox in the derived limit: an idle guest takes a tenth of it, a busy one up to twice as much.
const MEMORY_MIB_PER_SANDBOX: u64 = 256;
/// Default time until a guest must reply, in seconds; enough for many starts at the same time under emulation.
const READY_SECONDS: u64 = 30;
/// Upper bound of that time: the API gives up a create after 55 s, and the node must have reported the cause by then.
const READY_SECONDS_MAX: u64 = 50;

/// Options as the operator sets them, all optional. [`Settings`] is the validated result with defaults.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Data directory [default: /var/lib/hearth as root, otherwise hearth in the XDG data folder]
    #[arg(long, env = "HEARTH_DATA_DIR", global = true, value_name = "FOLDER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address and port of the REST API [default: 127.0.0.1:3000]
    #[arg(long, env = "HEARTH_API_LISTEN", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_listen: Option<SocketAddr>,
    /// Address and port of the edge, through which clients reach sandboxes [default: 127.0.0.1:3002]
    #[arg(long, env = "HEARTH_EDGE_LISTEN", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) edge_listen: Option<SocketAddr>,
    /// Address and port for the names of the domain, or `auto` or `off` [default: auto]
    ///
    /// It serves `api.DOMAIN` and `PORT-SANDBOX.DOMAIN`, over TLS and in plain HTTP. `auto` takes 127.0.0.1:443 if it
    /// can be bound, else 127.0.0.1:3443.
    #[arg(long, env = "HEARTH_TLS_LISTEN", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_listen: Option<TlsListen>,
    /// Certificate for the domain and `*.DOMAIN`, with its chain, as PEM [default: issued by this instance's own
    /// authority]
    #[arg(long, env = "HEARTH_TLS_CERT", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of that certificate, as PEM
    #[arg(long, env = "HEARTH_TLS_KEY", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    /// E-mail address for the ACME issuer; enables certificates by ACME
    ///
    /// Hearth then requests certificates for the domain and `*.DOMAIN`, and accepts the issuer's terms in the name of
    /// this contact.
    #[arg(long, env = "HEARTH_ACME_CONTACT", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_contact: Option<String>,
    /// ACME directory of the issuer [default: Let's Encrypt's https://acme-v02.api.letsencrypt.org/directory]
    #[arg(
        long,
        env = "HEARTH_ACME_DIRECTORY",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_directory: Option<String>,
    /// Program that sets and removes DNS records for ACME (DNS-01)
    ///
    /// `PROGRAM set NAME VALUE` must add a TXT record, and `PROGRAM remove NAME VALUE` must remove that record.
    #[arg(long, env = "HEARTH_ACME_HOOK", global = true, value_name = "PROGRAM", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_hook: Option<PathBuf>,
    /// Extra certificate authority, as PEM, to trust for connections to the ACME issuer only [default: none]
    #[arg(long, env = "HEARTH_ACME_ROOT", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_root: Option<PathBuf>,
    /// Seconds between setting the DNS records and asking the issuer to check them [default: 30]
    #[arg(long, env = "HEARTH_ACME_WAIT", global = true, value_name = "SECONDS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme_wait: Option<u64>,
    /// Domain that clients use, with a port if that is not 443 [default: hearth.localhost]
    #[arg(long, env = "HEARTH_DOMAIN", global = true, value_name = "DOMAIN", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    /// Node ID of this host [default: local]
    #[arg(long, env = "HEARTH_NODE_ID", global = true, value_name = "NAME", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_id: Option<String>,
    /// Database, sqlite://PATH?mode=rwc or postgres://USER@HOST/DATABASE [default: hearth.db in the data directory]
    ///
    /// Set the password of a Postgres database in PGPASSWORD or ~/.pgpass.
    #[arg(
        long,
        env = "HEARTH_DATABASE_URL",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database_url: Option<String>,
    /// File with the secret that signs user tokens (JWT, HS256), e.g. Supabase's JWT secret
    #[arg(long, env = "HEARTH_USER_SECRET_FILE", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_secret_file: Option<PathBuf>,
    /// JSON Web Key Set with the public keys of the issuer of user tokens (JWT): a file, or a URL (https://…)
    #[arg(
        long,
        env = "HEARTH_USER_JWKS",
        hide_env_values = true,
        global = true,
        value_name = "FILE|URL",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_jwks: Option<String>,
    /// Required audience of user tokens, their claim `aud` [default: --oidc-client-id, or not checked]
    #[arg(long, env = "HEARTH_USER_AUDIENCE", global = true, value_name = "TEXT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_audience: Option<String>,
    /// Required issuer of user tokens, their claim `iss` [default: --oidc-issuer, or not checked]
    #[arg(long, env = "HEARTH_USER_ISSUER", global = true, value_name = "TEXT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_issuer: Option<String>,
    /// OpenID Connect issuer where users log in: https://… [default: none; users log in here with passwords]
    #[arg(
        long,
        env = "HEARTH_OIDC_ISSUER",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc_issuer: Option<String>,
    /// Client ID of this server at that issuer
    ///
    /// Register https://DOMAIN/docs/api/cli/callback as a redirect URI there.
    #[arg(long, env = "HEARTH_OIDC_CLIENT_ID", global = true, value_name = "ID", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc_client_id: Option<String>,
    /// File with the client secret for that issuer [default: none, public client]
    #[arg(long, env = "HEARTH_OIDC_SECRET_FILE", global = true, value_name = "FILE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc_secret_file: Option<PathBuf>,
    /// Limit of API requests per minute and team [default: unlimited]
    #[arg(
        long,
        env = "HEARTH_TEAM_REQUESTS_PER_MINUTE",
        global = true,
        value_name = "NUMBER",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) team_requests_per_minute: Option<NonZeroU32>,
    /// Limit of API requests per minute and client address [default: unlimited]
    #[arg(
        long,
        env = "HEARTH_ADDRESS_REQUESTS_PER_MINUTE",
        global = true,
        value_name = "NUMBER",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address_requests_per_minute: Option<NonZeroU32>,
    /// Limit of concurrently running sandboxes on this host [default: one per 256 MiB of memory]
    #[arg(long, env = "HEARTH_SANDBOXES_MAX", global = true, value_name = "NUMBER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandboxes_max: Option<usize>,
    /// Disk space in MiB, on the disk of the data directory, that sandboxes cannot use [default: 1024]
    #[arg(long, env = "HEARTH_DISK_RESERVE_MIB", global = true, value_name = "MIB", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_reserve_mib: Option<u64>,
    /// Ratio of a sandbox's disk size to the disk space reserved for it; with 1, each can fill its disk [default: 4]
    #[arg(long, env = "HEARTH_DISK_OVERCOMMIT", global = true, value_name = "NUMBER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_overcommit: Option<u32>,
    /// Seconds until a starting guest must reply [default: 30]
    #[arg(long, env = "HEARTH_READY_SECONDS", global = true, value_name = "SECONDS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_seconds: Option<u64>,
    /// Network of guests [default: auto]
    #[arg(long, env = "HEARTH_NETWORK_MODE", global = true, value_name = "MODE", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network_mode: Option<NetworkMode>,
    /// First address of the private /16 network for guests' uplinks [default: 10.11.0.0]
    #[arg(long, env = "HEARTH_NETWORK_BLOCK", global = true, value_name = "ADDRESS", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network_block: Option<Ipv4Addr>,
    /// Number of network slots to prepare in advance [default: 8]
    #[arg(long, env = "HEARTH_SLOTS_PREPARED", global = true, value_name = "NUMBER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slots_prepared: Option<usize>,
    /// IPv4 range that guests cannot reach, besides private and reserved ranges; repeat it, or separate ranges by
    /// commas
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
    /// Hardware virtualization or emulation for guests [default: auto]
    #[arg(long, env = "HEARTH_ACCELERATOR", global = true, value_name = "KIND", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accelerator: Option<Accelerator>,
    /// QEMU program [default: qemu-system-x86_64]
    #[arg(long, env = "HEARTH_QEMU", global = true, value_name = "PROGRAM", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) qemu: Option<PathBuf>,
    /// Debian mirror for the guests' packages [default: this host's mirror, or Debian's]
    #[arg(
        long,
        env = "HEARTH_MIRROR",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mirror: Option<String>,
    /// Templates to prepare; repeat it, or separate names by commas [default: base,code-interpreter-v1]
    ///
    /// `base` is always prepared. A start serves as soon as `base` is ready, and prepares the others in the background.
    #[arg(
        long,
        env = "HEARTH_TEMPLATES",
        global = true,
        value_delimiter = ',',
        value_name = "NAME",
        value_parser = template_names(),
        help_heading = "Configuration"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) templates: Vec<String>,
    /// Log level, or a filter such as info,hearth_api=debug [default: warn on a terminal, otherwise info]
    #[arg(long, env = "HEARTH_LOG", global = true, value_name = "FILTER", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<String>,
    /// Format of log lines [default: text]
    #[arg(long, env = "HEARTH_LOG_FORMAT", global = true, value_name = "FORMAT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_format: Option<LogFormat>,
    /// Content of sandboxes' logs [default: events]
    #[arg(long, env = "HEARTH_GUEST_LOGS", global = true, value_name = "WHAT", help_heading = "Configuration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest_logs: Option<GuestLogs>,
}

/// OpenID Connect issuer where users log in, instead of Hearth's own login page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Oidc {
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    pub(crate) secret_file: Option<PathBuf>,
}

/// Effective configuration, validated and with defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) api_listen: SocketAddr,
    pub(crate) edge_listen: SocketAddr,
    pub(crate) tls_listen: TlsListen,
    /// `None`: the certificate comes from ACME or from the instance's own authority.
    pub(crate) tls_files: Option<CertificateFiles>,
    /// `None`: ACME is off.
    pub(crate) acme: Option<acme::AcmeSettings>,
    /// `None`: the local domain, `hearth.localhost`.
    pub(crate) domain: Option<Domain>,
    pub(crate) node_id: NodeId,
    pub(crate) database_url: Option<String>,
    pub(crate) user_secret_file: Option<PathBuf>,
    pub(crate) user_jwks: Option<String>,
    pub(crate) user_audience: Option<String>,
    pub(crate) user_issuer: Option<String>,
    /// `None`: users log in here, with passwords.
    pub(crate) oidc: Option<Oidc>,
    pub(crate) team_requests_per_minute: Option<NonZeroU32>,
    pub(crate) address_requests_per_minute: Option<NonZeroU32>,
    pub(crate) sandboxes_max: usize,
    /// Memory for the guests of all sandboxes, which take half of their size on average.
    pub(crate) memory_mib: u64,
    pub(crate) disk: disk::Sharing,
    pub(crate) ready_timeout: Duration,
    pub(crate) network_mode: NetworkMode,
    pub(crate) network_block: Ipv4Addr,
    pub(crate) slots_prepared: usize,
    pub(crate) egress_denied: Vec<Ipv4Net>,
    pub(crate) accelerator: Accelerator,
    pub(crate) qemu: PathBuf,
    pub(crate) mirror: Option<String>,
    pub(crate) templates: Selection,
    pub(crate) log: Option<String>,
    pub(crate) log_format: LogFormat,
    pub(crate) guest_logs: GuestLogs,
}

impl Options {
    /// Reads the configuration file at `named`, or else the default one if that exists.
    pub(crate) fn from_file(named: Option<&Path>, environment: &Environment) -> Result<Self> {
        let path = match (named, environment.config_file()) {
            (Some(path), _) => path.to_owned(),
            (None, Some(path)) if path.exists() => path,
            (None, _) => return Ok(Self::default()),
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading the configuration {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))
    }

    /// Takes each option that is not set from `lower`.
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
            templates,
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
            templates: if templates.is_empty() { lower.templates } else { templates },
            log: log.or(lower.log),
            log_format: log_format.or(lower.log_format),
            guest_logs: guest_logs.or(lower.guest_logs),
        }
    }
}

impl Settings {
    /// Merges flags (with variables), the file and the defaults, and validates the result.
    ///
    /// # Errors
    /// An option is out of range, malformed, or needs another one. The message names the flag.
    pub(crate) fn from_options(flags: Options, file: Options, environment: &Environment) -> Result<Self> {
        let options = flags.over(file);
        let data_dir = match &options.data_dir {
            Some(path) => std::path::absolute(path).with_context(|| format!("--data-dir {}", path.display()))?,
            None => environment.data_dir()?,
        };
        if data_dir.as_os_str().len() > DATA_DIR_BYTES_MAX {
            bail!(
                "the data directory's path is longer than {DATA_DIR_BYTES_MAX} bytes, and a socket in it must have a \
                 path of at most 107 (unix(7)): choose a shorter --data-dir"
            );
        }
        let node_id = options.node_id.as_deref().unwrap_or("local");
        let derived = usize::try_from(environment.memory_mib / MEMORY_MIB_PER_SANDBOX).unwrap_or(usize::MAX);
        let sandboxes_max = options.sandboxes_max.unwrap_or(derived.clamp(1, SANDBOXES_MAX));
        if !(1..=SANDBOXES_MAX).contains(&sandboxes_max) {
            bail!("--sandboxes-max {sandboxes_max}: choose 1 to {SANDBOXES_MAX}");
        }
        let ready_seconds = options.ready_seconds.unwrap_or(READY_SECONDS);
        if !(1..=READY_SECONDS_MAX).contains(&ready_seconds) {
            bail!(
                "--ready-seconds {ready_seconds}: choose 1 to {READY_SECONDS_MAX}; the API gives up a create after 55 s"
            );
        }
        let domain = match &options.domain {
            Some(domain) => Some(domain.parse::<Domain>().context("--domain")?),
            None => None,
        };
        let tls_listen = options.tls_listen.unwrap_or(TlsListen::Auto);
        let acme = acme::AcmeSettings::from_options(&options, domain.as_ref(), tls_listen)?;
        let tls_files = match (options.tls_cert, options.tls_key) {
            (None, None) => None,
            (Some(chain), Some(key)) => Some(CertificateFiles {
                chain: std::path::absolute(&chain).with_context(|| format!("--tls-cert {}", chain.display()))?,
                key: std::path::absolute(&key).with_context(|| format!("--tls-key {}", key.display()))?,
            }),
            _ => bail!("--tls-cert and --tls-key go together: a certificate needs its private key"),
        };
        let oidc = match (options.oidc_issuer, options.oidc_client_id, options.oidc_secret_file) {
            (None, None, None) => None,
            (Some(issuer), Some(client_id), secret_file) => Some(Oidc { issuer, client_id, secret_file }),
            _ => bail!(
                "--oidc-issuer and --oidc-client-id go together: an issuer identifies this server by its client ID"
            ),
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
            // An operator's limit is a number of sandboxes of `base`, whatever the memory of the host.
            memory_mib: environment.memory_mib.max(sandboxes_max as u64 * MEMORY_MIB_PER_SANDBOX),
            ready_timeout: Duration::from_secs(ready_seconds),
            network_mode: options.network_mode.unwrap_or(NetworkMode::Auto),
            network_block: options.network_block.unwrap_or(NETWORK_BLOCK),
            slots_prepared: options.slots_prepared.unwrap_or(SLOTS_PREPARED),
            disk: disk::Sharing::from_options(options.disk_reserve_mib, options.disk_overcommit)?,
            egress_denied: egress::denied(&options.egress_deny)?,
            accelerator: options.accelerator.unwrap_or(Accelerator::Auto),
            qemu: options.qemu.unwrap_or_else(|| PathBuf::from("qemu-system-x86_64")),
            mirror: options.mirror,
            templates: Selection::from_option(&options.templates).context("--templates")?,
            log: options.log,
            log_format: options.log_format.unwrap_or(LogFormat::Text),
            guest_logs: options.guest_logs.unwrap_or(GuestLogs::Events),
        })
    }

    /// Returns the configured domain, or else the local domain on this port; `None` without both.
    ///
    /// A configured domain counts without TLS too: a proxy in front of Hearth may serve its names.
    pub(crate) fn domain_at(&self, tls_port: Option<u16>) -> Option<Domain> {
        self.domain.clone().or_else(|| tls_port.map(Domain::local))
    }

    /// Returns true if clients have to trust the authority of this instance.
    pub(crate) fn uses_own_authority(&self) -> bool {
        self.tls_files.is_none() && self.acme.is_none()
    }

    /// Configuration of the store; `database` is the SQLite file to use without `--database-url`.
    pub(crate) fn store(&self, database: &Path) -> Result<hearth_store::Config> {
        match &self.database_url {
            Some(url) => Ok(hearth_store::Config { url: url.clone() }),
            None => hearth_store::Config::sqlite(database).context("the data directory's path is not UTF-8"),
        }
    }

    /// Rules for accepting user tokens. Reads the secret and a key set in a file.
    pub(crate) fn user_tokens(&self) -> Result<hearth_api::UserTokens> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        let secret = self.user_secret_file.as_deref().map(read).transpose()?.map(|text| Secret::new(text.trim()));
        let jwks = match &self.user_jwks {
            Some(address) if address.contains("://") => Some(KeySet::Address(address.clone())),
            Some(path) => Some(KeySet::Text(read(Path::new(path))?)),
            None => self.oidc.as_ref().map(|oidc| KeySet::Issuer(oidc.issuer.clone())),
        };
        if secret.as_ref().is_some_and(|secret| secret.expose().len() < USER_SECRET_BYTES_MIN) {
            bail!(
                "the secret in --user-secret-file is shorter than {USER_SECRET_BYTES_MIN} bytes: it could be guessed"
            );
        }
        let oidc = self.oidc.as_ref();
        Ok(hearth_api::UserTokens {
            secrets: secret.into_iter().collect(),
            jwks,
            // A token that the same issuer made for another application must not be valid here.
            audience: self.user_audience.clone().or(oidc.map(|oidc| oidc.client_id.clone())),
            issuer: self.user_issuer.clone().or(oidc.map(|oidc| oidc.issuer.clone())),
            ..hearth_api::UserTokens::default()
        })
    }

    /// OpenID Connect provider for logins; `None` if users log in with passwords. Reads the client secret.
    pub(crate) fn provider(&self) -> Result<Option<hearth_api::Provider>> {
        let Some(Oidc { issuer, client_id, secret_file }) = self.oidc.clone() else { return Ok(None) };
        let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()));
        let client_secret = secret_file.map(read).transpose()?.map(|text| Secret::new(text.trim()));
        Ok(Some(hearth_api::Provider { issuer, client_id, client_secret }))
    }

    /// Returns options that give exactly these settings in every environment.
    pub(crate) fn to_options(&self) -> Options {
        let settings = self.clone();
        let (tls_cert, tls_key) = settings.tls_files.map(|files| (files.chain, files.key)).unzip();
        let acme = settings.acme.map(acme::AcmeSettings::into_options).unwrap_or_default();
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
            templates: settings.templates.names().map(str::to_owned).collect(),
            log: settings.log,
            log_format: Some(settings.log_format),
            guest_logs: Some(settings.guest_logs),
        }
    }
}

/// Minimum length of an HS256 secret: the size of the hash (RFC 7518, section 3.2).
const USER_SECRET_BYTES_MIN: usize = 32;
/// Number of network slots.
const SANDBOXES_MAX: usize = 2048;
/// Maximum length of the data directory's path: with `run/node-proxy.sock` it must fit into 107 bytes (unix(7)).
const DATA_DIR_BYTES_MAX: usize = 107 - "/run/node-proxy.sock".len();

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Environment {
        Environment {
            is_root: false,
            home: Some(PathBuf::from("/home/ada")),
            xdg_data_home: None,
            xdg_config_home: None,
            memory_mib: 8192,
        }
    }

    fn resolve(flags: Options, file: Options) -> Result<Settings> {
        Settings::from_options(flags, file, &user())
    }

    #[test]
    fn defaults_depend_on_the_environment() {
        let settings = resolve(Options::default(), Options::default()).expect("valid");
        assert_eq!(settings.data_dir, Path::new("/home/ada/.local/share/hearth"));
        assert_eq!(settings.sandboxes_max, 32);
        let root = Environment { is_root: true, ..user() };
        let settings = Settings::from_options(Options::default(), Options::default(), &root).expect("valid");
        assert_eq!(settings.data_dir, Path::new("/var/lib/hearth"));
        let homeless = Environment { home: None, ..user() };
        assert!(Settings::from_options(Options::default(), Options::default(), &homeless).is_err());
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: Options = toml::from_str("api_listen = '127.0.0.1:1'\nedge_listen = '127.0.0.1:2'").expect("valid");
        let flags = Options { api_listen: Some("127.0.0.1:9".parse().expect("address")), ..Options::default() };
        let settings = resolve(flags, file).expect("valid");
        assert_eq!(settings.api_listen.port(), 9);
        assert_eq!(settings.edge_listen.port(), 2);
    }

    #[test]
    fn unknown_keys_are_rejected_by_name() {
        let error = toml::from_str::<Options>("api_lisen = '127.0.0.1:1'").expect_err("unknown");
        assert!(error.to_string().contains("api_lisen"), "{error}");
    }

    #[test]
    fn errors_for_out_of_range_values_name_the_range() {
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
            (Options { templates: vec!["bse".to_owned()], ..Options::default() }, "choose among"),
            (Options { data_dir: Some("/x".repeat(60).into()), ..Options::default() }, "shorter"),
        ] {
            let error = format!("{:#}", resolve(options, Options::default()).expect_err("out of range"));
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_secret_of_user_tokens_is_read_from_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let tokens = |path: &Path| {
            let flags = Options { user_secret_file: Some(path.to_owned()), ..Options::default() };
            resolve(flags, Options::default()).expect("valid").user_tokens()
        };
        assert!(format!("{:#}", tokens(&path).expect_err("missing")).contains("reading"));
        fs::write(&path, "short\n").expect("a file");
        assert!(tokens(&path).expect_err("short").to_string().contains("32 bytes"));
        fs::write(&path, format!("{}\n", "x".repeat(32))).expect("a file");
        assert_eq!(tokens(&path).expect("long enough").secrets, [Secret::new("x".repeat(32))]);
    }

    #[test]
    fn an_oidc_issuer_sets_the_rules_for_user_tokens() {
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
        let settings = resolve(flags.clone(), Options::default()).expect("valid");
        let tokens = settings.user_tokens().expect("valid");
        assert_eq!(tokens.jwks, Some(KeySet::Issuer(issuer.clone())));
        assert_eq!((tokens.issuer, tokens.audience), (Some(issuer), Some("hearth".to_owned())));
        let provider = settings.provider().expect("valid").expect("a provider");
        assert_eq!(provider.client_secret, Some(Secret::new("of the client")));
        // Explicit options win over those derived from the issuer.
        let explicit = Options {
            user_jwks: Some("https://keys.example.com".to_owned()),
            user_audience: Some("all".to_owned()),
            user_issuer: Some("me".to_owned()),
            ..flags
        };
        let tokens = resolve(explicit, Options::default()).expect("valid").user_tokens().expect("valid");
        assert_eq!(tokens.jwks, Some(KeySet::Address("https://keys.example.com".to_owned())));
        assert_eq!((tokens.issuer.as_deref(), tokens.audience.as_deref()), (Some("me"), Some("all")));
        let without = resolve(Options::default(), Options::default()).expect("valid");
        assert!(without.provider().expect("valid").is_none());
    }

    #[test]
    fn the_printed_configuration_gives_the_same_settings() {
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
            let settings = resolve(options, Options::default()).expect("valid");
            let printed: Options = toml::from_str(&settings.redacted().to_string()).expect("valid");
            assert_eq!(resolve(Options::default(), printed).expect("valid"), settings);
        }
    }

    #[test]
    fn tls_listen_is_an_address_auto_or_off() {
        let listen = |text: &str| toml::from_str::<Options>(&format!("tls_listen = '{text}'")).map(|o| o.tls_listen);
        assert_eq!(listen("off").expect("valid"), Some(TlsListen::Off));
        assert_eq!(listen("auto").expect("valid"), Some(TlsListen::Auto));
        let ports: Vec<u16> = TlsListen::Auto.addresses().iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [443, 3443]);
        let address = "127.0.0.1:1".parse().expect("an address");
        assert_eq!(listen("127.0.0.1:1").expect("valid"), Some(TlsListen::At(address)));
        assert!(listen("on").expect_err("neither").to_string().contains("neither an address"));
    }
}
