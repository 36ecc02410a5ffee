//! Identity of this guest, which distinguishes it from other guests of the same snapshot: names, ids, random
//! generation.
//!
//! PID 1 mounts files in memory over the machine's ids ([`DIRECTORY`]). Setting the identity therefore writes nothing
//! to the disk, except for `/etc/hosts` if the name is new. All files are written in place, because they are mount
//! points.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::{regular, sys};

/// Directory of the files that PID 1 mounted over `/etc/machine-id` and `/etc/hostname`.
const DIRECTORY: &str = "/run/hearth";
/// File that changes with each restore. Programs with their own random state should reseed when it changes.
const GENERATION: &str = "generation";
const HOSTS: &str = "/etc/hosts";
/// Loopback address of a machine's own name where it has no fixed address (Debian's convention).
const OWN_NAME: &str = "127.0.1.1";
/// Host name of the host's events service.
pub(crate) const EVENTS_NAME: &str = "events.e2b.local";
/// Largest `/etc/hosts` that is changed, in bytes. The guest writes this file.
const HOSTS_BYTES_MAX: u64 = 1 << 20;
/// The kernel's limit of a host name, in bytes (gethostname(2)).
const HOST_NAME_BYTES_MAX: usize = 64;

/// Sets the guest's host name and ids. Every step is tried; the first error is returned.
pub(crate) fn set_identity(sandbox_id: &str) -> io::Result<()> {
    if !is_host_name(sandbox_id) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{sandbox_id}` is not a host name")));
    }
    let named = rustix::system::sethostname(sandbox_id.as_bytes()).map_err(io::Error::from);
    let written = replace("hostname", &format!("{sandbox_id}\n"))
        .and(replace("machine-id", &format!("{}\n", machine_id(sandbox_id))));
    named.and(written).and(map_host(OWN_NAME, sandbox_id))
}

/// Writes a new generation, at each restore, also of the same sandbox.
///
/// The kernel's boot id is not read here: the kernel draws it at the first read, and a read before a template's
/// snapshot would give all of its sandboxes the same one.
pub(crate) fn write_generation() -> io::Result<()> {
    replace(GENERATION, &hex::encode(sys::random::<16>()?))
}

/// Derives the machine id of a sandbox, in the format of machine-id(5).
fn machine_id(sandbox_id: &str) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest(format!("hearth machine id {sandbox_id}"))[..16]);
    hex::encode(with_uuid_version(bytes))
}

/// Sets the bits of a random UUID (RFC 9562): version 4, variant 1.
fn with_uuid_version(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    bytes
}

fn is_host_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !name.is_empty() && name.len() <= HOST_NAME_BYTES_MAX && name.bytes().all(plain)
}

/// Writes a file of PID 1's directory in place. Does nothing if the directory is missing, as outside of Hearth's
/// guests.
fn replace(name: &str, text: &str) -> io::Result<()> {
    let path = Path::new(DIRECTORY).join(name);
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    regular::write(&path, text.as_bytes()).map(drop)
}

/// Maps `name` to `address` in `/etc/hosts` and removes conflicting lines.
///
/// Lines with the address and lines with the name are replaced by one line. Does not write if the text would be the
/// same.
pub(crate) fn map_host(address: &str, name: &str) -> io::Result<()> {
    let mut file = open_hosts()?;
    let mut text = String::new();
    Read::by_ref(&mut file).take(HOSTS_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > HOSTS_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{HOSTS} is larger than {HOSTS_BYTES_MAX} bytes"),
        ));
    }
    let mapped = mapped(&text, address, name);
    if mapped == text {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0))?;
    file.write_all(mapped.as_bytes())?;
    file.set_len(mapped.len() as u64)
}

/// Opens the file if it is a regular one: a guest may have replaced it by anything.
fn open_hosts() -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(flags);
    let file = options.open(HOSTS)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{HOSTS} is not a file")))
}

fn mapped(text: &str, address: &str, name: &str) -> String {
    let is_old = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        words.next() == Some(address) || words.any(|word| word == name)
    };
    let mut lines = String::with_capacity(text.len() + 64);
    for line in text.lines().filter(|line| !is_old(line)) {
        lines.push_str(line);
        lines.push('\n');
    }
    // Writing to a string does not fail.
    let _ = writeln!(lines, "{address}\t{name}");
    lines
}

/// Maps the name of the events service to an address and returns the address.
pub(crate) fn map_events(address: &str) -> io::Result<IpAddr> {
    let parsed: IpAddr = address
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{address}` is not an address")))?;
    map_host(&parsed.to_string(), EVENTS_NAME)?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_mapped_once() {
        let before = "127.0.0.1\tlocalhost\n127.0.1.1 e2b.local # own\n10.0.0.1 a b\n";
        let after = mapped(before, OWN_NAME, "isandbox");
        assert_eq!(after, "127.0.0.1\tlocalhost\n10.0.0.1 a b\n127.0.1.1\tisandbox\n");
        assert_eq!(mapped(&after, OWN_NAME, "isandbox"), after, "unchanged");
        let moved = mapped("10.0.0.9 events.e2b.local\n127.0.0.1 localhost", "192.0.2.1", EVENTS_NAME);
        assert_eq!(moved, "127.0.0.1 localhost\n192.0.2.1\tevents.e2b.local\n");
        assert_eq!(mapped("", "192.0.2.1", "x"), "192.0.2.1\tx\n");
    }

    #[test]
    fn the_generation_is_where_other_programs_look() {
        assert_eq!(Path::new(DIRECTORY).join(GENERATION), Path::new(hearth_types::guest::GENERATION_FILE));
    }

    #[test]
    fn machine_ids_depend_only_on_the_sandbox() {
        let id = machine_id("iabc");
        assert_eq!(id, machine_id("iabc"));
        assert_ne!(id, machine_id("iabd"));
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && id.as_bytes()[12] == b'4');
        let counted = std::array::from_fn(|index| u8::try_from(index * 17).expect("less than 256"));
        assert_eq!(hex::encode(with_uuid_version(counted)), "00112233445546778899aabbccddeeff");
    }

    #[test]
    fn invalid_host_names_are_rejected() {
        for odd in ["", "a b", "a\n127.0.0.1 x", "ä", &"x".repeat(65)] {
            assert!(set_identity(odd).is_err(), "{odd:?}");
        }
        assert!(is_host_name("i2m4x-7"));
    }
}
