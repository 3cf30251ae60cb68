//! Every example runs, ends by itself, and says what it is there to show.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Runs one and gives back what it printed.
fn run(program: &str) -> String {
    let done = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program}: {said}{errors}");
    said
}

#[test]
fn chat_is_heard_by_everybody_over_the_one_whom_the_others_know() {
    let said = run(env!("CARGO_BIN_EXE_chat"));
    for reader in ["Ada", "Ben", "Eve"] {
        for author in ["Ada", "Ben", "Eve"] {
            let heard = said.contains(&format!("[{reader}] {author}: hello"));
            assert_eq!(heard, reader != author, "{said}");
        }
    }
}

#[test]
fn an_application_of_libp2p_gossipsub_runs_with_five_other_lines() {
    let said = run(env!("CARGO_BIN_EXE_swap-gossipsub"));
    assert_eq!(said, "line-1/alarms: pressure low\n");
    // What stood there before is said beside each line that changed.
    let text = include_str!("../src/swap_gossipsub.rs");
    let changed = |n: u32| text.contains(&format!("// {n}: "));
    assert!((1..=5).all(changed) && !changed(6), "five lines, no more");
}

#[test]
fn the_other_examples_run() {
    for program in [
        env!("CARGO_BIN_EXE_only-pnet"),
        env!("CARGO_BIN_EXE_only-exchange"),
        env!("CARGO_BIN_EXE_only-unixfs"),
        env!("CARGO_BIN_EXE_only-pins"),
        env!("CARGO_BIN_EXE_custom-protocol"),
        env!("CARGO_BIN_EXE_follow-and-swap"),
        env!("CARGO_BIN_EXE_state-under-a-name"),
    ] {
        assert!(!run(program).is_empty(), "{program}");
    }
}
