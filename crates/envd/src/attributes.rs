//! Extended attributes, from one file to another (xattr(7)). Access control lists are among them.

use std::ffi::OsString;
use std::fs::File;
use std::io;

use xattr::FileExt;

/// Capabilities of a program. A write takes them away.
pub(crate) const CAPABILITIES: &str = "security.capability";

/// Gives `to` the attributes of `from`, and takes others away, except for those that `skip` names. An attribute that the file
/// system of `to` cannot have is left out.
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

/// The file system has no attributes of that kind.
pub(crate) fn unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(95)
}
