//! The program; everything is in the library, so that tests and fuzz targets can reach it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    hearth_envd::main(std::env::args().skip(1))
}
