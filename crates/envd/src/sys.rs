//! System calls without a safe wrapper. The only unsafe code of the daemon; every block is one call.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use nix::sys::signal::SigSet;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use crate::users::User;

/// Score that makes the kernel kill children first when memory is short; the daemon has the opposite score.
const CHILD_OOM_SCORE: &[u8] = b"100";
/// Moves the writing process itself into a control group (cgroups(7)).
const THIS_PROCESS: &[u8] = b"0";
/// Class "realtime", level 4: the daemon responds even if the disk is busy.
const DAEMON_IO_PRIORITY: libc::c_int = 1 << 13 | 4;
/// Class "best effort", level 4: the default of every process (ioprio_set(2)).
const CHILD_IO_PRIORITY: libc::c_int = 2 << 13 | 4;
/// `IOPRIO_WHO_PROCESS`: one process, here the caller.
const IO_PRIORITY_OF_PROCESS: libc::c_int = 1;
/// The last signal number of Linux (signal(7)).
const SIGNAL_MAX: libc::c_int = 64;

/// A signal action with room for the structure of every architecture; the layouts differ.
///
/// All zero is the default action without flags.
type KernelAction = [u64; 8];
const DEFAULT_ACTION: KernelAction = [0; 8];
/// One bit for each signal.
const SIGNAL_SET_BYTES: usize = SIGNAL_MAX as usize / 8;

/// Setup of a child before its program runs.
#[derive(Debug)]
pub(crate) struct ChildSetup {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    workdir: CString,
    terminal: bool,
    descriptors: Option<Rlimit>,
    /// Open `cgroup.procs` of the child's control group.
    group: Option<File>,
}

impl ChildSetup {
    /// Prepares the user's rights and the working directory.
    ///
    /// With a `terminal`, standard input becomes the controlling terminal of a new session. The limit on open files is
    /// the one with which the daemon was started, not the one that it raised for itself.
    pub(crate) fn new(
        user: &User,
        workdir: &Path,
        terminal: bool,
        descriptors: Option<Rlimit>,
        group: Option<File>,
    ) -> io::Result<Self> {
        Ok(Self {
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user.groups().into_iter().map(Gid::from_raw).collect(),
            workdir: CString::new(workdir.as_os_str().as_bytes())?,
            terminal,
            descriptors,
            group,
        })
    }

    /// Runs between fork and exec, with system calls only.
    ///
    /// The standard library has set up the standard streams and nothing else. The control group is entered first, while
    /// the child has root's rights: nothing of the program runs outside of it.
    fn apply(&self) -> io::Result<()> {
        if let Some(group) = &self.group {
            rustix::io::write(group, THIS_PROCESS)?;
        }
        self.reset_priorities();
        for signal in 1..=SIGNAL_MAX {
            let action: *const KernelAction = &DEFAULT_ACTION;
            let none: *const KernelAction = std::ptr::null();
            // SAFETY: the kernel reads one action and writes none. The call fails for signals whose action is fixed,
            // which is ignored. The C library's own function would not change the signals that it reserves for itself.
            let _ = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action, none, SIGNAL_SET_BYTES) };
        }
        unblock_signals()?;
        if let Some(limit) = &self.descriptors {
            rustix::process::setrlimit(Resource::Nofile, *limit)?;
        }
        if self.terminal {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        self.chown_pipes();
        // Without root's rights the daemon can start processes only as itself; any other user is rejected.
        let own = rustix::process::geteuid();
        if own.is_root() || own != self.uid {
            rustix::thread::set_thread_groups(&self.groups)?;
            rustix::thread::set_thread_gid(self.gid)?;
            rustix::thread::set_thread_uid(self.uid)?;
        }
        // With the user's rights: a directory that the user may not enter is an error.
        rustix::process::chdir(self.workdir.as_c_str())?;
        Ok(())
    }

    /// Changes the owner of pipes among the standard streams to the user, so that a program can open them by name.
    ///
    /// `/dev/stderr` leads to the pipe itself, which the daemon created. Other files are not changed: `/dev/null`
    /// belongs to the system.
    fn chown_pipes(&self) {
        for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
            let is_pipe = |found: rustix::fs::Stat| FileType::from_raw_mode(found.st_mode) == FileType::Fifo;
            if rustix::fs::fstat(stream).is_ok_and(is_pipe) {
                // Only root may change owners; another daemon user is the owner already.
                let _ = rustix::fs::fchown(stream, Some(self.uid), None);
            }
        }
    }

    /// Sets the OOM score and the default priorities. Errors are ignored, because they must not prevent the start.
    fn reset_priorities(&self) {
        let score = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let _ = score.and_then(|file| rustix::io::write(&file, CHILD_OOM_SCORE));
        let _ = rustix::process::setpriority_process(None, 0);
        set_io_priority(CHILD_IO_PRIORITY);
    }
}

