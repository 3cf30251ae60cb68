//! The bridge between MQTT, the log and a sink, as a real process that is killed.
#![allow(clippy::unwrap_used)]

mod broker;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use broker::{Broker, Message};
use gemba_testkit::{Rng, sim_scale};

const COUNT: &str = "plant/press-7/count";
const OVEN: &str = "plant/Ofen 2/°C";
const OVEN_STREAM: &str = "plant/Ofen~202/~C2~B0C";

/// A running bridge; dropped, it is killed.
struct Bridge(Child);

impl Bridge {
    fn start(dir: &Path, broker: &Broker) -> Self {
        Self::start_with(dir, broker, "")
    }

    /// With a mistake planted in it, if `planted` names one.
    fn start_with(dir: &Path, broker: &Broker, planted: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_mqtt-bridge"))
            .arg(dir)
            .arg(broker.address.to_string())
            .arg("plant/#")
            .stdout(Stdio::null())
            .stderr(words(dir))
            .env("MQTT_BRIDGE_PLANTED", planted)
            .spawn();
        Self(child.unwrap())
    }
}

/// Where a bridge complains.
fn words(dir: &Path) -> File {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(dir.join("words"));
    file.unwrap()
}

fn said(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("words")).unwrap_or_default()
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    until_nothing_lacks(what, || match is_so() {
        true => String::new(),
        false => "not yet".to_owned(),
    });
}

fn until_nothing_lacks(what: &str, mut lacks: impl FnMut() -> String) {
    let begun = Instant::now();
    loop {
        let lacks = lacks();
        if lacks.is_empty() {
            return;
        }
        let in_time = begun.elapsed() < Duration::from_secs(60);
        assert!(in_time, "{what} did not happen: {lacks}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Records of the sink: payloads by stream, in the order of the file.
fn records(dir: &Path) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let text = std::fs::read_to_string(dir.join("partition-0")).unwrap_or_default();
    // The last line may be half there.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        let (name, payload) = line.split_once(' ').unwrap();
        let (stream, _) = name.split_once(':').unwrap();
        found
            .entry(stream.to_owned())
            .or_default()
            .push(payload.to_owned());
    }
    found
}

/// S3.33: `kill -9` of the bridge at any moment. Every message of the devices is in the sink once; what the log has of its own is at the broker; nothing
/// that came from one side goes back there.
#[test]
fn s3_33_a_killed_bridge_loses_nothing_doubles_nothing_and_makes_no_loop() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut rng = Rng::from_env_or(333);
    let rounds = sim_scale(200).max(10);
    // The broker has something to keep for a session from the first connection on.
    let mut bridge = Bridge::start(dir, &broker);
    until("a session", || broker.is_idle());
    let mut sent = 0_usize;
    for _ in 0..rounds {
        let (acked, more) = (broker.state().acked, rng.index(80));
        for _ in 0..40 {
            let n = sent.to_string();
            broker.publish(COUNT, &n, &[("producer", "press-7"), ("seq", &n)]);
            broker.publish(OVEN, &n, &[("producer", "oven-2"), ("seq", &n)]);
            sent += 1;
        }
        // Killed as soon as something is acknowledged: whoever acknowledges what it does not have yet is found so.
        let begun = Instant::now();
        while broker.state().acked <= acked + more {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "nothing is taken"
            );
            std::thread::yield_now();
        }
        drop(bridge);
        bridge = Bridge::start(dir, &broker);
    }
    until_nothing_lacks("everything is taken in and carried on", || {
        let lacks = lacking(&broker, dir, sent);
        let words = said(dir);
        match bridge.0.try_wait().unwrap() {
            Some(end) => panic!("it ended with {end}, {lacks}: {words:?}"),
            None if lacks.is_empty() => lacks,
            None => format!("{lacks}; it said {words:?}"),
        }
    });
    drop(bridge);

    let records = records(dir);
    // A kill may begin an epoch, which is a feed of its own: there is no order between the two.
    let numbers = |stream: &str| {
        let numbers = records[stream].iter().map(|text| text.parse().unwrap());
        let mut numbers: Vec<usize> = numbers.collect();
        numbers.sort_unstable();
        numbers
    };
    let all = |n: usize| (0..n).collect::<Vec<_>>();
    let streams: Vec<&String> = records.keys().collect();
    assert_eq!(
        streams,
        [OVEN_STREAM, "plant/bridge/started", COUNT],
        "and nothing that came back from the broker"
    );
    assert_eq!(numbers(COUNT), all(sent));
    assert_eq!(numbers(OVEN_STREAM), all(sent));
    // Some were killed before they could say that they had started.
    let starts = records["plant/bridge/started"].len();
    assert!(starts * 2 > rounds, "{starts} of {rounds}");
    assert_eq!(numbers("plant/bridge/started"), all(starts));
    let state = broker.state();
    assert!(state.again > 0, "no kill left anything open");
    let is_own = |message: &Message| message.topic == "plant/bridge/started";
    assert!(
        state.published.iter().all(is_own),
        "what came from MQTT went back"
    );
}

