//! The root filesystem of the base template: Debian's packages, furnished, in an ext4 image.
//!
//! ```text
//! rootfs/base-<key>.ext4   a finished image, sparse
//! rootfs/making/           where one is made
//! ```
//!
//! `mmdebstrap` installs the packages; the image is filled by `mkfs.ext4 -d`, so nothing is mounted on the host. What has to
//! be done as root of the new system happens in namespaces of its own ([`Privilege`]), which end with their processes: a
//! killed build leaves no mount. Without root, a user namespace stands in (subuid(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hearth_vmm::Kernel;

use crate::apt::Apt;
use crate::files::{finish, hash, publish, remove, unfinished};
use crate::kernel::modules_folder;
use crate::mirror::Mirror;
use crate::progress::{Progress, Unit};
use crate::tool::Tool;
use crate::workshop::Workshop;
use crate::{Config, Error};

const PACKAGES: &str = include_str!("../../../guest/base/packages");
const PROVISION: &str = include_str!("../../../guest/base/provision.sh");
const PACK: &str = include_str!("rootfs/pack.sh");
/// Raised when the same inputs become another image.
const REVISION: &str = "1";

/// Archive, its tree and the image exist at the same time.
const NEEDED_BYTES: u64 = 5 << 30;

/// What dpkg leaves out of the image and always will in it: a sandbox has no readers of manuals, and no use for waiting
/// until a package is safely on the disk.
const DPKG_OPTIONS: &[&str] = &[
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/man/*",
];

/// A finished image.
#[derive(Debug)]
pub(crate) struct RootFilesystem {
    /// Over all that went into it.
    pub(crate) key: String,
    pub(crate) image: PathBuf,
}

/// Makes sure that the image is there; images of other keys are removed.
pub(crate) async fn ensure(
    workshop: &Workshop,
    config: &Config,
    kernel: &Kernel,
    progress: &dyn Progress,
) -> Result<RootFilesystem, Error> {
    let work = Work { folder: workshop.work(), privilege: Privilege::of_this_process() };
    work.clear().await?;
    let key = key(config, kernel);
    let image = workshop.root_filesystems().join(format!("base-{}.ext4", &key[..16]));
    if !image.exists() {
        crate::require_space(&workshop.root_filesystems(), NEEDED_BYTES, "make the base template's root filesystem")?;
        work.create()?;
        let archive = install(workshop, config, &work, progress).await?;
        pack(config, kernel, &work, &archive, &image, progress).await?;
        work.clear().await?;
        workshop.forget_packages()?;
    }
    for entry in read_folder(&workshop.root_filesystems())? {
        if entry != image && entry.extension().is_some_and(|extension| extension == "ext4") {
            remove(&entry)?;
        }
    }
    Ok(RootFilesystem { key, image })
}

fn key(config: &Config, kernel: &Kernel) -> String {
    let nameserver = config.nameserver.to_string();
    let disk = config.resources.disk_mib.to_string();
    let mut texts = vec![REVISION, PACKAGES, PROVISION, PACK, &config.suite, &kernel.version, &nameserver, &disk];
    texts.extend(DPKG_OPTIONS);
    hash(texts.into_iter().map(str::as_bytes))
}

fn read_folder(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("listing", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn packages() -> Vec<&'static str> {
    PACKAGES.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Whether the system that is being made may be in memory, of which it takes a third of this. A disk that is busy makes
/// tens of thousands of small files slow.
fn memory_is_plenty() -> bool {
    const PLENTY_KIB: u64 = 6 << 20;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    available.and_then(|text| text.split_whitespace().next()?.parse().ok()).is_some_and(|kib: u64| kib >= PLENTY_KIB)
}

/// Where an image is made.
struct Work {
    folder: PathBuf,
    privilege: Privilege,
}

impl Work {
    fn create(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.folder).map_err(Error::file("creating the folder", &self.folder))?;
        let temporary = self.temporary();
        fs::create_dir_all(&temporary).map_err(Error::file("creating the folder", &temporary))?;
        // In a user namespace, its root is not this user.
        let mode = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(&temporary, mode).map_err(Error::file("opening for all", &temporary))
    }

    /// Where mmdebstrap installs: a place that the root of a user namespace can reach, as a home folder often is not.
    fn temporary(&self) -> PathBuf {
        match self.privilege {
            Privilege::Root => self.folder.join("tmp"),
            Privilege::UserNamespace => {
                let mark = &hash([self.folder.as_os_str().as_encoded_bytes()])[..16];
                std::env::temp_dir().join(format!("hearth-build-{mark}"))
            }
        }
    }

    /// Removes what is there, also what a killed run left.
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

/// How this process becomes root of a new system.
#[derive(Debug, Clone, Copy)]
enum Privilege {
    Root,
    UserNamespace,
}

impl Privilege {
    fn of_this_process() -> Self {
        if hearth_host::requirement::is_root() { Self::Root } else { Self::UserNamespace }
    }

    /// A command line that runs what follows with mounts and processes of its own, which end with it (unshare(1)).
    fn tool(self) -> Tool {
        let tool = Tool::new("unshare", "util-linux");
        let tool = match self {
            Self::Root => tool,
            Self::UserNamespace => tool.args(["--user", "--map-root-user", "--map-auto"]),
        };
        tool.args(["--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--"])
    }

    /// The same for mmdebstrap, which makes a user namespace itself, with its `TMPDIR` in memory if that is wanted.
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
async fn install(workshop: &Workshop, config: &Config, work: &Work, progress: &dyn Progress) -> Result<PathBuf, Error> {
    // The program is looked up first: it is the one that people lack, and the packages are many.
    Tool::new("mmdebstrap", "mmdebstrap").arg("--version").lines("looking at mmdebstrap").await?;
    let mirror = Mirror::choose(&config.suite, config.mirror.as_deref())?;
    let apt = Apt::open(&workshop.apt(), mirror).await?;
    apt.update(progress).await?;
    // The first ones are what mmdebstrap begins with.
    let mut wanted = vec!["?essential", "?priority(required)", "apt"];
    wanted.extend(packages());
    apt.fetch(&wanted, progress).await?;

    let archive = work.folder.join("root.tar");
    progress.phase("package installation", Unit::Steps, None);
    let mut steps = Steps::default();
    let tool = work
        .privilege
        .mmdebstrap(memory_is_plenty())
        .env("TMPDIR", work.temporary())
        .args(["--variant=minbase", "--format=tar", "--architectures=amd64", "--verbose"])
        .arg(format!("--include={}", packages().join(",")))
        .args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")))
        .args(apt.settings().iter().map(|setting| format!("--aptopt={setting}")))
        // What is fetched already need not be fetched again.
        .args(["--skip=download/empty", "--skip=essential/unlink"])
        .arg("--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives")
        .arg(sync_in(&apt.archives())?)
        .arg(&config.suite)
        .arg(&archive)
        .args(apt.sources());
    let see = |line: &str| {
        if let Some((done, total)) = steps.see(line) {
            progress.advance(done, total);
        }
    };
    tool.run("installing the base template's packages", see, || {}).await?;
    Ok(archive)
}

/// A hook that copies the packages of `archives` in. mmdebstrap splits it like a shell.
fn sync_in(archives: &Path) -> Result<OsString, Error> {
    let path = archives.to_str().filter(|path| !path.contains(['\'', '\n']));
    let odd = || Error::Unexpected {
        action: "installing the base template's packages",
        reason: format!("the path {} has characters that a shell command cannot have", archives.display()),
    };
    Ok(format!("--setup-hook=sync-in '{}' /var/cache/apt/archives", path.ok_or_else(odd)?).into())
}

/// Counts what dpkg tells: every package is unpacked and then set up.
#[derive(Debug, Default)]
struct Steps {
    done: u64,
    total: u64,
}

impl Steps {
    /// Looks at a line of apt's or dpkg's; the new numbers, if they changed.
    fn see(&mut self, line: &str) -> Option<(u64, u64)> {
        if let Some((_, rest)) = line.split_once(" upgraded, ") {
            let packages: u64 = rest.split_whitespace().next()?.parse().ok()?;
            // Told by more than one run of apt: the largest is the one that installs.
            self.total = self.total.max(packages * 2);
        } else if line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
            self.done += 1;
        } else {
            return None;
        }
        Some((self.done, self.total.max(self.done)))
    }
}

/// Furnishes the system and puts it into the image.
async fn pack(
    config: &Config,
    kernel: &Kernel,
    work: &Work,
    archive: &Path,
    image: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    progress.phase("root filesystem", Unit::Steps, None);
    let script = work.folder.join("provision.sh");
    publish(&script, PROVISION.as_bytes())?;
    let tool = work
        .privilege
        .tool()
        .args(["sh", "-eu", "-c", PACK, "pack"])
        .args([archive, &work.folder.join("tree"), &modules_folder(kernel)?])
        .arg(&kernel.version)
        .arg(&script)
        .arg(config.nameserver.to_string())
        .arg(unfinished(image))
        .arg(format!("{}M", config.resources.disk_mib))
        .arg(if memory_is_plenty() { "memory" } else { "disk" });
    // Not there under every PATH: tune2fs(8) and its kin are an administrator's tools.
    Tool::new("mkfs.ext4", "e2fsprogs").arg("-V").lines("looking at mkfs.ext4").await?;
    tool.lines("making the base template's root filesystem").await?;
    finish(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_list_is_sound() {
        let packages = packages();
        assert!(packages.contains(&"python3") && packages.contains(&"nodejs"));
        for package in &packages {
            assert!(
                package
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)),
                "{package}"
            );
            assert_eq!(packages.iter().filter(|other| *other == package).count(), 1, "{package} stands twice");
        }
    }

    #[test]
    fn steps_are_counted_from_what_the_tools_say() {
        let mut steps = Steps::default();
        assert_eq!(steps.see("Reading package lists..."), None);
        assert_eq!(steps.see("0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."), Some((0, 4)));
        assert_eq!(steps.see("Unpacking bash (5.2) ..."), Some((1, 4)));
        assert_eq!(steps.see("Setting up bash (5.2) ..."), Some((2, 4)));
        assert_eq!(steps.see("0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded."), Some((2, 4)));
    }

    #[test]
    fn a_path_cannot_break_out_of_its_hook() {
        assert!(sync_in(Path::new("/a b/c")).is_ok());
        assert!(sync_in(Path::new("/a'; rm -rf x; '")).is_err());
    }
}
