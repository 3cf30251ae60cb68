#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gemba_pnet::fuzz::psk_stream(bytes));
