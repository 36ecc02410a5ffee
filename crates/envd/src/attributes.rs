//! Copies extended attributes between files (xattr(7)); access control lists are extended attributes too.

use std::ffi::OsString;
use std::fs::File;
use std::io;

use xattr::FileExt;

/// Attribute that holds a program's file capabilities. The kernel removes it when the file is written.
pub(crate) const CAPABILITIES: &str = "security.capability";

/// Makes the attributes of `to` equal to those of `from`, except for the names that `skip` matches.
///
/// Attributes that only `to` has are removed. An attribute that the file system of `to` does not support is left out.
pub(crate) fn copy(from: &File, to: &File, skip: impl Fn(&OsString) -> bool) -> io::Result<()> {
    let names = |file: &File| -> io::Result<Vec<OsString>> {
        match file.list_xattr() {
            Ok(names) => Ok(names.filter(|name| !skip(name)).collect()),
            Err(error) if unsupported(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    };
    let wanted = names(from)?;
    for name in names(to)?.iter().filter(|name| !wanted.contains(name)) {
        to.remove_xattr(name)?;
    }
    for name in wanted {
        if let Some(value) = from.get_xattr(&name)? {
            match to.set_xattr(&name, &value) {
                Err(error) if !unsupported(&error) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Returns true if the error means that the file system does not support the attribute (EOPNOTSUPP).
pub(crate) fn unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(95)
}
