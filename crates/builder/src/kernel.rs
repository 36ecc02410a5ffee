//! The guest's kernel: Debian's cloud kernel, unpacked beside the templates and never installed.
//!
//! ```text
//! kernel/current-<suite>          the version in use, one line
//! kernel/<version>/boot/...       the package's files
//! kernel/<version>/initramfs-<h>  made by Hearth, named by a hash of its contents
//! ```
//!
//! The version changes only after an operator removes `current-<suite>`: templates are snapshots of a running kernel,
//! and a new kernel requires building them again.

use std::fs;
use std::path::{Path, PathBuf};

use hearth_vmm::Kernel;

use crate::apt::Apt;
use crate::build_folder::BuildFolder;
use crate::files::{hash, publish, read, scratch, sync_folder};
use crate::progress::{Progress, Unit};
use crate::tool::Tool;
use crate::{Config, Error, cpio, mirror::Mirror};

mod modules;

use modules::Modules;

/// Meta package that depends on the newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Modules in the initramfs.
///
/// A guest needs the first three before its root filesystem is mounted, and the daemon uses `tcp_diag` to close dead
/// connections. Other modules are loaded on demand from the root filesystem.
const MODULES: &[&str] = &["virtio_mmio", "virtio_blk", "virtio_net", "tcp_diag"];

/// Makes the kernel and the initramfs with Hearth's guest programs, unless current ones exist.
///
/// If both exist, it takes as long as reading the programs. Cancel safe: the next run removes leftovers of an
/// interrupted one.
///
/// # Errors
/// A tool or its mirror failed; earlier results are unchanged.
pub async fn ensure_kernel(config: &Config, progress: &dyn Progress) -> Result<Kernel, Error> {
    let build_folder = BuildFolder::open(config).await?;
    let unpacked = match UnpackedKernel::current(&build_folder, &config.suite)? {
        Some(unpacked) => unpacked,
        None => fetch(&build_folder, config, progress).await?,
    };
    let initramfs = ensure_initramfs(&unpacked, config, progress)?;
    progress.finished();
    Ok(Kernel { version: unpacked.version, image: unpacked.image, initramfs })
}

/// An unpacked kernel package.
#[derive(Debug)]
struct UnpackedKernel {
    version: String,
    folder: PathBuf,
    image: PathBuf,
}

impl UnpackedKernel {
    fn current(build_folder: &BuildFolder, suite: &str) -> Result<Option<Self>, Error> {
        let Ok(version) = fs::read_to_string(current_file(build_folder, suite)) else { return Ok(None) };
        let folder = build_folder.kernels().join(version.trim());
        // An operator may have removed the folder.
        if folder.is_dir() { Self::read(&folder).map(Some) } else { Ok(None) }
    }

    /// Finds the kernel image in a folder with an unpacked kernel package.
    fn read(folder: &Path) -> Result<Self, Error> {
        let boot = folder.join("boot");
        let entries = fs::read_dir(&boot).map_err(Error::file("listing", &boot))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let version = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).max();
        let missing = || Error::Unexpected {
            action: "unpacking the kernel",
            reason: format!("there is no vmlinuz in {}", boot.display()),
        };
        let version = version.ok_or_else(missing)?;
        let image = boot.join(format!("vmlinuz-{version}"));
        Ok(Self { version, folder: folder.to_owned(), image })
    }
}

/// Returns the folder of a kernel's modules: below `/usr` since Debian 13, below `/lib` before.
pub(crate) fn modules_folder(kernel: &Kernel) -> Result<PathBuf, Error> {
    let root = kernel.image.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let candidates = ["usr/lib/modules", "lib/modules"].map(|folder| root.join(folder).join(&kernel.version));
    let missing = || Error::Unexpected {
        action: "looking for the kernel's modules",
        reason: format!("there are none of version {} in {}", kernel.version, root.display()),
    };
    candidates.into_iter().find(|folder| folder.is_dir()).ok_or_else(missing)
}

/// Returns the version of the current kernel; `None` if there is none.
pub(crate) fn current_version(build_folder: &BuildFolder, suite: &str) -> Option<String> {
    let version = fs::read_to_string(current_file(build_folder, suite)).ok()?.trim().to_owned();
    // An operator may have removed the folder.
    build_folder.kernels().join(&version).is_dir().then_some(version)
}

pub(crate) fn current_file(build_folder: &BuildFolder, suite: &str) -> PathBuf {
    build_folder.kernels().join(format!("current-{suite}"))
}

