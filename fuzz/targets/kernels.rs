//! See `hearth_interpreter::fuzz::kernels`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth_interpreter::fuzz::kernels(data));
