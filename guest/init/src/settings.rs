//! Attributes that every process of the guest inherits, and kernel parameters.

use std::fs;
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit, umask};

use crate::Error;
use crate::console::print_error;

/// Kernel parameters of the guest contract, and those that a distribution's init would set.
const PARAMETERS: &[(&str, &str)] = &[
    ("fs/inotify/max_user_watches", "65536"),
    ("vm/compaction_proactiveness", "0"),
    // Any user may ping.
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("kernel/pid_max", "4194304"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    // Programs reserve far more memory than they use (a browser, a Go or Java program), and without swap the kernel's
    // heuristic would reject that. Actual usage is bounded by the control groups, which kill the process that exceeds
    // it.
    ("vm/overcommit_memory", "1"),
    // Search engines and databases refuse to start with the kernel's default of 65530.
    ("vm/max_map_count", "1048576"),
    // Editors and build tools create watches in many processes; the kernel's default is 128.
    ("fs/inotify/max_user_instances", "1024"),
    // Any user may serve on port 80, as in a container.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Directory with one directory per CPU for the scheduler's fair server (Linux 6.12).
///
/// The server reserves time for ordinary tasks beside real-time tasks, which a guest does not have. Its timer wakes an
/// idle CPU, and the kernel printed a warning about it in a guest whose virtual CPU did not run for seconds.
const FAIR_SERVERS: &str = "/sys/kernel/debug/sched/fair_server";

const CGROUPS: &str = "/sys/fs/cgroup";
/// Control group of this process and of the daemon, which inherits it.
///
/// The daemon creates groups beside it for its children.
const OWN_GROUP: &str = "/sys/fs/cgroup/envd";
const CONTROLLERS: &[&str] = &["+cpu", "+cpuset", "+io", "+memory", "+pids"];
/// Reserved memory and weights that keep the daemon responsive under load; its children's weights are 50 to 200.
const OWN_SHARE: &[(&str, &str)] =
    &[("memory.min", "52428800"), ("memory.low", "104857600"), ("cpu.weight", "1000"), ("io.weight", "default 10000")];

/// Limits of open files of a program: (soft, hard).
///
/// The hard one is the kernel's maximum (`fs.nr_open`), as in Docker. The soft one is sufficient for servers and build
/// tools, which rarely raise it themselves, and small enough for programs that close every descriptor up to it when
/// they start another one.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

const HOST_NAME: &str = "/etc/hostname";
const HOST_NAME_DEFAULT: &str = "e2b.local";

/// Applies all settings. Only a failure that makes the guest unusable is an error; others are printed on the console.
pub(crate) fn apply() -> Result<(), Error> {
    umask(Mode::WGRP | Mode::WOTH);
    let name = fs::read_to_string(HOST_NAME).unwrap_or_default();
    let name = Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or(HOST_NAME_DEFAULT);
    rustix::system::sethostname(name.as_bytes()).map_err(Error::on("setting the host name", name))?;
    for (name, value) in PARAMETERS {
        try_write(&format!("/proc/sys/{name}"), value);
    }
    let (soft, hard) = OPEN_FILES;
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: Some(hard) })
        .map_err(Error::on("raising the limit of", "open files"))?;
    // The daemon is killed last when memory is short and scheduled first; it resets both for its children.
    try_write("/proc/self/oom_score_adj", "-1000");
    setpriority_process(None, -20).map_err(Error::on("raising the priority of", "PID 1"))?;
    disable_fair_servers();
    join_own_group();
    Ok(())
}

/// Disables the scheduler's fair servers; other kernels have none.
fn disable_fair_servers() {
    for cpu in fs::read_dir(FAIR_SERVERS).into_iter().flatten().flatten() {
        try_write(&cpu.path().join("runtime").to_string_lossy(), "0");
    }
}

fn join_own_group() {
    for controller in CONTROLLERS {
        try_write(&format!("{CGROUPS}/cgroup.subtree_control"), controller);
    }
    if let Err(error) = fs::create_dir_all(OWN_GROUP) {
        return print_error("could not create a control group", &error);
    }
    for (file, value) in OWN_SHARE {
        let path = format!("{OWN_GROUP}/{file}");
        // The file is missing when its controller is not enabled.
        if Path::new(&path).exists() {
            try_write(&path, value);
        }
    }
    // 0: the writing process (cgroups(7)).
    try_write(&format!("{OWN_GROUP}/cgroup.procs"), "0");
}

fn try_write(path: &str, value: &str) {
    if let Err(error) = fs::write(path, value) {
        print_error(&format!("could not write {value} to {path}"), &error);
    }
}
