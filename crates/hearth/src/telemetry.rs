//! Logs on standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::options::{LogFormat, Settings};
use crate::progress::LogWriter;

/// Default filter on a terminal: only warnings and errors beside the banner.
const FILTER_TERMINAL: &str = "warn";
/// Default filter if a supervisor collects the log.
const FILTER_COLLECTED: &str = "info";

/// Installs the global log subscriber. Call it once per process; a second call panics.
pub(crate) fn init(settings: &Settings) -> Result<()> {
    let terminal = std::io::stderr().is_terminal();
    let default = if terminal { FILTER_TERMINAL } else { FILTER_COLLECTED };
    let text = settings.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(text).with_context(|| format!("--log {text}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogWriter::default)
        .with_ansi(terminal)
        .with_span_events(FmtSpan::NONE);
    match settings.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
