//! The program itself: what CI's steps rely on when a command is misspelt.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn a_misspelt_command_fails_and_shows_the_others() {
    for arguments in [&["arows"][..], &[], &["proto", "--chek"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("usage: cargo xtask"),
            "{arguments:?}"
        );
    }
}
