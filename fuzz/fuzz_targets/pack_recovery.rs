#![no_main]

#[path = "../../crates/store/tests/common/recovery.rs"]
mod recovery;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| recovery::pack_recovery(bytes));
