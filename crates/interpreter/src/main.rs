//! The binary; all code is in the library, where tests and fuzz targets can use it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    hearth_interpreter::main(std::env::args().skip(1).collect())
}
