//! A million pins: memory, start, status of one, list.
//!
//! `cargo bench -p gemba-benches --bench pins` needs the release program beside it (`cargo build --release --bin gemba`) or one named by
//! `GEMBA_BIN`. The pins are imported while no daemon runs. Nobody has their blocks: the harder case, in which the daemon goes on trying one after the other.
//!
//! Ends with an error when a bound of docs/limits is passed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use gemba_benches::daemon::{Daemon, binary};
use gemba_pnet::SwarmKey;
use gemba_testkit::Rng;
use gemba_testkit::dag::fake_cid;

const PINS: u64 = 1_000_000;
const ROUNDS: usize = 200;
const MOST_MIB: u64 = 50;
const MOST_STATUS: Duration = Duration::from_millis(5);
const MOST_START: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let home = tempfile::tempdir().unwrap();
    let (binary, key) = (binary(), SwarmKey::from_bytes([7; 32]));
    // What a daemon without pins takes.
    let empty = Daemon::start(&binary, home.path(), "empty", &key);
    empty.gemba(&["pin", "ls", "-q"]);
    let idle = empty.resident();
    drop(empty);

    let daemon = Daemon::start(&binary, home.path(), "full", &key);
    drop(daemon);
    let list = home.path().join("pins.jsonl");
    let mut file = BufWriter::new(std::fs::File::create(&list).unwrap());
    writeln!(file, "{{\"gemba_pins\":1}}").unwrap();
    for n in 0..PINS {
        let cid = fake_cid(0x55, n);
        writeln!(
            file,
            "{{\"cid\":\"{cid}\",\"kind\":\"direct\",\"name\":\"pin-{n}\",\"since_ms\":0}}"
        )
        .unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    let repo = home.path().join("full");
    let begun = Instant::now();
    let imported = Command::new(&binary)
        .args(["--repo", repo.to_str().unwrap(), "pin", "import"])
        .arg(&list)
        .output()
        .unwrap();
    assert!(imported.status.success(), "{imported:?}");
    println!("{PINS} pins imported in {:?}", begun.elapsed());

    let begun = Instant::now();
    let daemon = Daemon::again(&binary, home.path(), "full");
    let start = begun.elapsed();
    let mut rng = Rng::new(1);
    let mut status: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let cid = fake_cid(0x55, rng.below(PINS));
            let begun = Instant::now();
            let answer = daemon.http(&format!("/v1/pins/{cid}"), 1000);
            assert!(answer.starts_with(b"HTTP/1.1 200"));
            begun.elapsed()
        })
        .collect();
    status.sort_unstable();
    let status_p99 = status[ROUNDS * 99 / 100];
    let begun = Instant::now();
    let mut listing = daemon
        .command(&["pin", "ls", "-q"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listing.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let first = begun.elapsed();
    let listed = 1 + lines.count() as u64;
    assert!(listing.wait().unwrap().success());
    assert_eq!(listed, PINS);
    let more = daemon.peak().saturating_sub(idle) / (1024 * 1024);
    println!("start: {start:?}");
    println!(
        "status of one: p50 {:?}, p99 {status_p99:?}",
        status[ROUNDS / 2]
    );
    println!(
        "list: the first line after {first:?}, all {listed} after {:?}",
        begun.elapsed()
    );
    println!("memory: {more} MiB more at the peak than without pins");
    let bounds = [
        (more <= MOST_MIB, "a million pins take more than 50 MiB"),
        (
            status_p99 <= MOST_STATUS,
            "the status of one takes longer than 5 ms",
        ),
        (start <= MOST_START, "the start takes longer than 2 s"),
    ];
    let mut holds = true;
    for (bound, broken) in bounds {
        if !bound {
            println!("BROKEN: {broken}");
            holds = false;
        }
    }
    if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
