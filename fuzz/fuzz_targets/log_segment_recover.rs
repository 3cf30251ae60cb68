#![no_main]

#[path = "../../crates/log/tests/common/recovery.rs"]
mod recovery;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| recovery::log_segment_recover(bytes));
