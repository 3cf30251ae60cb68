//! Messages by topic between daemons of one private swarm on loopback, driven as their users drive them.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use common::{Daemon, Node, Swarm, address, http, id, noise, signal, status, until, wait};
use data_encoding::BASE64;
use gemba_gossip::{FileSequence, SequenceStore as _};
use rustix::process::Signal;
use serde_json::Value;

const TOPIC: &str = "line-1/alarms";

/// A `pubsub sub` that runs, and the lines that it printed so far.
struct Reader {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Reader {
    /// Starts one on a node and waits until it reads the topic.
    fn start(node: &Node, args: &[&str]) -> Self {
        let readers = || {
            node.json(&["pubsub", "health"])["readers"]
                .as_u64()
                .unwrap()
        };
        let before = readers();
        let mut child = node
            .command(&[&["pubsub", "sub"], args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, kept) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        // Ends with the command.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        until("it reads", || readers() > before);
        assert!(
            node.ok(&["pubsub", "ls"])
                .lines()
                .any(|line| line == args[0])
        );
        Self { child, lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn messages(&self) -> Vec<Value> {
        let lines = self.lines();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn until(&self, count: usize) -> Vec<Value> {
        until("all messages", || self.lines.lock().unwrap().len() >= count);
        self.messages()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a node knows that somebody else reads a topic.
fn until_subscribed(node: &Node, topic: &str) {
    until("a subscriber", || {
        !node.lines(&["pubsub", "peers", topic]).is_empty()
    });
}

fn data(message: &Value) -> Vec<u8> {
    BASE64
        .decode(message["data"].as_str().unwrap().as_bytes())
        .unwrap()
}

fn number(message: &Value) -> u64 {
    message["seqno"].as_str().unwrap().parse().unwrap()
}

/// 200 messages of one author come whole and in their order, then one the other way; two programs on one device hear each other.
#[test]
fn messages_travel_both_ways_and_none_is_lost() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let reader = Reader::start(b, &[TOPIC, "--json"]);
    until_subscribed(a, TOPIC);
    let input: String = (0..200).map(|n| format!("pressure {n}\n")).collect();
    let sent = a.run_with_input(&["pubsub", "pub", TOPIC, "--json"], input.as_bytes());
    let sent: Vec<Value> = sent
        .ok()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(sent.len(), 200);
    assert!(
        sent.iter()
            .all(|sent| sent["peers"] == 1 && sent["topic"] == TOPIC)
    );
    let came = reader.until(200);
    let texts: Vec<String> = came
        .iter()
        .map(|message| String::from_utf8(data(message)).unwrap())
        .collect();
    let wanted: Vec<&str> = input.lines().collect();
    assert_eq!(texts, wanted);
    for (sent, came) in sent.iter().zip(&came) {
        assert_eq!(
            (&sent["seqno"], &sent["topic"]),
            (&came["seqno"], &came["topic"])
        );
        assert_eq!(came["from"], id(a).as_str());
    }

    let text = Reader::start(a, &[TOPIC]);
    let beside = Reader::start(b, &[TOPIC, "--json"]);
    until_subscribed(b, TOPIC);
    b.ok(&["pubsub", "pub", TOPIC, "checked \u{1b}[1m"]);
    text.until_text(&["checked \u{1b}[1m"]);
    assert_eq!(data(&beside.until(1)[0]), "checked \u{1b}[1m".as_bytes());
    assert_eq!(reader.until(201)[200]["from"], id(b).as_str());
}

impl Reader {
    fn until_text(&self, wanted: &[&str]) {
        until("the text", || self.lines() == wanted);
    }
}

/// A message that is sent first waits for its reader; who reads later does not get what was before.
#[test]
fn a_message_waits_for_its_first_reader() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let sending = a
        .command(&["pubsub", "pub", TOPIC, "first", "--timeout", "50s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it waits", || {
        a.json(&["pubsub", "health"])["memory"]["pubsub_own"] != 0
    });
    let reader = Reader::start(b, &[TOPIC]);
    assert!(wait(sending).status.success());
    reader.until_text(&["first"]);
    let late = Reader::start(b, &[TOPIC]);
    a.ok(&["pubsub", "pub", TOPIC, "second"]);
    late.until_text(&["second"]);
    reader.until_text(&["first", "second"]);
}

/// The author is killed and comes back with the same repository, on another port, with a clock behind its numbers: they go on, and the
/// reader of the other daemon gets what comes without a restart.
#[test]
fn numbers_never_go_back_and_delivery_goes_on_after_a_restart() {
    let mut swarm = Swarm::of(2);
    let reader = Reader::start(swarm.node(0), &[TOPIC, "--json"]);
    let send = |swarm: &Swarm, text: &str| {
        let args = ["pubsub", "pub", TOPIC, text, "--timeout", "50s"];
        number(&swarm.node(1).json(&args))
    };
    let first = send(&swarm, "before");
    let known = address(swarm.node(0));
    for (round, text) in ["after a kill", "after a clock that went back"]
        .into_iter()
        .enumerate()
    {
        swarm.nodes[1].1 = None;
        if round == 1 {
            // As if the clock had been years ahead before.
            let path = swarm.node(1).repo.join("pubsub.sequence");
            let stored = FileSequence::new(&path).load().unwrap().unwrap();
            assert!(stored > first);
            FileSequence::new(&path).reserve(1 << 62).unwrap();
        }
        let daemon = Daemon::start(swarm.node(1), &["--bootstrap", &known]);
        swarm.nodes[1].1 = Some(daemon);
        send(&swarm, text);
    }
    let came = reader.until(3);
    let numbers: Vec<u64> = came.iter().map(number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(numbers[0] == first && numbers[2] >= 1 << 62, "{numbers:?}");
    let texts: Vec<Vec<u8>> = came.iter().map(data).collect();
    assert_eq!(texts[2], b"after a clock that went back");
}

/// A reader ends with 130 on Ctrl-C, and its topic with it; with the daemon it ends with 5; after `--count` messages with 0.
#[test]
fn readers_end_as_they_should() {
    let mut swarm = Swarm::of(2);
    let mut reader = Reader::start(swarm.node(0), &[TOPIC]);
    signal(reader.child.id(), Signal::INT);
    assert_eq!(reader.child.wait().unwrap().code(), Some(130));
    until("the topic is left", || {
        swarm.node(0).ok(&["pubsub", "ls"]).is_empty()
    });
    let mut counting = Reader::start(swarm.node(0), &[TOPIC, "--count", "2"]);
    until_subscribed(swarm.node(1), TOPIC);
    swarm
        .node(1)
        .run_with_input(&["pubsub", "pub", TOPIC], b"1\n2\n")
        .ok();
    assert_eq!(counting.child.wait().unwrap().code(), Some(0));
    counting.until_text(&["1", "2"]);
    let mut last = Reader::start(swarm.node(0), &[TOPIC]);
    let daemon = swarm.nodes[0].1.as_mut().unwrap();
    signal(daemon.child.id(), Signal::TERM);
    assert!(daemon.child.wait().unwrap().success());
    assert_eq!(last.child.wait().unwrap().code(), Some(5));
}

/// S0.31: a device in the middle that does not read a topic carries it if it is told to, and nothing else.
#[test]
fn s0_31_a_device_in_the_middle_carries_what_it_is_told_to() {
    let mut swarm = Swarm::of(1);
    swarm.nodes[0].1 = None;
    let settings = [
        ["pubsub.relay", "listed"],
        ["pubsub.relay_topics", "line-1/*"],
    ];
    for [name, value] in settings {
        swarm.node(0).ok(&["config", "set", name, value]);
    }
    let daemon = Daemon::start(swarm.node(0), &[]);
    swarm.nodes[0].1 = Some(daemon);
    swarm.join(true);
    swarm.join(true);
    let (middle, a, c) = (swarm.node(0), swarm.node(1), swarm.node(2));
    let reader = Reader::start(c, &[TOPIC]);
    let elsewhere = Reader::start(c, &["line-2/alarms"]);
    until_subscribed(a, TOPIC);
    let input: String = (0..50).map(|n| format!("pressure {n}\n")).collect();
    a.run_with_input(&["pubsub", "pub", TOPIC], input.as_bytes())
        .ok();
    let wanted: Vec<&str> = input.lines().collect();
    reader.until_text(&wanted);
    until("the middle knows the other topic", || {
        !middle
            .lines(&["pubsub", "peers", "line-2/alarms"])
            .is_empty()
    });
    let refused = ["pubsub", "pub", "line-2/alarms", "x", "--timeout", "500ms"];
    let cause = a.fails(&refused, 4).cause;
    assert!(cause.contains("no connected peer subscribes"), "{cause}");
    assert!(elsewhere.lines().is_empty() && middle.ok(&["pubsub", "ls"]).is_empty());
}

/// What fits is delivered whole, and one byte more is refused with the figure.
#[test]
fn the_largest_message_passes_and_a_larger_one_is_refused() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let reader = Reader::start(b, &[TOPIC, "--json"]);
    until_subscribed(a, TOPIC);
    let publish = |len: usize| {
        a.run_with_input(
            &["pubsub", "pub", TOPIC, "--whole", "--json"],
            &noise(7, len),
        )
    };
    let cause = publish(1 << 20).fails(2).cause;
    let most: usize = cause
        .split("at most ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|figure| figure.parse().ok())
        .unwrap();
    assert!(most > 1_000_000, "{cause}");
    assert!(publish(most + 1).fails(2).cause.contains(&most.to_string()));
    // On a machine that is overloaded it may be too old before it is verified, and is dropped then, as it should be.
    let stale = || {
        let health = b.json(&["pubsub", "health"]);
        health["counters"]["stale"].as_u64().unwrap()
    };
    for sent in 0..20 {
        publish(most).ok();
        until("it comes, or is too old", || {
            !reader.lines().is_empty() || stale() > sent
        });
        if !reader.lines().is_empty() {
            break;
        }
    }
    assert!(data(&reader.messages()[0]) == noise(7, most));
}

/// A program that does not read what it subscribed to is told how many messages it lost, and costs no more than its buffer.
#[test]
fn a_slow_reader_is_told_what_it_lost() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let api: Value = serde_json::from_slice(&std::fs::read(b.repo.join("api")).unwrap()).unwrap();
    let text = |name: &str| api[name].as_str().unwrap().to_owned();
    let mut slow = TcpStream::connect(text("address")).unwrap();
    write!(
        slow,
        "GET /v1/pubsub/sub?topic=video HTTP/1.0\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
        text("address"),
        text("token")
    )
    .unwrap();
    until_subscribed(a, "video");
    let counter = |name: &str| {
        let health = b.json(&["pubsub", "health"]);
        health["counters"][name].as_u64().unwrap()
    };
    // As much as sockets hold, and more.
    let mut sent = 0;
    while counter("lagged") == 0 {
        assert!(sent < 400, "nothing was lost");
        let frame = noise(sent, 400_000);
        a.run_with_input(&["pubsub", "pub", "video", "--whole"], &frame)
            .ok();
        sent += 1;
    }
    let lost = counter("lagged");
    let waiting = &b.json(&["pubsub", "health"])["memory"]["pubsub_waiting"];
    assert!(waiting.as_u64().unwrap() <= 1 << 20, "{waiting}");
    signal(swarm.nodes[1].1.as_ref().unwrap().child.id(), Signal::TERM);
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).ok();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("application/x-ndjson"), "{answer:.300}");
    let lines = answer.lines().skip_while(|line| !line.starts_with('{'));
    let (mut came, mut told) = (0, 0);
    for line in lines {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            // Cut off in the middle when the daemon ended.
            break;
        };
        came += u64::from(line["data"].is_string());
        told += line["lagged"].as_u64().unwrap_or(0);
    }
    assert!(
        came > 0 && told <= lost && came + told <= sent,
        "{came} {told} {lost} {sent}"
    );
}

/// `why TOPIC` tells who is in the mesh and what came last; for a topic that nobody reads here, that nobody does.
#[test]
fn why_tells_how_a_topic_fares_and_through_whom() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let reader = Reader::start(a, &[TOPIC, "--json"]);
    let why = || a.json(&["why", TOPIC]);
    let lonely = why();
    assert_eq!(
        (
            &lonely["read"],
            &lonely["health"]["state"],
            &lonely["connected"]
        ),
        (&true.into(), &"isolated".into(), &1.into())
    );
    let _other = Reader::start(b, &[TOPIC, "--json"]);
    until("they are in one mesh", || {
        why()["subscribers"][0]["mesh"][0] == TOPIC
    });
    b.ok(&["pubsub", "pub", TOPIC, "x"]);
    reader.until(1);
    until("it is well", || why()["health"]["state"] == "ok");
    let told = why();
    assert_eq!(told["subscribers"][0]["id"], id(b).as_str());
    assert_eq!(told["health"]["received"], 1);
    assert!(
        told["health"]["last_received_s"].is_u64() && told["health"]["seen_pressure_s"].is_null()
    );
    let text = a.ok(&["why", TOPIC]);
    for part in [
        "and fares well",
        "1 of 1 connected",
        "in mesh",
        &id(b),
        "1 message, the last",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let health = a.ok(&["pubsub", "health"]);
    for part in ["SENT", "SHED", "STALE", "holds all that it should"] {
        assert!(health.contains(part), "{part} is not in {health}");
    }
    // Forced to be a topic, though it looks like a block; and one that nobody reads.
    let block = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    for args in [&["why", "--topic", block][..], &["why", "line-2/alarms"]] {
        assert!(a.ok(args).contains("not read on this device"));
    }
}

/// A direct peer is connected and kept, without being known from anywhere else.
#[test]
fn g7_a_direct_peer_is_kept_connected() {
    let mut swarm = Swarm::of(1);
    swarm.join(false);
    let (anchor, place) = (id(swarm.node(0)), address(swarm.node(0)));
    swarm.nodes[1].1 = None;
    let direct = ["config", "set", "pubsub.direct", &place];
    swarm.node(1).ok(&direct);
    swarm.nodes[1].1 = Some(Daemon::start(swarm.node(1), &[]));
    let reader = Reader::start(swarm.node(0), &[TOPIC]);
    until("it is connected", || {
        let peers = swarm.node(1).lines(&["peers"]);
        peers.iter().any(|peer| peer["id"] == anchor.as_str())
    });
    until_subscribed(swarm.node(1), TOPIC);
    swarm.node(1).ok(&["pubsub", "pub", TOPIC, "x"]);
    reader.until_text(&["x"]);
}

/// How pubsub fares is told by `health`, by `/metrics` and for each peer; what is switched off says so.
#[test]
fn health_and_figures_tell_how_topics_fare() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let reader = Reader::start(a, &[TOPIC, "--json"]);
    let topic = || a.json(&["pubsub", "health"])["topics"][0].clone();
    assert_eq!(
        (&topic()["topic"], &topic()["state"]),
        (&TOPIC.into(), &"isolated".into())
    );
    assert!(
        a.ok(&["pubsub", "health"])
            .contains("no connected peer subscribes")
    );
    let other = Reader::start(b, &[TOPIC, "--json"]);
    until("it is well", || topic()["state"] == "ok");
    until_subscribed(a, TOPIC);
    b.ok(&["pubsub", "pub", TOPIC, "x"]);
    reader.until(1);
    assert_eq!(
        (&topic()["received"], &topic()["peers"]),
        (&1.into(), &1.into())
    );
    let peer = a.lines(&["pubsub", "peers", TOPIC]).remove(0);
    assert_eq!(
        (&peer["id"], &peer["stream"]),
        (&id(b).into(), &"open".into())
    );
    assert_eq!(peer["topics"][0], TOPIC);
    assert!(a.lines(&["pubsub", "peers", "elsewhere"]).is_empty());
    assert!(a.ok(&["pubsub", "peers"]).contains(TOPIC));
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let (_, metrics) = http(a, "GET", "/metrics", headers);
    let names: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("gemba_pubsub_"))
        .filter_map(|line| line.split(' ').next())
        .collect();
    for name in [
        "gemba_pubsub_delivered_total",
        "gemba_pubsub_seen_duplicates_total",
        "gemba_pubsub_seen_bytes",
        "gemba_pubsub_lanes_bytes",
        "gemba_pubsub_topics",
    ] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    assert!(
        metrics.contains("gemba_pubsub_delivered_total 1\n"),
        "{metrics}"
    );
    let seen = status(a);
    assert_eq!(
        (&seen["health"], &seen["pubsub"]["topics"]),
        (&"ok".into(), &1.into())
    );
    assert!(
        a.ok(&["status"])
            .contains("1 topic read, 0 isolated, 0 degraded")
    );
    drop(other);
}
