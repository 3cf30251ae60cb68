//! How long a name takes from its publication until every connected follower was told, and how long the API takes to resolve one.
//!
//! `cargo bench -p gemba-benches --bench names` needs the release program beside it (`cargo build --release --bin gemba`) or one named by
//! `GEMBA_BIN`. Five real daemons on loopback, one of which publishes; at each of the others somebody watches. Then a thousand publications
//! at a daemon that nobody is connected with, 32 at a time, each durable when it is answered.
//!
//! `-- rollout`: one origin and four followers behind an uplink of 2 Mbit/s (a budget, not a line), which all begin to fetch 1 GiB; how long a
//! name takes meanwhile, and what left the origin's sockets. `-- update`: a folder of 2,000 files is followed, one of them changes; how long it takes
//! from the call that publishes it until the follower has it whole. Without a word all of it is measured.
//!
//! Ends with an error when a bound of docs/limits is passed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use gemba_benches::daemon::{Daemon, binary};
use gemba_benches::{Bound, percentile, scenario};
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
/// 2 Mbit/s, in bytes.
const RATE: f64 = 250_000.0;
const MOST_UNDER_ROLL_OUT: Duration = Duration::from_millis(250);
const UPDATES: usize = 50;
const MOST_UPDATE: Duration = Duration::from_millis(25);

fn main() -> ExitCode {
    let place = |home: &Path| Place {
        binary: binary(),
        key: SwarmKey::from_bytes([7; 32]),
        home: home.to_owned(),
    };
    scenario(
        place,
        &[
            ("told", told),
            ("rollout", under_roll_out),
            ("update", one_changed),
        ],
    )
}

/// Where daemons are started.
struct Place {
    binary: PathBuf,
    key: SwarmKey,
    home: PathBuf,
}

impl Place {
    fn start(&self, name: &str) -> Daemon {
        Daemon::start(&self.binary, &self.home, name, &self.key)
    }

    /// A daemon to which all of loopback is behind an uplink with this budget.
    fn start_behind(&self, name: &str, budget: &str) -> Daemon {
        let daemon = self.start(name);
        daemon.gemba(&["config", "set", "bandwidth.lan_subnets", "192.0.2.0/24"]);
        daemon.gemba(&["config", "set", "bandwidth.wan", budget]);
        // It is read at the start.
        drop(daemon);
        Daemon::again(&self.binary, &self.home, name)
    }
}

fn followers(
    cloud: &Daemon,
    name: &str,
    start: impl Fn(usize) -> Daemon,
) -> Vec<(Daemon, Watcher)> {
    (0..FOLLOWERS)
        .map(|n| {
            let follower = start(n);
            follower.gemba(&["connect", &cloud.address()]);
            let watcher = Watcher::start(&follower, name);
            watcher.until(0);
            (follower, watcher)
        })
        .collect()
}

/// Publishes one value after the other; how long each took until the last follower was told.
fn publish_rounds(cloud: &Daemon, followers: &[(Daemon, Watcher)], rounds: usize) -> Vec<Duration> {
    (1..=rounds as u64)
        .map(|round| {
            std::thread::sleep(PAUSE);
            let begun = Instant::now();
            publish(cloud, round);
            let told = followers.iter().map(|(_, watcher)| watcher.until(round));
            told.max().unwrap() - begun
        })
        .collect()
}

fn told(place: &Place) -> Vec<Bound> {
    let cloud = place.start("cloud");
    let name = cloud.gemba(&["key", "new", "app"]).trim().to_owned();
    publish(&cloud, 0);
    let followers = followers(&cloud, &name, |n| place.start(&format!("follower-{n}")));
    let mut told = publish_rounds(&cloud, &followers, ROUNDS);
    let mut resolved: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            let answer = followers[0].0.http(&format!("/v1/names/{name}"), 1000);
            assert!(answer.starts_with(b"HTTP/1.1 200"));
            begun.elapsed()
        })
        .collect();
    let alone = place.start("alone");
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
    vec![
        (told_p99 <= MOST_TOLD, "followers are told later than 20 ms"),
        (
            resolved_p99 <= MOST_RESOLVE,
            "a name takes longer than 1 ms",
        ),
        (
            offline <= MOST_OFFLINE,
            "1,000 publications take longer than 1 s",
        ),
    ]
}

