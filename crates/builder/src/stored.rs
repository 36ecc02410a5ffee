//! Templates that exist already, read without the lock of the builder's folder.

use std::fs;
use std::path::Path;

use hearth_artifact::{ArtifactSet, ArtifactStore, Error};
use hearth_types::TemplateId;

use crate::Recipe;
use crate::build_folder::template_file;

/// Returns the artifact sets of a recipe's template, the newest first. A running build does not disturb it.
///
/// # Errors
/// The artifact sets cannot be listed.
pub fn stored_sets(folder: &Path, recipe: &Recipe, artifacts: &ArtifactStore) -> Result<Vec<ArtifactSet>, Error> {
    let Some(template_id) = template_id(folder, recipe.name()) else { return Ok(Vec::new()) };
    let mut sets = artifacts.list()?;
    sets.retain(|set| set.manifest().template_id == template_id);
    sets.sort_by_key(|set| std::cmp::Reverse(set.manifest().created_at));
    Ok(sets)
}

/// Returns the id of a recipe's template; `None` if it was never made in this folder.
fn template_id(folder: &Path, recipe: &str) -> Option<TemplateId> {
    fs::read_to_string(template_file(folder, recipe)).ok()?.trim().parse().ok()
}
