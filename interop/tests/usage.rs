//! The program itself: what it lists, and what it says of a misspelt name.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gemba-interop"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn it_lists_its_scenarios() {
    let output = run(&["--list"]);
    assert!(output.status.success(), "{output:?}");
    let listed = String::from_utf8(output.stdout).unwrap();
    for scenario in ["five_nodes_share_a_folder", "pubsub_both_ways"] {
        assert!(listed.contains(scenario), "{scenario} in {listed}");
    }
}

#[test]
fn a_misspelt_scenario_is_an_error_that_tells_where_the_names_are() {
    let output = run(&[
        "--kubo",
        "/bin/false",
        "--gemba",
        "/bin/false",
        "--dir",
        "/nonexistent",
        "no_such_scenario",
    ]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("no_such_scenario") && said.contains("--list"),
        "{said}"
    );
}
