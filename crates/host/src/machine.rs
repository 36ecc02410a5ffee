//! Hardware and load of this machine, from `/proc` (proc(5)).

use std::io;
use std::path::{Path, PathBuf};

use hearth_types::{Disk, HugePages, Load, Machine};
use procfs::process::Process;
use procfs::{CpuInfo, CpuTime, Current as _, CurrentSI as _, KernelStats, Meminfo, ProcError};

/// Failure to read a property of this machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file in `/proc` is missing or has an unknown format.
    #[error("reading {0} of this machine")]
    Proc(&'static str, #[source] ProcError),
    /// The usage of a file system cannot be read.
    #[error("reading the usage of the file system of `{}`", .0.display())]
    Disk(PathBuf, #[source] io::Error),
}

/// Returns the processor model of this machine. Fields that the kernel does not report are empty.
///
/// # Errors
/// [`Error::Proc`].
pub fn machine() -> Result<Machine, Error> {
    let processors = CpuInfo::current().map_err(|error| Error::Proc("the processors", error))?;
    let field = |name| processors.get_field(0, name).unwrap_or_default().to_owned();
    Ok(Machine {
        cpu_family: field("cpu family"),
        cpu_model: field("model"),
        cpu_model_name: field("model name"),
        cpu_architecture: std::env::consts::ARCH.to_owned(),
    })
}

/// Samples the load of this machine.
#[derive(Debug)]
pub struct Meter {
    folder: PathBuf,
    before: Ticks,
}

impl Meter {
    /// Creates a meter that reports the file system of `folder`.
    ///
    /// Processor load is measured between two calls of [`read`](Self::read).
    ///
    /// # Errors
    /// [`Error::Proc`].
    pub fn new(folder: &Path) -> Result<Self, Error> {
        Ok(Self { folder: folder.to_owned(), before: Ticks::now()?.0 })
    }

    /// Returns the load now, and the processor load since the last call. Blocks on the file system.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(&mut self) -> Result<Load, Error> {
        let (ticks, cpu_count) = Ticks::now()?;
        let before = std::mem::replace(&mut self.before, ticks);
        let memory = Meminfo::current().map_err(|error| Error::Proc("the memory", error))?;
        let available = memory.mem_available.unwrap_or(memory.mem_free);
        let huge_total = memory.hugepages_total.unwrap_or(0);
        Ok(Load {
            cpu_count,
            cpu_percent: ticks.percent_since(before),
            memory_total_bytes: memory.mem_total,
            memory_used_bytes: memory.mem_total.saturating_sub(available),
            huge_pages: HugePages {
                total: huge_total,
                used: huge_total.saturating_sub(memory.hugepages_free.unwrap_or(0)),
                reserved: memory.hugepages_rsvd.unwrap_or(0),
                page_bytes: memory.hugepagesize.unwrap_or(0),
            },
            disks: vec![disk(&self.folder)?],
        })
    }
}

/// Time of all processors together, in kernel ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    /// Returns the ticks since boot and the number of processors.
    fn now() -> Result<(Self, u32), Error> {
        let stats = KernelStats::current().map_err(|error| Error::Proc("the times of processors", error))?;
        let CpuTime { user, nice, system, idle, iowait, irq, softirq, steal, .. } = stats.total;
        // `user` includes the time of guests.
        let busy = user + nice + system + irq.unwrap_or(0) + softirq.unwrap_or(0) + steal.unwrap_or(0);
        let all = busy + idle + iowait.unwrap_or(0);
        Ok((Self { busy, all }, u32::try_from(stats.cpu_time.len()).unwrap_or(u32::MAX)))
    }

    fn percent_since(self, before: Self) -> u32 {
        // The kernel's counter of I/O wait may decrease (proc(5)).
        let all = self.all.saturating_sub(before.all).max(1);
        let busy = self.busy.saturating_sub(before.busy).min(all);
        u32::try_from(busy.saturating_mul(100) / all).unwrap_or(100)
    }
}

fn disk(folder: &Path) -> Result<Disk, Error> {
    let failed = |error| Error::Disk(folder.to_owned(), error);
    let whole = folder.canonicalize().map_err(failed)?;
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(|error| Error::Proc("the mounted file systems", error))?;
    // Of several mounts on one folder the last covers the others.
    let mounted = mounts.0.into_iter().filter(|mount| whole.starts_with(&mount.mount_point));
    let mount = mounted.max_by_key(|mount| mount.mount_point.components().count());
    let stat = rustix::fs::statvfs(&whole).map_err(|error| failed(error.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let (mount_point, device, filesystem_type) = match mount {
        Some(mount) => (mount.mount_point, mount.mount_source.unwrap_or_default(), mount.fs_type),
        None => (whole, String::new(), String::new()),
    };
    Ok(Disk {
        mount_point: mount_point.display().to_string(),
        device,
        filesystem_type,
        used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        total_bytes: bytes(stat.f_blocks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_processors_memory_and_a_disk() {
        let machine = machine().expect("/proc is mounted");
        assert_eq!(machine.cpu_architecture, std::env::consts::ARCH);
        let mut meter = Meter::new(Path::new("/proc/self/cwd")).expect("/proc is mounted");
        let Load { cpu_count, cpu_percent, memory_total_bytes, memory_used_bytes, huge_pages, disks } =
            meter.read().expect("/proc is mounted");
        assert!(cpu_count >= 1 && cpu_percent <= 100, "{cpu_count} {cpu_percent}");
        assert!(memory_used_bytes > 0 && memory_used_bytes < memory_total_bytes);
        assert!(huge_pages.used <= huge_pages.total);
        let [disk] = disks.as_slice() else { panic!("{disks:?}") };
        let here = std::env::current_dir().expect("has a current folder");
        assert!(here.starts_with(&disk.mount_point) && !disk.filesystem_type.is_empty(), "{disk:?}");
        assert!(disk.used_bytes > 0 && disk.used_bytes <= disk.total_bytes, "{disk:?}");
        assert!(matches!(Meter { folder: "/nowhere".into(), ..meter }.read(), Err(Error::Disk(..))));
    }

    #[test]
    fn processor_load_is_measured_between_two_reads() {
        let before = Ticks { busy: 100, all: 1000 };
        for (busy, all, percent) in [(150, 1100, 50), (100, 1100, 0), (200, 1100, 100), (100, 1000, 0), (90, 990, 0)] {
            assert_eq!(Ticks { busy, all }.percent_since(before), percent, "{busy} {all}");
        }
    }
}
