//! Reading of a bundle. Nothing in the file is trusted until it was compared with the manifest, and the manifest checked.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use super::content::{Digest, Failure, digest};
use super::manifest::{FileEntry, KERNEL, MANIFEST, MANIFEST_BYTES_MAX, Manifest, ROOTFS};
use super::{Bundle, BundleError, Meter};
use crate::build_folder::BuildFolder;
use crate::files::{Scratch, publish, scratch, sync_folder};
use crate::kernel::current_file;
use crate::rootfs::image_name;
use crate::{Config, Recipe};

/// Maximum window of the compression: 128 MiB, zstd's own limit for untrusted input.
const WINDOW_LOG_MAX: u32 = 27;
/// Maximum size of what may follow the last file: the end of the archive, with the padding that tar programs add.
const TRAILER_BYTES_MAX: u64 = 1 << 20;

type Decoder = zstd::Decoder<'static, BufReader<File>>;

/// An opened bundle whose manifest was read.
pub(super) struct Reader {
    path: PathBuf,
    manifest: Manifest,
}

/// Decision about the files of a bundle.
pub(super) struct Plan {
    reader: Reader,
    /// Paths in the archive of the wanted files.
    wanted: Vec<String>,
    scratch: Scratch,
    kernels: PathBuf,
    root_filesystems: PathBuf,
    current: PathBuf,
}

fn invalid(path: &Path, reason: impl Into<String>) -> BundleError {
    BundleError::Invalid { path: path.to_owned(), reason: reason.into() }
}

/// Maps an error of the compressed archive; a truncated file is one.
fn damaged(path: &Path) -> impl Fn(io::Error) -> BundleError {
    let path = path.to_owned();
    move |error| invalid(&path, format!("it is damaged or incomplete ({error})"))
}

fn open(path: &Path) -> Result<Archive<Decoder>, BundleError> {
    let file = File::open(path).map_err(BundleError::file("opening", path))?;
    let mut decoder = Decoder::new(file).map_err(damaged(path))?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged(path))?;
    Ok(Archive::new(decoder))
}

impl Reader {
    /// Reads the manifest.
    pub(super) fn open(path: &Path) -> Result<Self, BundleError> {
        let mut archive = open(path)?;
        let mut entries = archive.entries().map_err(damaged(path))?.raw(true);
        let mut first = entries
            .next()
            .ok_or_else(|| invalid(path, "it is empty"))?
            .map_err(|_| invalid(path, "it is not a compressed tar archive of `hearth bundle`"))?;
        let json = read_manifest(path, &mut first)?;
        let manifest = Manifest::parse(&json).map_err(|reason| invalid(path, reason))?;
        Ok(Self { path: path.to_owned(), manifest })
    }

