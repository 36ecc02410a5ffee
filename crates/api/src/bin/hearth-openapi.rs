//! Prints the OpenAPI document as YAML, for `cargo xtask codegen`: what `hearth openapi` prints, without building all of
//! `hearth`.

#![forbid(unsafe_code)]

fn main() {
    print!("{}", hearth_api::openapi_yaml());
}
