//! QEMU's command line for a machine.
//!
//! The device layout is part of every snapshot. A change of it must increase [`LAYOUT`], so that older snapshots are
//! rejected and not misread. Everything that the guest of a restored VM sees must be as it was at boot; what only the
//! host sees (shared or private memory, console, monitor) may differ.

use std::ffi::OsString;
use std::path::Path;

use hearth_types::guest::{ADDRESS, GATEWAY, MAC, NETWORK, PREFIX_LENGTH};

use crate::machine::{Boot, Machine, Nic};
use crate::{Accelerator, Snapshot};

/// Revision of the device layout.
pub(super) const LAYOUT: u32 = 1;
/// Cache of translated code per VM under emulation. A larger one speeds up long computations and costs memory per VM.
const TRANSLATION_BUFFER_MIB: u32 = 64;
/// Retained part of a restored guest's console. The guest writes to it, so it must be bounded.
const CONSOLE_BYTES: u32 = 64 * 1024;

/// Start of a VM.
pub(super) enum Start<'a> {
    /// From a kernel; the memory file is mapped shared.
    Boot(&'a Boot),
    /// From a snapshot, loaded by a monitor command; the memory file is mapped privately.
    Restore(&'a Snapshot),
}

/// Returns the arguments for a machine whose monitor listens on the inherited descriptor `monitor_fd`.
pub(super) fn arguments(
    machine: &Machine,
    accelerator: Accelerator,
    start: &Start<'_>,
    monitor_fd: i32,
) -> Vec<OsString> {
    let resources = machine.resources;
    let mut line = CommandLine::default();
    line.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    line.option("-display", "none");
    line.option("-machine", MACHINE);
    line.option("-accel", &accelerator_option(accelerator));
    line.option("-cpu", cpu_model(accelerator));
    line.option("-smp", &resources.vcpus.to_string());
    line.option("-m", &resources.memory_mib.to_string());
    // Device state is exchanged without QEMU's configuration section, because its files contain device state only.
    line.option("-global", "migration.send-configuration=off");
    memory(&mut line, resources.memory_mib, start);
    console(&mut line, &machine.folder, start);
    disk(&mut line, machine);
    network(&mut line, &machine.nic);
    line.option("-chardev", &format!("socket,id=monitor,fd={monitor_fd},server=on,wait=off"));
    line.option("-mon", "chardev=monitor,mode=control");
    // seccomp: no new programs, no privileges, no scheduling changes, in case the guest takes over the process.
    line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    match start {
        Start::Boot(boot) => {
            line.path_option("-kernel", &boot.kernel.image);
            line.path_option("-initrd", &boot.kernel.initramfs);
            // `quiet`: every console character is a VM exit. `panic=-1` with -no-reboot ends the process.
            let mut words = vec!["console=ttyS0", "quiet", "panic=-1"];
            words.extend(boot.arguments.iter().map(String::as_str));
            line.option("-append", &words.join(" "));
        }
        // No kernel: guest memory contains it. `-S`: without a configuration section the guest would run as soon as its
        // state is loaded.
        Start::Restore(_) => {
            line.flags(&["-S"]);
            line.option("-incoming", "defer");
        }
    }
    line.words
}

/// Machine type and its options. The VM description is left out of device state, because nothing reads it.
const MACHINE: &str = "microvm,acpi=on,rtc=on,isa-serial=on,memory-backend=mem,suppress-vmdesc=on";

pub(super) fn cpu_model(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    }
}

fn accelerator_option(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm => "kvm".to_owned(),
        Accelerator::Tcg => format!("tcg,thread=multi,tb-size={TRANSLATION_BUFFER_MIB}"),
    }
}

fn memory(line: &mut CommandLine, memory_mib: u32, start: &Start<'_>) {
    let (file, share) = match start {
        Start::Boot(boot) => (&boot.memory, "on"),
        Start::Restore(snapshot) => (&snapshot.memory, "off"),
    };
    let head = format!("memory-backend-file,id=mem,size={memory_mib}M,share={share},mem-path=");
    line.option_with_path("-object", &head, file);
}

fn console(line: &mut CommandLine, folder: &Path, start: &Start<'_>) {
    match start {
        // A booting guest runs only programs of Hearth and the template build; if it fails, the console shows the
        // reason.
        Start::Boot(_) => line.option_with_path("-chardev", "file,id=console,path=", &folder.join(super::CONSOLE)),
        Start::Restore(_) => line.option("-chardev", &format!("ringbuf,id=console,size={CONSOLE_BYTES}")),
    }
    line.option("-serial", "chardev:console");
}

