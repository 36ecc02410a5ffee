//! See `hearth_envd::fuzz::multipart`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_envd::fuzz::multipart(data));
