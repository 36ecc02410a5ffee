//! See `hearth_envd::fuzz::frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_envd::fuzz::frames(data));
