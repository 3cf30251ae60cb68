#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gemba_exchange::fuzz::bitswap_session_state(bytes));
