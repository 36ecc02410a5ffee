//! Errors of temporary resource exhaustion: open files, processes, memory, disk space.

use std::error::Error;
use std::io;

use nix::libc;

/// Returns true if an error, or a source of it, means that the host has run out of a resource.
///
/// The same call may succeed later without an operator's action.
#[must_use]
pub fn is_exhaustion(error: &(dyn Error + 'static)) -> bool {
    // Too many open files in the process and on the host, too many processes (fork(2)), no memory, no space.
    const NUMBERS: [i32; 6] = [libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::ENOMEM, libc::ENOSPC, libc::EDQUOT];
    let mut next = Some(error);
    while let Some(error) = next {
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if number.is_some_and(|number| NUMBERS.contains(&number)) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace;

    #[test]
    fn exhaustion_is_found_below_other_errors() {
        let error = |number| namespace::Error::Io {
            action: "running",
            path: "/sbin/ip".into(),
            source: io::Error::from_raw_os_error(number),
        };
        assert!(is_exhaustion(&error(libc::EMFILE)));
        assert!(!is_exhaustion(&error(libc::ENOENT)));
    }
}