fn disk(line: &mut CommandLine, machine: &Machine) {
    match &machine.overlay {
        Some(overlay) => {
            let base = "driver=file,node-name=base-file,read-only=on,filename=";
            line.option_with_path("-blockdev", base, &machine.base);
            line.option("-blockdev", "driver=raw,node-name=base,read-only=on,file=base-file");
            let file = "driver=file,node-name=root-file,discard=unmap,filename=";
            line.option_with_path("-blockdev", file, overlay);
            // Flushes do not reach the disk: the overlay is useless without the memory of this VM, and code that
            // saves both syncs the file itself.
            let root = "driver=qcow2,node-name=root,discard=unmap,cache.no-flush=on,file=root-file,backing=base";
            line.option("-blockdev", root);
        }
        None => {
            let file = "driver=file,node-name=root-file,discard=unmap,filename=";
            line.option_with_path("-blockdev", file, &machine.base);
            line.option("-blockdev", "driver=raw,node-name=root,discard=unmap,cache.no-flush=on,file=root-file");
        }
    }
    // A write without space stops the VM and is repeated when it runs again; other errors are reported to the guest.
    line.option("-device", "virtio-blk-device,drive=root,werror=enospc,rerror=report");
}

fn network(line: &mut CommandLine, nic: &Nic) {
    match nic {
        Nic::Tap { name } => {
            line.option("-netdev", &format!("tap,id=net,ifname={},script=no,downscript=no", escaped(name)));
        }
        Nic::User { forwards } => {
            // The guest has the addresses that it has behind a tap. IPv6 is off, as it is there.
            let mut option =
                format!("user,id=net,ipv6=off,net={NETWORK}/{PREFIX_LENGTH},host={GATEWAY},dhcpstart={ADDRESS}");
            for (host, guest) in forwards {
                option.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-{ADDRESS}:{guest}"));
            }
            line.option("-netdev", &option);
        }
    }
    line.option("-device", &format!("virtio-net-device,netdev=net,mac={MAC}"));
}

/// A command line under construction.
#[derive(Default)]
struct CommandLine {
    words: Vec<OsString>,
}

impl CommandLine {
    fn flags(&mut self, flags: &[&str]) {
        self.words.extend(flags.iter().map(OsString::from));
    }

    fn option(&mut self, name: &str, value: &str) {
        self.words.push(name.into());
        self.words.push(value.into());
    }

    /// Adds an option whose whole value is a path, which QEMU does not parse.
    fn path_option(&mut self, name: &str, path: &Path) {
        self.words.push(name.into());
        self.words.push(path.into());
    }

    /// Adds an option that ends in a path; commas in the path are doubled.
    fn option_with_path(&mut self, name: &str, head: &str, path: &Path) {
        self.option(name, &format!("{head}{}", escaped(&path.to_string_lossy())));
    }
}

/// Doubles the commas of a value: QEMU separates the keys of an option with commas.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use hearth_types::Resources;

    use super::*;
    use crate::Kernel;

    fn machine() -> Machine {
        Machine {
            folder: PathBuf::from("/vm"),
            resources: Resources { vcpus: 2, memory_mib: 512, disk_mib: 1024 },
            base: PathBuf::from("/a,b/rootfs"),
            overlay: Some(PathBuf::from("/vm/overlay")),
            nic: Nic::Tap { name: "tap0".to_owned() },
            namespace: None,
            cgroup: None,
        }
    }

    fn text(words: &[OsString]) -> String {
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_restored_vm_is_stopped_and_has_private_memory() {
        let snapshot = Snapshot { memory: PathBuf::from("/m"), state: PathBuf::from("/s") };
        let line = text(&arguments(&machine(), Accelerator::Tcg, &Start::Restore(&snapshot), 3));
        for part in ["-S", "-incoming defer", "share=off,mem-path=/m", "filename=/a,,b/rootfs", "ringbuf", "fd=3"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("-kernel"), "{line}");
    }

    #[test]
    fn a_booted_vm_shares_its_memory_with_the_file() {
        let boot = Boot {
            kernel: Kernel { version: "6".to_owned(), image: "/k".into(), initramfs: "/i".into() },
            arguments: vec!["x=y".to_owned()],
            memory: PathBuf::from("/m"),
        };
        let line = text(&arguments(&machine(), Accelerator::Kvm, &Start::Boot(&boot), 3));
        for part in
            ["share=on,mem-path=/m", "-kernel /k", "-initrd /i", "quiet panic=-1 x=y", "-accel kvm", "-cpu host"]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("-incoming") && !line.contains("-S "), "{line}");
    }
}