async fn fetch(build_folder: &BuildFolder, config: &Config, progress: &dyn Progress) -> Result<UnpackedKernel, Error> {
    let mirror = Mirror::choose(&config.suite, config.mirror.as_deref())?;
    let apt = Apt::open(&build_folder.apt(), mirror).await?;
    apt.update(progress).await?;
    let depends = apt.field(META_PACKAGE, "Depends").await?;
    let package = image_package(&depends).ok_or_else(|| Error::Unexpected {
        action: "looking for the newest kernel",
        reason: format!("{META_PACKAGE} depends on no image: {depends}"),
    })?;
    let fresh = scratch(&build_folder.kernels())?;
    apt.download(package, fresh.path(), progress).await?;
    let archive = only_entry(fresh.path())?;
    progress.phase("kernel unpacking", Unit::Steps, None);
    let unpack = Tool::new("dpkg-deb", "dpkg").arg("-x").args([archive.as_path(), fresh.path()]);
    unpack.lines("unpacking the kernel").await?;
    fs::remove_file(&archive).map_err(Error::file("removing", &archive))?;
    let version = UnpackedKernel::read(fresh.path())?.version;
    let folder = build_folder.kernels().join(&version);
    fresh.publish(&folder)?;
    publish(&current_file(build_folder, &config.suite), version.as_bytes())?;
    UnpackedKernel::read(&folder)
}

/// Returns the image among the dependencies of the meta package: `linux-image-<version>-cloud-amd64 (= ...)`.
fn image_package(depends: &str) -> Option<&str> {
    let names = depends.split(',').filter_map(|dependency| dependency.split_whitespace().next());
    names.into_iter().find(|name| name.starts_with("linux-image-"))
}

fn only_entry(folder: &Path) -> Result<PathBuf, Error> {
    let mut entries = fs::read_dir(folder).map_err(Error::file("listing", folder))?.flatten();
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => Err(Error::Unexpected {
            action: "fetching the kernel",
            reason: format!("there is not one file in {}", folder.display()),
        }),
    }
}

/// Makes the initramfs with the guest programs and the modules, unless it exists.
fn ensure_initramfs(kernel: &UnpackedKernel, config: &Config, progress: &dyn Progress) -> Result<PathBuf, Error> {
    let init = read(&config.guest.init)?;
    let envd = read(&config.guest.envd)?;
    let interpreter = config.guest.interpreter.as_deref().map(read).transpose()?;
    let programs = [REVISION.as_bytes(), &init, &envd].into_iter().chain(interpreter.as_deref());
    let name = format!("initramfs-{}", &hash(programs)[..16]);
    let path = kernel.folder.join(&name);
    if path.exists() {
        return Ok(path);
    }
    progress.phase("initramfs", Unit::Steps, None);
    let bytes = initramfs(init, envd, interpreter, &Modules::read(&kernel.folder)?)?;
    publish(&path, &bytes)?;
    for entry in fs::read_dir(&kernel.folder).map_err(Error::file("listing", &kernel.folder))?.flatten() {
        let old = entry.file_name();
        if old.to_string_lossy().starts_with("initramfs-") && old.to_string_lossy() != name {
            // A VM that boots from it has read it already.
            let _ = fs::remove_file(entry.path());
        }
    }
    sync_folder(&kernel.folder)?;
    Ok(path)
}

/// Incremented when an initramfs of the same programs gets other contents.
const REVISION: &str = "1";

/// Builds the archive, uncompressed: the kernel would need more time to decompress it than the host saves on reading.
fn initramfs(init: Vec<u8>, envd: Vec<u8>, interpreter: Option<Vec<u8>>, modules: &Modules) -> Result<Vec<u8>, Error> {
    let mut archive = cpio::Archive::default();
    // The kernel opens it for PID 1 before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.folder("proc").folder("sys").folder("root");
    archive.file("init", 0o755, init).file("envd", 0o755, envd);
    if let Some(interpreter) = interpreter {
        archive.file("hearth-interpreter", 0o755, interpreter);
    }
    let mut order = String::new();
    for (name, bytes) in modules.in_load_order(MODULES)? {
        let file = format!("{name}.ko");
        order.push_str(&file);
        order.push('\n');
        archive.file(&format!("modules/{file}"), 0o644, bytes);
    }
    archive.file("modules/order", 0o644, order.into_bytes());
    archive.into_bytes().map_err(Error::file("putting together", "initramfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_among_dependencies() {
        let depends = "linux-image-6.12.1+deb13-cloud-amd64 (= 6.12.1-1), other";
        assert_eq!(image_package(depends), Some("linux-image-6.12.1+deb13-cloud-amd64"));
        assert_eq!(image_package("a, b (>= 1)"), None);
    }
}