/// What is not where it belongs yet.
fn lacking(broker: &Broker, dir: &Path, sent: usize) -> String {
    let records = records(dir);
    let len = |stream: &str| records.get(stream).map_or(0, Vec::len);
    let (count, oven, starts) = (len(COUNT), len(OVEN_STREAM), len("plant/bridge/started"));
    if !broker.is_idle() {
        return "the broker has something open".to_owned();
    }
    if count < sent || oven < sent {
        return format!("{count} and {oven} of {sent} in the sink");
    }
    match is_told(broker, starts) {
        true => String::new(),
        false => format!("the broker was not told of all {starts} starts"),
    }
}

/// Whether the broker was told of each start, at least once.
fn is_told(broker: &Broker, starts: usize) -> bool {
    let state = broker.state();
    let told = |n: usize| {
        state
            .published
            .iter()
            .any(|message| message.payload == n.to_string())
    };
    (0..starts).all(told)
}

/// S3.33: a message without a number, or with a topic that is no name, is in the log as well.
#[test]
fn s3_33_messages_without_numbers_and_with_odd_topics_are_carried_too() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let bridge = Bridge::start(dir.path(), &broker);
    until("a session", || broker.is_idle());
    let deep = vec!["x"; 40].join("/");
    for topic in ["plant//empty", &deep] {
        for payload in ["same", "same", "two\nlines"] {
            broker.publish(topic, payload, &[]);
        }
    }
    let carried = |records: &BTreeMap<String, Vec<String>>| {
        let len = |stream: &str| records.get(stream).map_or(0, Vec::len);
        (len("plant/~/empty"), len("mqtt/others"))
    };
    until("they are in the sink", || {
        carried(&records(dir.path())) == (3, 3)
    });
    drop(bridge);
    assert_eq!(
        records(dir.path())["plant/~/empty"],
        ["same", "same", "two\\nlines"]
    );
}

/// S3.33: what is no event, and what is larger than most messages, holds up nothing; a number that comes late is carried.
#[test]
fn s3_33_large_messages_and_late_numbers_are_carried_or_told_of() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let _bridge = Bridge::start(dir.path(), &broker);
    until("a session", || broker.is_idle());
    for size in [9_000, 11_000, 512 << 10, (512 << 10) + 1, 1_000_000] {
        broker.publish(COUNT, &"x".repeat(size), &[]);
    }
    // A number that never came is below one that did.
    for seq in ["5", "4", "6", "5"] {
        broker.publish(OVEN, seq, &[("producer", "oven-2"), ("seq", seq)]);
    }
    until("they are in the sink", || {
        len(dir.path(), COUNT) == 3 && len(dir.path(), OVEN_STREAM) == 3
    });
    until("and nothing is open", || broker.is_idle());
    let records = records(dir.path());
    let sizes: Vec<usize> = records[COUNT].iter().map(String::len).collect();
    assert_eq!(sizes, [9_000, 11_000, 512 << 10]);
    let mut late = records[OVEN_STREAM].clone();
    late.sort();
    assert_eq!(late, ["4", "5", "6"], "each once");
    let refused = &records["mqtt/refused"];
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused[0].contains("bytes"), "{refused:?}");
}

