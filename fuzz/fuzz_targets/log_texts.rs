#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gemba_log::fuzz::texts(bytes));
