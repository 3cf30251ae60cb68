//! Each example runs, ends by itself, and says that it went well: they assert what they show.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn every_example_ends_well() {
    for example in [
        env!("CARGO_BIN_EXE_only-pnet"),
        env!("CARGO_BIN_EXE_only-exchange"),
        env!("CARGO_BIN_EXE_only-unixfs"),
        env!("CARGO_BIN_EXE_only-pins"),
        env!("CARGO_BIN_EXE_custom-protocol"),
        env!("CARGO_BIN_EXE_chat"),
        env!("CARGO_BIN_EXE_swap-gossipsub"),
        env!("CARGO_BIN_EXE_follow-and-swap"),
        env!("CARGO_BIN_EXE_state-under-a-name"),
    ] {
        let ended = Command::new(example).output().unwrap();
        assert!(ended.status.success(), "{example}: {ended:?}");
        assert!(!ended.stdout.is_empty(), "{example} says nothing");
    }
}
