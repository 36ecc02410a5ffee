//! Bundles: writing with `hearth bundle`, and unpacking for `hearth setup` and `hearth up`.

use std::path::Path;

use anyhow::{Context, Result};
use hearth_builder::{Config, Progress, Recipe, read_bundle, write_bundle};

use crate::layout::Layout;
use crate::options::{Selection, Settings};
use crate::progress::ProgressDisplay;
use crate::setup;

/// Version that wrote a bundle.
const WRITER: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILT_FROM_COMMIT"), ")");

/// Runs `hearth bundle`: writes the inputs of the selected templates, which must be prepared. A daemon may run.
pub(crate) async fn write(settings: &Settings, file: &Path) -> Result<()> {
    let layout = Layout::new(&settings.data_dir);
    let config = setup::builder_config(settings, &layout)?;
    let recipes: Vec<&Recipe> = settings.templates.recipes().collect();
    let target = std::path::absolute(file).with_context(|| format!("writing {}", file.display()))?;
    let bundle = write_bundle(&config, &recipes, WRITER, &target, &ProgressDisplay::new()).await?;
    let bytes = std::fs::metadata(&target).map_or(0, |metadata| metadata.len());
    println!(
        "Wrote {}: {} MiB, the templates {} and kernel {}. `hearth setup --bundle` of this version reads it.",
        target.display(),
        bytes >> 20,
        bundle.templates.join(", "),
        bundle.kernel_version
    );
    Ok(())
}

/// Unpacks a bundle for the selected templates, unless nothing is missing.
pub(crate) async fn unpack(config: &Config, selection: &Selection, file: &Path, progress: &dyn Progress) -> Result<()> {
    let recipes: Vec<&Recipe> = selection.recipes().collect();
    read_bundle(config, &recipes, file, progress).await.map(drop).context("reading the bundle of --bundle")
}