/// S3.33: the line between broker and bridge breaks, again and again. Nothing is lost, nothing is acknowledged on another connection than it came on.
#[test]
fn s3_33_a_line_that_breaks_loses_nothing_and_acknowledges_nothing_else() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let _bridge = Bridge::start(dir.path(), &broker);
    until("a session", || broker.is_idle());
    let mut rng = Rng::from_env_or(334);
    let rounds = 8;
    for round in 0..rounds {
        let acked = broker.state().acked;
        for n in 0..100 {
            let n = (round * 100 + n).to_string();
            broker.publish(COUNT, &n, &[("producer", "press-7"), ("seq", &n)]);
        }
        let more = rng.index(100);
        until("some are acknowledged", || {
            broker.state().acked > acked + more
        });
        broker.cut();
    }
    until("everything is in the sink", || {
        len(dir.path(), COUNT) >= 100 * rounds
    });
    until("and nothing is open", || broker.is_idle());
    let numbers: Vec<usize> = records(dir.path())[COUNT]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    assert_eq!(numbers, (0..100 * rounds).collect::<Vec<_>>());
    let state = broker.state();
    assert!(state.again > 0, "no break left anything open");
    // Between the look at the connection and the acknowledgement it may end: a few of hundreds, never a batch.
    assert!(
        state.odd <= rounds,
        "{} acknowledgements of what was not open",
        state.odd
    );
}

/// How many messages a bridge acknowledges that it cannot have on disk: from some moment on the first byte that it writes to a file is its death, by the
/// system's limit of the size of files. A kill from outside does not tell: it comes before the append by chance only, and what was written to a file is there
/// after a kill although no flush ever was.
#[cfg(target_os = "linux")]
fn acknowledged_and_not_written(planted: &str, rounds: usize) -> usize {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut sent, mut too_early) = (0_usize, 0);
    for _ in 0..rounds {
        let mut bridge = Bridge::start_with(dir, &broker, planted);
        // Everything is taken in and carried on: it has nothing to write until the next message comes.
        until("the bridge rests", || {
            let starts = len(dir, "plant/bridge/started");
            broker.is_idle() && starts > 0 && is_told(&broker, starts)
        });
        let id = Pid::from_raw(bridge.0.id().try_into().unwrap());
        let none = Rlimit {
            current: Some(1),
            maximum: getrlimit(Resource::Fsize).maximum,
        };
        prlimit(id, Resource::Fsize, none).unwrap();
        let acked = broker.state().acked;
        for _ in 0..8 {
            let n = sent.to_string();
            broker.publish(COUNT, &n, &[("producer", "press-7"), ("seq", &n)]);
            sent += 1;
        }
        until("the bridge wants to write", || {
            bridge.0.try_wait().unwrap().is_some()
        });
        // What it sent before its end has come here when the broker has seen the end.
        until("the broker sees its end", || !broker.is_linked());
        too_early += broker.state().acked - acked;
    }
    if too_early == 0 {
        // And nothing is lost: the broker has it all, and sends it again.
        let _bridge = Bridge::start_with(dir, &broker, planted);
        until_nothing_lacks("everything is in the sink", || match len(dir, COUNT) {
            len if len >= sent => String::new(),
            len => format!("{len} of {sent}; it said {:?}", said(dir)),
        });
        let numbers = records(dir)[COUNT]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect::<Vec<usize>>();
        assert_eq!(numbers.len(), sent);
    }
    too_early
}

fn len(dir: &Path, stream: &str) -> usize {
    records(dir).get(stream).map_or(0, Vec::len)
}

/// S3.33: what is acknowledged to MQTT is durable. A bridge that acknowledges first and writes then is found.
#[cfg(target_os = "linux")]
#[test]
fn s3_33_nothing_is_acknowledged_before_it_is_written_and_a_bridge_that_does_is_found() {
    assert_eq!(acknowledged_and_not_written("", 5), 0);
    assert!(acknowledged_and_not_written("automatic-acks", 20) > 0);
}