/// Raises the daemon's I/O priority; threads started later inherit it. Only root may.
pub(crate) fn raise_io_priority() {
    set_io_priority(DAEMON_IO_PRIORITY);
}

fn set_io_priority(priority: libc::c_int) {
    // SAFETY: the call takes three numbers and only changes the priority of this thread.
    let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, IO_PRIORITY_OF_PROCESS, 0, priority) };
}

/// Applies a setup when `command` starts.
pub(crate) fn set_up_child(command: &mut Command, setup: ChildSetup) {
    // SAFETY: `ChildSetup::apply` makes system calls on values prepared before the fork; it allocates nothing and takes
    // no lock.
    unsafe {
        command.pre_exec(move || setup.apply());
    }
}

/// Unblocks all signals of this thread and of everything it starts from now on.
///
/// The signal mask is inherited through exec: with the mask of some parents, a program would ignore control-C and
/// SIGTERM.
pub(crate) fn unblock_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Registers a descriptor with the reactor. Must run inside a Tokio runtime.
pub(crate) fn pollable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    // SAFETY: the reactor must see the descriptor open until it is deregistered; `AsyncFd` owns it and closes it last.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// Configures the allocator to release memory, so that an idle guest does not retain that of a burst of requests.
///
/// One arena, because there are few threads; blocks of a buffer's size are unmapped immediately, and the end of the
/// heap soon.
pub(crate) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 512 * 1024), (libc::M_TRIM_THRESHOLD, 512 * 1024)]
    {
        // SAFETY: the call takes two numbers; no other thread runs yet.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Releases free memory to the kernel, holes included (malloc_trim(3)).
pub(crate) fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number and accesses free memory only.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Marks inherited files close-on-exec, because the daemon's parent may not have done so.
pub(crate) fn close_inherited_on_exec() {
    let (first, last) = (libc::STDERR_FILENO + 1, libc::c_uint::MAX);
    // SAFETY: the call only sets a flag on descriptors. Kernels before 5.11 do not support the flag and change nothing.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Raises this process's limit of open files to the maximum, and returns the previous limit.
pub(crate) fn raise_descriptor_limit() -> Rlimit {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    // A failure only means fewer concurrent streams.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    before
}

/// Sets the wall clock (clock_settime(2)).
pub(crate) fn set_clock(timestamp: jiff::Timestamp) -> io::Result<()> {
    let time = rustix::time::Timespec { tv_sec: timestamp.as_second(), tv_nsec: timestamp.subsec_nanosecond().into() };
    Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
}

/// Makes the kernel's generator draw a new key from its pool now (RNDRESEEDCRNG, random(4)).
pub(crate) fn reseed_kernel_random(device: &File) -> io::Result<()> {
    nix::ioctl_none!(reseed, b'R', 0x07);
    // SAFETY: the request takes no argument and the descriptor is open.
    unsafe { reseed(device.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// Returns bytes from the kernel's generator.
///
/// Every call reads from the kernel, because guests of one snapshot must not draw the same bytes from state in this
/// process.
pub(crate) fn random<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0u8; BYTES];
    let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    debug_assert_eq!(drawn, BYTES, "getrandom(2) returns up to 256 bytes completely");
    Ok(bytes)
}

/// Returns random bytes as hexadecimal text.
pub(crate) fn random_hex<const BYTES: usize>() -> io::Result<String> {
    random::<BYTES>().map(hex::encode)
}

/// Returns the number of CPUs that this process may use.
pub(crate) fn cpus() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| usize::try_from(set.count()).unwrap_or(1).max(1))
}

/// Freezes the file system of `root`: writes dirty pages and blocks writers (FIFREEZE, ioctl_fs(2)).
///
/// A file system that is already frozen is no error.
pub(crate) fn freeze_file_system(root: &File) -> io::Result<()> {
    nix::ioctl_readwrite!(freeze, b'X', 119, libc::c_int);
    // SAFETY: the kernel ignores the argument and the descriptor is open.
    match unsafe { freeze(root.as_fd().as_raw_fd(), &mut 0) } {
        Ok(_) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Thaws the file system of `root` (FITHAW). One that is not frozen is no error.
pub(crate) fn thaw_file_system(root: &File) -> io::Result<()> {
    nix::ioctl_readwrite!(thaw, b'X', 120, libc::c_int);
    // SAFETY: the kernel ignores the argument and the descriptor is open.
    match unsafe { thaw(root.as_fd().as_raw_fd(), &mut 0) } {
        Ok(_) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Backs `length` bytes of this process's memory from `start` by huge pages (MADV_COLLAPSE, madvise(2)).
pub(crate) fn collapse(start: usize, length: usize) -> io::Result<()> {
    const MADV_COLLAPSE: libc::c_int = 25;
    // SAFETY: the advice changes how memory is backed, not its content; the kernel rejects unmapped addresses.
    let outcome = unsafe { libc::madvise(std::ptr::without_provenance_mut(start), length, MADV_COLLAPSE) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
