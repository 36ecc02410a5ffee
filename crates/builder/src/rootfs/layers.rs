//! The files of a lineage, written to a folder for the script that makes the image.
//!
//! ```text
//! layers/<number>-<recipe>/requirements.lock   Python packages
//!                          node/               package.json and package-lock.json
//!                          files/              tree for the root filesystem
//!                          setup.sh
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::Error;
use crate::recipe::{File, Recipe};

/// Writes the files of `recipe` and the recipes that it extends.
pub(super) fn write(folder: &Path, recipe: &Recipe) -> Result<(), Error> {
    for (number, recipe) in recipe.lineage().into_iter().enumerate() {
        // Sorted by name, so in the order of the lineage.
        let layer = folder.join(format!("{number:02}-{}", recipe.name()));
        create(&layer)?;
        if let Some(lock) = recipe.python_lock() {
            write_file(&layer.join("requirements.lock"), lock)?;
        }
        if let Some(setup) = recipe.setup() {
            write_file(&layer.join("setup.sh"), setup)?;
        }
        for (part, files) in [("node", recipe.node_lock()), ("files", recipe.tree())] {
            for file in files {
                write_file(&layer.join(part).join(file.path), file)?;
            }
        }
    }
    Ok(())
}

fn write_file(path: &Path, file: File) -> Result<(), Error> {
    create(path.parent().unwrap_or(Path::new("/")))?;
    fs::write(path, file.bytes).map_err(Error::file("writing", path))?;
    let mode = if file.executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::file("setting the mode of", path))
}

fn create(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::file("creating the folder", folder))
}