/// A name that changes while 1 GiB is on its way at 2 Mbit/s.
fn under_roll_out(place: &Place) -> Vec<Bound> {
    let cloud = place.start_behind("origin", "2 Mbit/s");
    let name = cloud.gemba(&["key", "new", "app"]).trim().to_owned();
    publish(&cloud, 0);
    let asset = place.home.join("asset");
    std::fs::write(&asset, gemba_benches::bytes(1 << 30)).unwrap();
    let added = cloud.gemba(&["add", "-q", asset.to_str().unwrap()]);
    let root = added.lines().last().unwrap().trim().to_owned();
    std::fs::remove_file(&asset).unwrap();
    let followers = followers(&cloud, &name, |n| {
        place.start_behind(&format!("device-{n}"), "2 Mbit/s")
    });
    let mut pins: Vec<Child> = followers
        .iter()
        .map(|(follower, _)| {
            let mut pin = follower.command(&["pin", "add", &root]);
            pin.stdout(Stdio::null()).stderr(Stdio::null());
            pin.spawn().unwrap()
        })
        .collect();
    let busy = Instant::now() + Duration::from_secs(30);
    let first = sent(&cloud);
    while sent(&cloud) < first + (1 << 20) {
        assert!(Instant::now() < busy, "nothing is on its way");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (begun, before) = (Instant::now(), sent(&cloud));
    let mut told = publish_rounds(&cloud, &followers, ROUNDS);
    let carried = (sent(&cloud) - before) as f64;
    let cap = begun.elapsed().as_secs_f64() * RATE;
    assert!(
        pins.iter_mut().all(|pin| pin.try_wait().unwrap().is_none()),
        "the asset was on its way to the end"
    );
    for mut pin in pins {
        let _ = pin.kill();
        let _ = pin.wait();
    }
    let p99 = percentile(&mut told, 99);
    let share = carried / cap;
    println!(
        "with 1 GiB on its way at 2 Mbit/s, published until the last of {FOLLOWERS} followers printed it: p50 {:?}, p99 {p99:?}, at most {:?}; of {ROUNDS}",
        percentile(&mut told, 50),
        told[told.len() - 1]
    );
    println!("bytes out of the origin's sockets ÷ the cap meanwhile: {share:.3}");
    vec![
        (
            p99 <= MOST_UNDER_ROLL_OUT,
            "with a roll-out under way a name takes longer than 250 ms",
        ),
        (share <= 1.03, "more than the cap and 3 % left the origin"),
        (share >= 0.7, "the line was not full, which proves nothing"),
    ]
}

/// Bytes that left the sockets of the uplink.
fn sent(daemon: &Daemon) -> u64 {
    let status: Value = serde_json::from_str(&daemon.gemba(&["--json", "status"])).unwrap();
    status["lines"][1]["bytes_out"].as_u64().unwrap()
}

/// One file of 2,000 changes, and a follower has the new version whole.
fn one_changed(place: &Place) -> Vec<Bound> {
    let (publisher, follower) = (place.start("publisher"), place.start("follower"));
    let name = publisher.gemba(&["key", "new", "app"]).trim().to_owned();
    let folder = place.home.join("folder");
    std::fs::create_dir(&folder).unwrap();
    for n in 0..2000 {
        std::fs::write(folder.join(format!("file-{n}")), [n as u8; 1024]).unwrap();
    }
    let versions: Vec<String> = (0..=UPDATES)
        .map(|version| {
            std::fs::write(folder.join("file-1000"), format!("version {version}")).unwrap();
            let added = publisher.gemba(&["add", "-q", folder.to_str().unwrap()]);
            format!("/ipfs/{}", added.lines().last().unwrap().trim())
        })
        .collect();
    follower.gemba(&["connect", &publisher.address()]);
    publish_value(&publisher, &versions[0]);
    follower.gemba(&["name", "follow", "add", &name, "--wait"]);
    let watcher = Watcher::start(&follower, &name);
    let mut took: Vec<Duration> = versions[1..]
        .iter()
        .map(|version| {
            std::thread::sleep(PAUSE);
            let begun = Instant::now();
            publish_value(&publisher, version);
            watcher.until_complete(version) - begun
        })
        .collect();
    let p50 = percentile(&mut took, 50);
    println!(
        "one file of 2,000 changed, published until the follower printed that it is whole: p50 {p50:?}, p99 {:?}; of {UPDATES}",
        percentile(&mut took, 99)
    );
    vec![(
        p50 <= MOST_UPDATE,
        "an update of one file in 2,000 takes longer than 25 ms",
    )]
}

/// A value of its own for each number.
fn value(round: u64) -> String {
    format!("/ipfs/bafkqaaa/{round}")
}

/// Publishes by the API, and waits until it is durable.
fn publish(daemon: &Daemon, round: u64) {
    publish_value(daemon, &value(round));
}

fn publish_value(daemon: &Daemon, value: &str) {
    let body = serde_json::json!({ "value": value, "key": "app" });
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
        self.until_is("changed", &value(round))
    }

    /// When it was told that this version is whole.
    fn until_complete(&self, version: &str) -> Instant {
        self.until_is("complete", version)
    }

    fn until_is(&self, event: &str, value: &str) -> Instant {
        loop {
            let (at, line) = self.lines.recv_timeout(Duration::from_secs(20)).unwrap();
            if line["event"] == event && line["value"] == value {
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
