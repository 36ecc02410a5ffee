//! See `hearth_interpreter::fuzz::bundles`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_interpreter::fuzz::bundles(data));
