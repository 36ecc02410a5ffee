//! Prints the OpenAPI document as YAML for `cargo xtask codegen`.
//!
//! The output equals that of `hearth openapi`, but does not need a build of `hearth`.

#![forbid(unsafe_code)]

fn main() {
    print!("{}", hearth_api::openapi_yaml());
}
