//! The root filesystem of a template: Debian's packages, configured, in an ext4 image.
//!
//! ```text
//! rootfs/<recipe>-<key>.ext4   a finished image, sparse
//! rootfs/<recipe>-<key>.tar    installed packages, until the image is finished
//! rootfs/making/               folder in which one is made
//! ```
//!
//! `mmdebstrap` installs the packages, and `mkfs.ext4 -d` fills the image, so nothing is mounted on the host.
//! WorkFolder that needs root of the new system runs in separate namespaces ([`Privilege`]), which end with their
//! processes: a killed build leaves no mount. Without root, it runs in a user namespace (subuid(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hearth_vmm::Kernel;

use crate::apt::Apt;
use crate::build_folder::BuildFolder;
use crate::files::{finish, hash, remove, unfinished};
use crate::kernel::modules_folder;
use crate::mirror::Mirror;
use crate::progress::{Progress, Unit};
use crate::recipe::Recipe;
use crate::registries::Registries;
use crate::tool::Tool;
use crate::{Config, Error};

mod layers;
mod step;

use step::Steps;

const PACK: &str = include_str!("rootfs/pack.sh");
/// Incremented when the same inputs give another image.
const REVISION: &str = "1";

/// Number of copies of the system on the disk during the work: its archive, the image, and its tree if not in memory.
const COPIES: u64 = 3;
/// Bytes for fetched packages and for the work of the tools.
const RESERVE_BYTES: u64 = 1 << 30;
/// Length of the part of a key that is in a file name.
const KEY_CHARS: usize = 16;

