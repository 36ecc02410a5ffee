//! Writing of a bundle: one pass that hashes the files, and one that archives them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};
use walkdir::WalkDir;

use super::content::{Failure, digest};
use super::manifest::{FileEntry, KERNEL, MANIFEST, Manifest, ROOTFS};
use super::{Bundle, BundleError, Meter};
use crate::build_folder::BuildFolder;
use crate::files::{finish, unfinished};
use crate::kernel::current_version;
use crate::rootfs::image_name;
use crate::{Config, Recipe};

/// Level of compression: zstd's default, at which it is faster than the disk of most machines.
const LEVEL: i32 = 3;

/// Files of a bundle that will be written.
#[derive(Debug)]
pub(super) struct Inputs {
    writer: String,
    suite: String,
    kernel_version: String,
    templates: Vec<String>,
    /// Paths in the archive and on the disk.
    files: Vec<(String, PathBuf)>,
}

impl Inputs {
    /// Finds the files of the current kernel and of these recipes.
    pub(super) fn collect(
        build_folder: &BuildFolder,
        config: &Config,
        recipes: &[&'static Recipe],
        writer: &str,
    ) -> Result<Self, BundleError> {
        let first = recipes.first().map_or(crate::BASE, |recipe| recipe.name());
        let kernel_version = current_version(build_folder, &config.suite).ok_or(BundleError::NotPrepared(first))?;
        let mut files = Vec::new();
        let folder = build_folder.kernels().join(&kernel_version);
        for entry in WalkDir::new(&folder).sort_by_file_name() {
            let entry = entry.map_err(|error| BundleError::file("listing", &folder)(error.into()))?;
            let relative = entry.path().strip_prefix(&folder).unwrap_or(entry.path());
            // Each machine makes the initramfs with the guest programs of its own version.
            let is_initramfs = entry.depth() == 1 && entry.file_name().to_string_lossy().starts_with("initramfs-");
            if entry.file_type().is_file() && !is_initramfs {
                files.push((format!("{KERNEL}/{}", relative.display()), entry.path().to_owned()));
            }
        }
        for recipe in recipes {
            let image = image_name(config, recipe, &kernel_version);
            let path = build_folder.root_filesystems().join(&image);
            if !path.exists() {
                return Err(BundleError::NotPrepared(recipe.name()));
            }
            files.push((format!("{ROOTFS}/{image}"), path));
        }
        Ok(Self {
            writer: writer.to_owned(),
            suite: config.suite.clone(),
            kernel_version,
            templates: recipes.iter().map(|recipe| recipe.name().to_owned()).collect(),
            files,
        })
    }

    /// Writes the archive under another name, and renames it. Blocks.
    pub(super) fn write(self, target: &Path, meter: &Meter) -> Result<Bundle, BundleError> {
        let manifest = self.manifest(meter)?;
        let fresh = unfinished(target);
        let file = File::create(&fresh).map_err(BundleError::file("creating", &fresh))?;
        let written = self.archive(&manifest, file, &fresh, meter).and_then(|()| Ok(finish(target)?));
        if written.is_err() {
            // The error of the write matters more.
            let _ = fs::remove_file(&fresh);
        }
        written.map(|()| manifest.summary())
    }

    /// Hashes all files.
    fn manifest(&self, meter: &Meter) -> Result<Manifest, BundleError> {
        let mut total = 0;
        for (_, path) in &self.files {
            total += fs::metadata(path).map_err(BundleError::file("reading", path))?.len();
        }
        // Each file is read twice.
        meter.expect(2 * total);
        let mut entries = Vec::new();
        for (name, path) in &self.files {
            let mut file = File::open(path).map_err(BundleError::file("opening", path))?;
            let digest = digest(&mut file, None, u64::MAX, meter).map_err(|failure| match failure {
                Failure::Read(error) | Failure::Write(error) => BundleError::file("reading", path)(error),
                Failure::TooLarge | Failure::Cancelled => BundleError::Cancelled,
            })?;
            entries.push(FileEntry::new(name.clone(), digest));
        }
        let Self { writer, suite, kernel_version, templates, files: _ } = self;
        let manifest = Manifest::new(writer.clone(), suite.clone(), kernel_version.clone(), templates.clone(), entries);
        manifest.check().map_err(|reason| BundleError::Invalid { path: PathBuf::from(MANIFEST), reason })?;
        Ok(manifest)
    }

    fn archive(&self, manifest: &Manifest, file: File, path: &Path, meter: &Meter) -> Result<(), BundleError> {
        let failed = |error| BundleError::file("writing", path)(error);
        let mut encoder = zstd::Encoder::new(file, LEVEL).map_err(failed)?;
        encoder.include_checksum(true).map_err(failed)?;
        let mut archive = tar::Builder::new(encoder);
        let json = manifest.to_json();
        append(&mut archive, MANIFEST, json.len() as u64, json.as_slice()).map_err(failed)?;
        for (entry, (name, source)) in manifest.files.iter().zip(&self.files) {
            let input = File::open(source).map_err(BundleError::file("opening", source))?;
            let counted = Counted { input, meter };
            append(&mut archive, name, entry.bytes, counted)
                .map_err(|error| if meter.count(0).is_err() { BundleError::Cancelled } else { failed(error) })?;
        }
        archive.into_inner().and_then(zstd::Encoder::finish).and_then(|mut file| file.flush()).map_err(failed)
    }
}

/// Appends a regular file in ustar format, which needs no further entries for long names.
fn append(archive: &mut tar::Builder<impl Write>, path: &str, bytes: u64, content: impl Read) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_path(path)?;
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append(&header, content.take(bytes))
}

/// Input that counts the bytes and fails when the caller is gone.
struct Counted<'a> {
    input: File,
    meter: &'a Meter,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.meter.count(length).map_err(io::Error::other)?;
        Ok(length)
    }
}
