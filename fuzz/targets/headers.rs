//! See `hearth_envd::fuzz::headers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_envd::fuzz::headers(data));
