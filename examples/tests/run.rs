//! Every example runs, ends by itself, and says what it is there to show.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use gemba_testkit::{Rng, sim_scale};

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

/// Lines of code: neither empty nor comment.
fn code_lines(text: &str) -> usize {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    text.lines().filter(is_code).count()
}

/// S4.46: who wants six crates begins with sixty lines.
#[test]
fn s4_46_six_crates_run_together_in_60_lines_after_their_names() {
    let said = run(env!("CARGO_BIN_EXE_six-crates"));
    let blocks = said
        .split(": ")
        .nth(1)
        .and_then(|text| text.split(' ').next());
    let blocks: usize = blocks.unwrap().parse().unwrap();
    // The batch, the folder, the file, and its leaves of 1 MiB, of which two are equal.
    assert_eq!(blocks, 5, "{said}");
    let text = include_str!("../src/six_crates.rs");
    let body = text.split_once("type Failure").unwrap().1;
    assert!(code_lines(body) <= 60, "{} lines", code_lines(body));
    for name in ["block", "unixfs", "store", "log", "pnet", "exchange"] {
        assert!(text.contains(&format!("gemba_{name}::")), "{name}");
    }
}

/// S3.58, S3.24: a service is a handler; that it is killed, and what it was told twice, is nothing it has to think of.
#[test]
fn s3_58_s3_24_machine_states_follow_from_signals_once_each() {
    let said = run(env!("CARGO_BIN_EXE_machine-state"));
    let states: Vec<&str> = said.lines().collect();
    assert_eq!(states, ["running", "fault", "running", "idle"].repeat(10));
    for text in [
        include_str!("../src/machine_state.rs"),
        include_str!("../../crates/log/examples/counter.rs"),
    ] {
        assert!(!text.contains("retry"), "it tries again itself");
    }
    let counter = code_lines(include_str!("../../crates/log/examples/counter.rs"));
    assert!(counter < 60, "the counter has {counter} lines");
}

/// S3.7: raw becomes named and typed, each value once; what cannot be named goes aside with its cause.
#[test]
fn s3_7_values_are_enriched_once_each_through_two_services() {
    let said = run(env!("CARGO_BIN_EXE_enrich"));
    let expected = "50 events in named/press-7/temperature\n40 events in named/press-7/speed\n\
                    50 events in typed/press-7/temperature\n40 events in typed/press-7/speed\n\
                    10 dead letters of namer\n20.8 °C\n";
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&said), lines(expected));
}

/// Report 3: an order is done once, at its last piece, though its first pieces came before it.
#[test]
fn s0_41_an_order_is_done_when_its_pieces_are_made() {
    assert_eq!(
        run(env!("CARGO_BIN_EXE_orders")),
        "done: A-17 press-7 100\n"
    );
}

/// Runs one with arguments and kills it (`kill -9`) when it has said so many lines; whether it lived so long.
fn kill_after(program: &str, args: &[&str], lines: usize) -> bool {
    let mut child = Command::new(program)
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines();
    let heard = said.take(lines).filter(Result::is_ok).count();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    // Whoever ended before had done everything.
    heard == lines && !status.success()
}

/// S3.12: the program, PLC and sink in one, is killed at any moment; in the end each reading is a row, and none is two.
#[test]
fn s3_12_a_killed_sink_leaves_no_gap_and_no_second_row() {
    let program = env!("CARGO_BIN_EXE_sqlite-sink");
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let mut rng = Rng::from_env_or(312);
    let rounds = sim_scale(200).max(10);
    let (mut kills, mut readings) = (0, 0);
    for _ in 0..rounds {
        readings += 300;
        let lines = rng.index(6);
        kills += usize::from(kill_after(program, &[dir, &readings.to_string()], lines));
    }
    assert!(
        kills * 10 >= rounds,
        "{kills} of {rounds} were killed at work"
    );
    let last = Command::new(program)
        .args([dir, &readings.to_string()])
        .output()
        .unwrap();
    assert!(last.status.success(), "{last:?}");
    let database = rusqlite::Connection::open(format!("{dir}/readings.db")).unwrap();
    let figures = "SELECT count(*), count(DISTINCT value), min(value), max(value) FROM readings";
    let figures: (i64, i64, i64, i64) = database
        .query_row(figures, [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap();
    let all = readings as i64;
    assert_eq!(
        figures,
        (all, all, 0, all - 1),
        "rows, readings, first, last"
    );
}
