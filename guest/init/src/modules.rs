//! Kernel modules. The initramfs has them uncompressed, with a list in the order in which they can be loaded.

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;

use crate::Error;

/// Directory in which `builder` places modules and their list.
const DIRECTORY: &str = "/modules";
/// File with one module's file name per line.
const ORDER: &str = "order";

/// Loads every listed module.
pub(crate) fn load() -> Result<(), Error> {
    let folder = Path::new(DIRECTORY);
    let order = folder.join(ORDER);
    let list = fs::read_to_string(&order).map_err(Error::on("reading the list of modules", ORDER))?;
    for name in list.lines().filter(|name| !name.is_empty()) {
        let module = File::open(folder.join(name)).map_err(Error::on("opening the module", name))?;
        match rustix::system::finit_module(&module, c"", 0) {
            // Built into this kernel.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::on("loading the module", name)(errno)),
        }
    }
    Ok(())
}
