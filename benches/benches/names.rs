//! How long a name takes from its publication until every connected follower was told, and how long the API takes to resolve one.
//!
//! `cargo bench -p gemba-benches --bench names` needs the release program beside it (`cargo build --release --bin gemba`) or one named by
//! `GEMBA_BIN`. Five real daemons on loopback, one of which publishes; at each of the others somebody watches. Then a thousand publications
//! at a daemon that nobody is connected with, 32 at a time, each durable when it is answered.
//!
//! Ends with an error when a bound of docs/limits is passed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use gemba_benches::daemon::{Daemon, binary};
use gemba_pnet::SwarmKey;
use serde_json::Value;

const FOLLOWERS: usize = 4;
const ROUNDS: usize = 300;
/// One publication after the other, as people do: a burst is spread by the book itself (specs/names.md NA-20).
const PAUSE: Duration = Duration::from_millis(300);
const OFFLINE: usize = 1000;
const AT_A_TIME: usize = 32;
const MOST_TOLD: Duration = Duration::from_millis(20);
const MOST_RESOLVE: Duration = Duration::from_millis(1);
const MOST_OFFLINE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let home = tempfile::tempdir().unwrap();
    let (binary, key) = (binary(), SwarmKey::from_bytes([7; 32]));
    let start = |name: &str| Daemon::start(&binary, home.path(), name, &key);
    let cloud = start("cloud");
    let name = cloud.gemba(&["key", "new", "app"]).trim().to_owned();
    publish(&cloud, 0);
    let followers: Vec<Daemon> = (0..FOLLOWERS)
        .map(|n| {
            let follower = start(&format!("follower-{n}"));
            follower.gemba(&["connect", &cloud.address()]);
            follower
        })
        .collect();
    let watchers: Vec<Watcher> = followers
        .iter()
        .map(|follower| Watcher::start(follower, &name))
        .collect();
    for watcher in &watchers {
        watcher.until(0);
    }

    let mut told = Vec::new();
    for round in 1..=ROUNDS as u64 {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        publish(&cloud, round);
        let last = watchers.iter().map(|watcher| watcher.until(round)).max();
        told.push(last.unwrap() - begun);
    }
    let mut resolved: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            let answer = followers[0].http(&format!("/v1/names/{name}"), 1000);
            assert!(answer.starts_with(b"HTTP/1.1 200"));
            begun.elapsed()
        })
        .collect();
    let alone = start("alone");
    alone.gemba(&["key", "new", "app"]);
    let offline = publish_many(&alone);

    let (told_p99, resolved_p99) = (percentile(&mut told, 99), percentile(&mut resolved, 99));
    println!(
        "published until the last of {FOLLOWERS} followers printed it: p50 {:?}, p99 {told_p99:?}, at most {:?}; of {ROUNDS}",
        percentile(&mut told, 50),
        told[told.len() - 1]
    );
    println!(
        "resolved through the API, connection included: p50 {:?}, p99 {resolved_p99:?}",
        percentile(&mut resolved, 50)
    );
    println!(
        "{OFFLINE} publications without a peer, each durable when answered, {AT_A_TIME} at a time: {offline:?}"
    );
    let bounds = [
        (told_p99 <= MOST_TOLD, "followers are told later than 20 ms"),
        (
            resolved_p99 <= MOST_RESOLVE,
            "a name takes longer than 1 ms",
        ),
        (
            offline <= MOST_OFFLINE,
            "1,000 publications take longer than 1 s",
        ),
    ];
    let mut holds = true;
    for (bound, broken) in bounds {
        if !bound {
            println!("BROKEN: {broken}");
            holds = false;
        }
    }
    match holds {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// A value of its own for each number.
fn value(round: u64) -> String {
    format!("/ipfs/bafkqaaa/{round}")
}

/// Publishes by the API, and waits until it is durable.
fn publish(daemon: &Daemon, round: u64) {
    let body = serde_json::json!({ "value": value(round), "key": "app" });
    let answer = daemon.post("/v1/names/publish", &body.to_string());
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

fn publish_many(daemon: &Daemon) -> Duration {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..AT_A_TIME {
            scope.spawn(move || {
                for n in (thread..OFFLINE).step_by(AT_A_TIME) {
                    publish(daemon, n as u64);
                }
            });
        }
    });
    begun.elapsed()
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// A `gemba name watch` and when it printed what.
struct Watcher {
    child: Child,
    lines: Receiver<(Instant, Value)>,
}

impl Watcher {
    fn start(daemon: &Daemon, name: &str) -> Self {
        let mut child = daemon
            .command(&["--json", "name", "watch", name])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, (told, lines)) = (child.stdout.take().unwrap(), sync_channel(64));
        // Ends with the command.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let now = Instant::now();
                let _gone = told.send((now, serde_json::from_str(&line).unwrap()));
            }
        });
        Self { child, lines }
    }

    /// When it was told of that value.
    fn until(&self, round: u64) -> Instant {
        loop {
            let (at, line) = self.lines.recv_timeout(Duration::from_secs(20)).unwrap();
            if line["value"] == value(round).as_str() {
                return at;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