    /// Decides which files are needed for these recipes.
    pub(super) fn plan(
        self,
        build_folder: &BuildFolder,
        config: &Config,
        recipes: &[&'static Recipe],
    ) -> Result<Plan, BundleError> {
        let Manifest { writer, suite, kernel_version, files, .. } = &self.manifest;
        if *suite != config.suite {
            let reason = format!("it is made from Debian's {suite}, and this version uses {}", config.suite);
            return Err(invalid(&self.path, reason));
        }
        let (kernels, root_filesystems) = (build_folder.kernels(), build_folder.root_filesystems());
        let mut wanted = Vec::new();
        for recipe in recipes {
            let image = image_name(config, recipe, kernel_version);
            let path = format!("{ROOTFS}/{image}");
            if !files.iter().any(|file| file.path == path) {
                return Err(BundleError::OtherVersion { writer: writer.clone(), template: recipe.name() });
            }
            if !root_filesystems.join(&image).exists() {
                wanted.push(path);
            }
        }
        if !kernels.join(kernel_version).is_dir() {
            let of_kernel = files.iter().filter(|file| file.path.starts_with(&format!("{KERNEL}/")));
            wanted.extend(of_kernel.map(|file| file.path.clone()));
        }
        let needed = files.iter().filter(|file| wanted.contains(&file.path)).map(|file| file.data_bytes).sum();
        crate::require_space(build_folder.path(), needed, "unpack the bundle")?;
        let current = current_file(build_folder, suite);
        let scratch = scratch(build_folder.path())?;
        Ok(Plan { reader: self, wanted, scratch, kernels, root_filesystems, current })
    }
}

fn read_manifest(path: &Path, entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, BundleError> {
    let not_a_bundle = || invalid(path, "it does not begin with the manifest of `hearth bundle`");
    check_entry(entry, MANIFEST).map_err(|_| not_a_bundle())?;
    if entry.size() > MANIFEST_BYTES_MAX {
        return Err(invalid(path, format!("its manifest is larger than {MANIFEST_BYTES_MAX} bytes")));
    }
    let mut json = Vec::new();
    entry.take(MANIFEST_BYTES_MAX).read_to_end(&mut json).map_err(damaged(path))?;
    Ok(json)
}

/// Checks that an entry is a regular file of this path.
fn check_entry(entry: &tar::Entry<'_, impl Read>, path: &str) -> Result<(), String> {
    if entry.header().entry_type() != EntryType::Regular {
        return Err(format!("it has something else than the regular file {path:?}"));
    }
    if entry.path_bytes() != path.as_bytes() {
        return Err(format!("{:?} is in the place of {path:?}", String::from_utf8_lossy(&entry.path_bytes())));
    }
    Ok(())
}

impl Plan {
    /// Unpacks the wanted files, and moves them to their place once all are checked. Blocks.
    pub(super) fn unpack(self, meter: &Meter) -> Result<Bundle, BundleError> {
        let Manifest { kernel_version, .. } = &self.reader.manifest;
        if !self.wanted.is_empty() {
            self.unpack_files(meter)?;
            self.move_files()?;
        }
        publish(&self.current, kernel_version.as_bytes())?;
        Ok(self.reader.manifest.summary())
    }

    fn unpack_files(&self, meter: &Meter) -> Result<(), BundleError> {
        let Reader { path, manifest } = &self.reader;
        meter.expect(manifest.bytes());
        let mut archive = open(path)?;
        let mut entries = archive.entries().map_err(damaged(path))?.raw(true);
        let mut first = entries.next().ok_or_else(|| invalid(path, "it is empty"))?.map_err(damaged(path))?;
        // The file may have been replaced since it was opened first.
        let again = Manifest::parse(&read_manifest(path, &mut first)?).map_err(|reason| invalid(path, reason))?;
        if again != *manifest {
            return Err(invalid(path, "it changed while it was read"));
        }
        drop(first);
        for file in &manifest.files {
            let entry = entries.next().ok_or_else(|| invalid(path, format!("{:?} is missing", file.path)))?;
            let mut entry = entry.map_err(damaged(path))?;
            check_entry(&entry, &file.path).map_err(|reason| invalid(path, reason))?;
            if entry.size() != file.bytes {
                return Err(invalid(path, format!("{:?} does not have the size in the manifest", file.path)));
            }
            self.unpack_file(file, &mut entry, meter)?;
        }
        if entries.next().is_some() {
            return Err(invalid(path, "it has more files than its manifest lists"));
        }
        // Reads the checksum at the end, so that a truncated file is detected.
        let mut rest = archive.into_inner();
        let length = io::copy(&mut rest.by_ref().take(TRAILER_BYTES_MAX), &mut io::sink()).map_err(damaged(path))?;
        if length == TRAILER_BYTES_MAX {
            return Err(invalid(path, "something follows its last file"));
        }
        Ok(())
    }

    /// Unpacks one file into the scratch folder, or only checks it if it is not wanted.
    fn unpack_file(&self, file: &FileEntry, source: &mut impl Read, meter: &Meter) -> Result<(), BundleError> {
        let path = &self.reader.path;
        let target = self.scratch.path().join(&file.path);
        let output = if self.wanted.contains(&file.path) {
            let folder = target.parent().unwrap_or(&target);
            fs::create_dir_all(folder).map_err(BundleError::file("creating the folder", folder))?;
            Some(File::create_new(&target).map_err(BundleError::file("creating", &target))?)
        } else {
            None
        };
        let found = digest(source, output.as_ref(), file.data_bytes, meter).map_err(|failure| match failure {
            Failure::Read(error) => damaged(path)(error),
            Failure::Write(error) => BundleError::file("writing", &target)(error),
            Failure::TooLarge => invalid(path, format!("{:?} has more data than its manifest lists", file.path)),
            Failure::Cancelled => BundleError::Cancelled,
        })?;
        let Digest { bytes, data_bytes: _, hash } = found;
        if bytes != file.bytes || hash != file.blake3 {
            return Err(invalid(path, format!("{:?} is damaged: its hash is not that of the manifest", file.path)));
        }
        Ok(())
    }

    /// Moves the checked files. The mark of the current kernel follows later, so an interruption leaves valid files.
    fn move_files(&self) -> Result<(), BundleError> {
        let scratch = self.scratch.path();
        let opened = File::open(scratch).map_err(BundleError::file("opening", scratch))?;
        // One call instead of thousands of fsyncs.
        rustix::fs::syncfs(&opened).map_err(|errno| BundleError::file("syncing", scratch)(errno.into()))?;
        let kernel = self.kernels.join(&self.reader.manifest.kernel_version);
        if scratch.join(KERNEL).is_dir() {
            fs::rename(scratch.join(KERNEL), &kernel).map_err(BundleError::file("publishing", &kernel))?;
            sync_folder(&self.kernels)?;
        }
        for path in self.wanted.iter().filter_map(|path| path.strip_prefix(&format!("{ROOTFS}/"))) {
            let target = self.root_filesystems.join(path);
            let unpacked = scratch.join(ROOTFS).join(path);
            fs::rename(&unpacked, &target).map_err(BundleError::file("publishing", &target))?;
        }
        sync_folder(&self.root_filesystems)?;
        Ok(())
    }
}