/// Options of dpkg during the build and, later, in the image.
///
/// They leave out documentation, which is not needed in a sandbox, and do not wait until a package is safely on the
/// disk.
const DPKG_OPTIONS: &[&str] = &[
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/man/*",
    // The folders without the pages, because the setup of some packages, such as OpenJDK, writes links there.
    "path-include=/usr/share/man/man[1-9]",
];

/// A finished image.
#[derive(Debug)]
pub(crate) struct RootFilesystem {
    /// Hash over all inputs.
    pub(crate) key: String,
    pub(crate) image: PathBuf,
}

/// Makes the image unless it exists; the recipe's images of other keys are removed.
pub(crate) async fn ensure(
    build_folder: &BuildFolder,
    config: &Config,
    recipe: &Recipe,
    kernel: &Kernel,
    progress: &dyn Progress,
) -> Result<RootFilesystem, Error> {
    let work = WorkFolder { folder: build_folder.work(), privilege: Privilege::of_this_process() };
    work.clear().await?;
    let key = key(config, recipe, kernel);
    let image = build_folder.root_filesystems().join(name_of_image(recipe, &key));
    if !image.exists() {
        let copies = COPIES - u64::from(has_plenty_of_memory(recipe));
        let needed_bytes = recipe.installed_bytes() * copies + RESERVE_BYTES;
        crate::require_space(&build_folder.root_filesystems(), needed_bytes, "make the template's root filesystem")?;
        let archive = build_folder.root_filesystems().join(archive_name(config, recipe));
        if !archive.exists() {
            work.create()?;
            install(build_folder, config, recipe, &work, &archive, progress).await?;
            work.clear().await?;
            build_folder.remove_packages()?;
        }
        work.create()?;
        pack(config, recipe, kernel, &work, &archive, &image, progress).await?;
        work.clear().await?;
    }
    for entry in read_folder(&build_folder.root_filesystems())? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        // Another recipe may have an archive of an interrupted build.
        if entry != image && recipe_of_file(&name) == Some(recipe.name()) {
            remove(&entry)?;
        }
    }
    Ok(RootFilesystem { key, image })
}

fn key(config: &Config, recipe: &Recipe, kernel: &Kernel) -> String {
    let nameserver = config.nameserver.to_string();
    let disk = recipe.resources().disk_mib.to_string();
    let mut texts = vec![REVISION, PACK, &config.suite, &kernel.version, &nameserver, &disk];
    texts.extend(DPKG_OPTIONS);
    hash(texts.into_iter().map(str::as_bytes).chain(recipe.inputs()))
}

/// Returns the file name of a recipe's current image for a kernel.
pub(crate) fn image_name(config: &Config, recipe: &Recipe, kernel_version: &str) -> String {
    let kernel = Kernel { version: kernel_version.to_owned(), image: PathBuf::new(), initramfs: PathBuf::new() };
    name_of_image(recipe, &key(config, recipe, &kernel))
}

fn name_of_image(recipe: &Recipe, key: &str) -> String {
    format!("{}-{}.ext4", recipe.name(), &key[..KEY_CHARS])
}

/// Returns the name of the archive with the recipe's packages, for a build that goes on after it failed later.
fn archive_name(config: &Config, recipe: &Recipe) -> String {
    let mut texts = vec![REVISION, &config.suite];
    texts.extend(DPKG_OPTIONS);
    texts.extend(recipe.packages());
    let key = hash(texts.into_iter().map(str::as_bytes));
    format!("{}-{}.tar", recipe.name(), &key[..KEY_CHARS])
}

/// Returns the recipe's name in the name of an image or an archive.
fn recipe_of_file(name: &str) -> Option<&str> {
    let (recipe, key) = name.strip_suffix(".ext4").or_else(|| name.strip_suffix(".tar"))?.rsplit_once('-')?;
    (key.len() == KEY_CHARS).then_some(recipe)
}

fn read_folder(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("listing", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Returns true if there is enough memory to make the system in memory.
///
/// On a busy disk, tens of thousands of small files are slow.
fn has_plenty_of_memory(recipe: &Recipe) -> bool {
    /// Part of the available memory that a system may take, so that the host stays usable: one in four.
    const SHARE: u64 = 4;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available_kib: Option<u64> = available.and_then(|text| text.split_whitespace().next()?.parse().ok());
    available_kib.is_some_and(|kib| kib << 10 >= recipe.installed_bytes() * SHARE)
}

/// Folder in which an image is made.
struct WorkFolder {
    folder: PathBuf,
    privilege: Privilege,
}

impl WorkFolder {
    fn create(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.folder).map_err(Error::file("creating the folder", &self.folder))?;
        let temporary = self.temporary();
        fs::create_dir_all(&temporary).map_err(Error::file("creating the folder", &temporary))?;
        // Root of a user namespace is another user than this process's.
        let mode = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(&temporary, mode).map_err(Error::file("opening for all", &temporary))
    }

    /// Returns the folder in which mmdebstrap installs.
    ///
    /// Root of a user namespace must be able to reach it, which it often cannot in a home folder.
    fn temporary(&self) -> PathBuf {
        match self.privilege {
            Privilege::Root => self.folder.join("tmp"),
            Privilege::UserNamespace => {
                let mark = &hash([self.folder.as_os_str().as_encoded_bytes()])[..16];
                std::env::temp_dir().join(format!("hearth-build-{mark}"))
            }
        }
    }

    /// Removes the folders with their contents, also leftovers of a killed run.
    async fn clear(&self) -> Result<(), Error> {
        for folder in [&self.folder, &self.temporary()] {
            if folder.exists() {
                let tool = self.privilege.tool().args(["rm", "-rf", "--"]).arg(folder);
                tool.lines("removing an unfinished root filesystem").await?;
            }
        }
        Ok(())
    }
}

/// Way in which this process becomes root of a new system.
#[derive(Debug, Clone, Copy)]
enum Privilege {
    Root,
    UserNamespace,
}

impl Privilege {
    fn of_this_process() -> Self {
        if hearth_host::requirement::is_root() { Self::Root } else { Self::UserNamespace }
    }

    /// Returns a command line that runs a program with its own mounts and processes, which end with it (unshare(1)).
    fn tool(self) -> Tool {
        let tool = Tool::new("unshare", "util-linux");
        let tool = match self {
            Self::Root => tool,
            Self::UserNamespace => tool.args(["--user", "--map-root-user", "--map-auto"]),
        };
        tool.args(["--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--"])
    }

    /// Returns the same for mmdebstrap, which creates a user namespace itself; `in_memory` puts its `TMPDIR` in memory.
    fn mmdebstrap(self, in_memory: bool) -> Tool {
        const PROGRAM: &str = "mmdebstrap";
        const IN_MEMORY: &str = "mount -t tmpfs tmpfs \"$TMPDIR\"; exec \"$0\" \"$@\"";
        match self {
            Self::Root if in_memory => self.tool().args(["sh", "-eu", "-c", IN_MEMORY, PROGRAM, "--mode=root"]),
            Self::Root => self.tool().args([PROGRAM, "--mode=root"]),
            Self::UserNamespace => Tool::new(PROGRAM, PROGRAM).arg("--mode=unshare"),
        }
    }
}

/// Installs the packages into an archive.
async fn install(
    build_folder: &BuildFolder,
    config: &Config,
    recipe: &Recipe,
    work: &WorkFolder,
    archive: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    // The program is checked first: it is often missing, and fetching the packages takes long.
    Tool::new("mmdebstrap", "mmdebstrap").arg("--version").lines("checking mmdebstrap").await?;
    let mirror = Mirror::choose(&config.suite, config.mirror.as_deref())?;
    let apt = Apt::open(&build_folder.apt(), mirror).await?;
    apt.update(progress).await?;
    // mmdebstrap begins with these three.
    let mut wanted = vec!["?essential", "?priority(required)", "apt"];
    let packages = recipe.packages();
    wanted.extend(&packages);
    apt.fetch(&wanted, progress).await?;

    progress.phase("package installation", Unit::Steps, None);
    let mut steps = DpkgProgress::default();
    let tool = work
        .privilege
        .mmdebstrap(has_plenty_of_memory(recipe))
        .env("TMPDIR", work.temporary())
        .args(["--variant=minbase", "--format=tar", "--architectures=amd64", "--verbose"])
        .arg(format!("--include={}", packages.join(",")))
        .args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")))
        .args(apt.settings().iter().map(|setting| format!("--aptopt={setting}")))
        // Packages that are fetched already are not fetched again.
        .args(["--skip=download/empty", "--skip=essential/unlink"])
        .arg("--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives")
        .arg(sync_in(&apt.archives())?)
        .arg(&config.suite)
        .arg(unfinished(archive))
        .args(apt.sources());
    let on_line = |line: &str| {
        if let Some((done, total)) = steps.parse_line(line) {
            progress.advance(done, total);
        }
    };
    tool.run("installing the template's packages", on_line, || {}).await?;
    finish(archive)
}

/// Returns a hook that copies the packages of `archives` into the system. mmdebstrap splits it like a shell.
fn sync_in(archives: &Path) -> Result<OsString, Error> {
    let path = archives.to_str().filter(|path| !path.contains(['\'', '\n']));
    let invalid = || Error::Unexpected {
        action: "installing the template's packages",
        reason: format!("the path {} has characters that a shell command cannot have", archives.display()),
    };
    Ok(format!("--setup-hook=sync-in '{}' /var/cache/apt/archives", path.ok_or_else(invalid)?).into())
}

/// Counts dpkg's steps: every package is unpacked and then set up.
#[derive(Debug, Default)]
struct DpkgProgress {
    done: u64,
    total: u64,
}

impl DpkgProgress {
    /// Parses a line of apt's or dpkg's output; returns the done and total steps if they changed.
    fn parse_line(&mut self, line: &str) -> Option<(u64, u64)> {
        if let Some((_, rest)) = line.split_once(" upgraded, ") {
            let packages: u64 = rest.split_whitespace().next()?.parse().ok()?;
            // Several runs of apt print it: the largest number is of the run that installs.
            self.total = self.total.max(packages * 2);
        } else if line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
            self.done += 1;
        } else {
            return None;
        }
        Some((self.done, self.total.max(self.done)))
    }
}

/// Configures the system and writes it into the image.
async fn pack(
    config: &Config,
    recipe: &Recipe,
    kernel: &Kernel,
    work: &WorkFolder,
    archive: &Path,
    image: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let folder_of_layers = work.folder.join("layers");
    layers::write(&folder_of_layers, recipe)?;
    let registries = work.folder.join("registries");
    if recipe.uses_registries() {
        Registries::read(Path::new("/"), &config.variables).write(&registries)?;
    }
    // May be missing in a user's PATH, because it is an administrator's tool.
    Tool::new("mkfs.ext4", "e2fsprogs").arg("-V").lines("checking mkfs.ext4").await?;
    let tool = work
        .privilege
        .tool()
        .args(["sh", "-eu", "-c", PACK, "pack"])
        .args([archive, &work.folder.join("tree"), &modules_folder(kernel)?])
        .arg(&kernel.version)
        .args([&folder_of_layers, &registries])
        .arg(config.nameserver.to_string())
        .arg(unfinished(image))
        .arg(format!("{}M", recipe.resources().disk_mib))
        .arg(if has_plenty_of_memory(recipe) { "memory" } else { "disk" });
    let mut steps = Steps::begin(progress);
    let result = tool.run(steps.current.action(), |line| steps.read_line(line, progress), || {}).await;
    // They may have credentials.
    remove(&registries)?;
    match result {
        Ok(()) => {}
        Err(Error::Tool { program, status, tail, .. }) => {
            return Err(Error::Tool { action: steps.current.action(), program, status, tail });
        }
        Err(error) => return Err(error),
    }
    let tree_mib = steps.tree_mib.unwrap_or_default();
    tracing::info!(recipe = recipe.name(), tree_mib, "made a root filesystem");
    finish(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_archives_belong_to_recipes() {
        assert_eq!(recipe_of_file("base-0123456789abcdef.ext4"), Some("base"));
        assert_eq!(recipe_of_file("code-interpreter-v1-0123456789abcdef.ext4"), Some("code-interpreter-v1"));
        assert_eq!(recipe_of_file("base-0123.ext4"), None);
        assert_eq!(recipe_of_file("desktop-0123456789abcdef.tar"), Some("desktop"));
        assert_eq!(recipe_of_file("base-0123456789abcdef"), None);
    }

    #[test]
    fn steps_are_counted_from_the_tools_output() {
        let mut steps = DpkgProgress::default();
        assert_eq!(steps.parse_line("Reading package lists..."), None);
        assert_eq!(steps.parse_line("0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."), Some((0, 4)));
        assert_eq!(steps.parse_line("Unpacking bash (5.2) ..."), Some((1, 4)));
        assert_eq!(steps.parse_line("Setting up bash (5.2) ..."), Some((2, 4)));
        assert_eq!(steps.parse_line("0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded."), Some((2, 4)));
    }

    #[test]
    fn a_path_cannot_break_out_of_its_hook() {
        assert!(sync_in(Path::new("/a b/c")).is_ok());
        assert!(sync_in(Path::new("/a'; rm -rf x; '")).is_err());
    }
}
