//! Events, driven as their users drive them: with a daemon and without one, over the swarm, and through kills.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::Duration;

use common::{Daemon, Node, Swarm, id, until};
use data_encoding::BASE64;
use gemba_testkit::sim_scale;
use serde_json::Value;

const STREAM: &str = "hall-1/line-3/press-7/count";

fn payloads(node: &Node, args: &[&str]) -> Vec<String> {
    let lines = node.lines(&[&["log", "read"], args].concat());
    let payload = |line: &Value| {
        let data = BASE64.decode(line["data"].as_str().unwrap().as_bytes());
        String::from_utf8(data.unwrap()).unwrap()
    };
    lines.iter().map(payload).collect()
}

/// DESIGN §5: each line of standard input is an event, acknowledged by a line each, in order; without a daemon as with one.
#[test]
fn s3_40_lines_are_appended_and_acknowledged_in_order_with_a_daemon_and_without() {
    let node = Node::new();
    let mut expected = Vec::new();
    for round in 0..2_u64 {
        let _daemon = (round == 1).then(|| Daemon::start(&node, &[]));
        let lines: Vec<String> = (0..2_500).map(|n| format!("{round} {n}")).collect();
        let input = lines.join("\n");
        let done = node.run_with_input(&["log", "append", STREAM, "--json"], input.as_bytes());
        let acks = done.ok();
        let acks: Vec<Value> = acks
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let author = &node.json(&["id"])["id"];
        for (ack, seq) in acks.iter().zip(round * 2_500..) {
            assert_eq!(
                (&ack["stream"], &ack["author"], ack["seq"].as_u64()),
                (&STREAM.into(), author, Some(seq))
            );
        }
        assert_eq!(acks.len(), 2_500);
        expected.extend(lines);
        assert_eq!(payloads(&node, &[STREAM]), expected);
        assert_eq!(
            payloads(&node, &[STREAM, "--from", "2499"]),
            expected[2_499..]
        );
        assert_eq!(
            payloads(&node, &["hall-1/+/press-7/#", "--count", "3"]),
            expected[..3]
        );
    }
    let verified = node.json(&["log", "verify"]);
    assert_eq!(
        (verified["ok"].as_bool(), verified["events"].as_u64()),
        (Some(true), Some(5_000))
    );
}

/// However an input's end falls into a group, the daemon goes on.
#[test]
fn s3_40_inputs_of_any_length_end_well() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let mut expected = 0;
    for lines in [0, 1, 2, 1_023, 1_024, 1_025, 3_000, 20_000] {
        for _ in 0..3 {
            let input: String = (0..lines).map(|n| format!("{n}\n")).collect();
            let done = node.run_with_input(&["log", "append", STREAM], input.as_bytes());
            assert_eq!(done.ok().lines().count(), lines);
            expected += lines;
        }
    }
    let counted = node.json(&["log", "count", STREAM, "--consumer", "all"]);
    assert_eq!(counted["count"].as_u64(), Some(expected as u64));
}

/// A line is acknowledged when it is on disk, not when its writer ends.
#[test]
fn s3_40_a_line_is_not_held_back_until_others_follow() {
    let node = Node::new();
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let mut child = node
            .command(&["log", "append", STREAM, "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut acks = BufReader::new(child.stdout.take().unwrap()).lines();
        for n in 0..3 {
            writeln!(input, "event {n}").unwrap();
            let ack: Value = serde_json::from_str(&acks.next().unwrap().unwrap()).unwrap();
            assert!(ack["seq"].is_u64());
        }
        drop(input);
        assert!(child.wait().unwrap().success());
    }
}

/// A retry under the same number of the same producer gives the first result, also across restarts.
#[test]
fn s3_18_a_retry_of_a_producer_is_not_appended_again() {
    let node = Node::new();
    let append = |seq: &str| {
        node.json(&[
            "log",
            "append",
            STREAM,
            "piece",
            "--producer",
            "plc-1",
            "--producer-seq",
            seq,
        ])
    };
    let first = append("7");
    {
        let _daemon = Daemon::start(&node, &[]);
        let again = append("7");
        assert_eq!(
            (&again["seq"], &again["repeated"]),
            (&first["seq"], &Value::Bool(true))
        );
        assert_eq!(append("8")["seq"].as_u64(), Some(1));
    }
    assert_eq!(append("8")["repeated"], true);
    assert_eq!(payloads(&node, &[STREAM]).len(), 2);
}

/// What fails is tried again and in the end set aside, with its cause; the others are not held up. A dead letter can be tried again.
#[test]
fn s3_53_l9_what_cannot_be_done_becomes_a_dead_letter_and_the_rest_goes_on() {
    let node = Node::new();
    node.run_with_input(&["log", "append", STREAM], b"good 1\nbad\ngood 2\n")
        .ok();
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let name = if with_daemon { "with" } else { "without" };
        let seen = node.path(name);
        let command = format!(
            "line=$(cat); echo \"$line\" >> {}; test \"$line\" != bad || {{ echo no good >&2; exit 3; }}",
            seen.display()
        );
        let consume = [
            "log",
            "consume",
            STREAM,
            "--consumer",
            name,
            "--exec",
            &command,
            "--attempts",
            "2",
            "--drain",
        ];
        node.ok(&consume);
        let lines = std::fs::read_to_string(&seen).unwrap();
        let count = |text: &str| lines.lines().filter(|line| *line == text).count();
        assert_eq!(
            (count("good 1"), count("good 2"), count("bad")),
            (1, 1, 2),
            "{lines}"
        );
        let letters = node.lines(&["log", "dead", "ls", name]);
        assert_eq!(letters.len(), 1);
        let letter = &letters[0];
        assert_eq!(
            (letter["attempts"].as_u64(), letter["stream"].as_str()),
            (Some(2), Some(STREAM))
        );
        assert!(
            letter["cause"].as_str().unwrap().contains("no good"),
            "{letter}"
        );
        assert_eq!(
            node.ok(&["log", "dead", "show", name, letter["id"].as_str().unwrap()]),
            "bad\n"
        );

        node.ok(&["log", "dead", "retry", name]);
        node.ok(&[
            "log",
            "consume",
            STREAM,
            "--consumer",
            name,
            "--exec",
            "cat > /dev/null",
            "--drain",
        ]);
        assert!(node.lines(&["log", "dead", "ls", name]).is_empty());
        let view = &node.lines(&["log", "consumers"])[0];
        assert_eq!(view["lag"].as_u64(), Some(0));
    }
}

/// A consumer that comes later reads from the start, and the producer is not touched (S3.4, S3.44).
#[test]
fn s3_4_a_later_consumer_reads_from_the_start_and_can_be_moved() {
    let node = Node::new();
    node.run_with_input(&["log", "append", STREAM], b"1\n2\n3\n")
        .ok();
    let _daemon = Daemon::start(&node, &[]);
    let out = node.path("out");
    let command = format!("cat >> {0}; echo >> {0}", out.display());
    let consume = |name: &str| {
        node.ok(&[
            "log",
            "consume",
            STREAM,
            "--consumer",
            name,
            "--exec",
            &command,
            "--drain",
        ])
    };
    let seen = || std::fs::read_to_string(&out).unwrap_or_default();
    consume("first");
    consume("third");
    assert_eq!(seen(), "1\n2\n3\n1\n2\n3\n");
    node.ok(&["log", "ack", "third", "--to-start"]);
    consume("third");
    assert_eq!(seen(), "1\n2\n3\n1\n2\n3\n1\n2\n3\n");
    let event = format!("{}:0:1", id(&node));
    node.ok(&["log", "ack", "third", "--stream", STREAM, "--event", &event]);
    consume("third");
    assert_eq!(seen(), "1\n2\n3\n1\n2\n3\n1\n2\n3\n3\n");
    node.fails(&["log", "ack", "nobody", "--to-tail"], 3);
    node.fails(&["log", "ack", "third"], 2);
    node.fails(
        &[
            "log",
            "consume",
            "other",
            "--consumer",
            "third",
            "--exec",
            "true",
            "--drain",
        ],
        7,
    );
}

/// Events, and what streams say of themselves, come to the others of the swarm, in one order; who was away gets what it missed.
#[test]
fn s3_50_s3_10_nodes_at_rest_have_the_same_events_in_the_same_order() {
    let mut swarm = Swarm::of(2);
    swarm.node(0).ok(&[
        "log",
        "describe",
        STREAM,
        "--meaning",
        "pieces pressed",
        "--unit",
        "pieces",
    ]);
    for n in 0..2 {
        swarm
            .node(n)
            .run_with_input(&["log", "append", STREAM], b"a\nb\nc\n")
            .ok();
    }
    let all =
        |swarm: &Swarm, n: usize| swarm.node(n).run(&["log", "read", STREAM, "--json"]).text();
    until("both have all", || {
        all(&swarm, 0).lines().count() == 6 && all(&swarm, 0) == all(&swarm, 1)
    });
    let about = &swarm.node(1).lines(&["log", "ls", STREAM])[0];
    assert_eq!(
        (
            about["about"]["unit"].as_str(),
            about["authors"].as_array().unwrap().len()
        ),
        (Some("pieces"), 2)
    );

    // Away for a while: both write on.
    swarm.nodes[1].1 = None;
    swarm
        .node(0)
        .run_with_input(&["log", "append", STREAM], b"d\n")
        .ok();
    swarm
        .node(1)
        .run_with_input(&["log", "append", STREAM], b"e\n")
        .ok();
    let known = common::address(swarm.node(0));
    let daemon = Daemon::start(swarm.node(1), &["--bootstrap", &known]);
    swarm.nodes[1].1 = Some(daemon);
    until("both have all again", || {
        all(&swarm, 0).lines().count() == 8 && all(&swarm, 0) == all(&swarm, 1)
    });
}

/// A reader that follows is told what comes, from other nodes, too.
#[test]
fn s3_48_a_reader_that_follows_is_told_what_comes_from_others() {
    let swarm = Swarm::of(2);
    let mut reader = swarm
        .node(1)
        .command(&["log", "read", "hall-1/#", "--follow", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    for n in 0..5 {
        let text = format!("event {n}");
        swarm.node(0).ok(&["log", "append", STREAM, &text]);
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(
            line["data"].as_str(),
            Some(BASE64.encode(text.as_bytes()).as_str())
        );
        assert_eq!(line["author"].as_str(), Some(id(swarm.node(0)).as_str()));
    }
    reader.kill().unwrap();
    reader.wait().unwrap();
}

/// A batch exists once, in the log, and is a block that others can ask for by its CID, whether they keep events or not.
#[test]
fn log_batches_are_served_as_blocks_from_the_log() {
    let mut swarm = Swarm::of(1);
    swarm.join_with(true, &|node| {
        node.ok(&["config", "set", "events.replicate", "false"]);
    });
    let ack = swarm.node(0).json(&["log", "append", STREAM, "one"]);
    let cid = ack["cid"].as_str().unwrap();
    let batch = swarm.node(0).run(&["block", "get", cid]).stdout;
    assert!(
        batch
            .windows(STREAM.len())
            .any(|window| window == STREAM.as_bytes())
    );
    assert_eq!(swarm.node(1).run(&["block", "get", cid]).stdout, batch);
    assert!(swarm.node(1).lines(&["log", "ls"]).is_empty());
    assert_eq!(
        common::status(swarm.node(0))["repo"]["blocks"].as_u64(),
        Some(0)
    );
}

/// L1, R1: `kill -9` of the daemon while events are appended: what was acknowledged is there, in its order, with its numbers.
#[test]
fn l1_s3_42_a_killed_daemon_loses_no_acknowledged_event() {
    let node = Node::new();
    let mut acked: Vec<((u64, u64), String)> = Vec::new();
    let place = |event: &Value| {
        (
            event["epoch"].as_u64().unwrap(),
            event["seq"].as_u64().unwrap(),
        )
    };
    for round in 0..sim_scale(200).max(5) {
        let mut daemon = Daemon::start(&node, &[]);
        let mut child = node
            .command(&["log", "append", STREAM, "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            for n in 0..100_000 {
                if writeln!(input, "{round} {n}").is_err() {
                    return;
                }
            }
        });
        let acks = BufReader::new(child.stdout.take().unwrap()).lines();
        let most = 50 + (round * 37) % 400;
        let mut n = 0;
        for ack in acks.map_while(Result::ok) {
            let Ok(ack) = serde_json::from_str::<Value>(&ack) else {
                continue;
            };
            acked.push((place(&ack), format!("{round} {n}")));
            n += 1;
            if n == most {
                daemon.child.kill().unwrap();
            }
        }
        assert!(n >= most, "the daemon ended by itself");
        daemon.child.wait().unwrap();
        child.wait().unwrap();
        writer.join().unwrap();
    }
    let lines = node.lines(&["log", "read", STREAM]);
    let mut held = std::collections::BTreeMap::new();
    // Where a kill tore the last batch the feed goes on in a new epoch: there and then numbers begin again.
    let mut next = std::collections::BTreeMap::new();
    for line in &lines {
        let (epoch, seq) = place(line);
        let expected = next.entry(epoch).or_insert(0);
        assert_eq!(seq, *expected, "a gap or a second one in epoch {epoch}");
        *expected += 1;
        let data = BASE64
            .decode(line["data"].as_str().unwrap().as_bytes())
            .unwrap();
        held.insert((epoch, seq), String::from_utf8(data).unwrap());
    }
    for (place, text) in &acked {
        assert_eq!(held.get(place), Some(text));
    }
    assert_eq!(node.json(&["log", "verify"])["ok"], true);
}

/// Events that a node holds, by its figures.
fn held(node: &Node) -> u64 {
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let (_, metrics) = common::http(node, "GET", "/metrics", headers);
    let mut lines = metrics.lines();
    let events = lines.find_map(|line| line.strip_prefix("gemba_log_events "));
    events.unwrap().parse().unwrap()
}

fn bytes_in(node: &Node) -> u64 {
    let status = common::status(node);
    let lines = status["lines"].as_array().unwrap().iter();
    lines.map(|line| line["bytes_in"].as_u64().unwrap()).sum()
}

/// S4.9: catching up goes on behind what is durable: a node that is killed in the middle gets no more than an answer or two once more.
#[test]
fn s4_9_catching_up_goes_on_where_a_kill_left_it() {
    let swarm = Swarm::of(1);
    let first = swarm.node(0);
    let count = 16_000;
    let lines: Vec<String> = (0..count)
        .map(|n| BASE64.encode(&common::noise(n, 768)))
        .collect();
    first
        .run_with_input(&["log", "append", STREAM], lines.join("\n").as_bytes())
        .ok();
    let known = common::address(first);
    let start = |node: &Node| Daemon::start(node, &["--bootstrap", &known]);
    let fresh = || {
        let node = Node::bare();
        let key = first.repo.join("swarm.key");
        node.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
        node
    };
    // What it costs without a kill.
    let whole = {
        let node = fresh();
        let _daemon = start(&node);
        until("all events", || held(&node) == count);
        bytes_in(&node)
    };
    assert!(whole > 10_000_000, "{whole}");
    for _ in 0..20 {
        let node = fresh();
        let daemon = start(&node);
        until("half of them", || held(&node) > count / 2);
        drop(daemon);
        let kept = node.ok(&["log", "read", STREAM]).lines().count() as u64;
        // It was faster than we are.
        if kept == count {
            continue;
        }
        let _daemon = start(&node);
        until("the rest", || held(&node) == count);
        let (rest, left) = (bytes_in(&node), whole * (count - kept) / count);
        assert!(
            rest <= left + (3 << 20),
            "{rest} bytes for the {left} that were left of {whole}, with {kept} of {count} kept"
        );
        return;
    }
    panic!("no kill came in the middle");
}

/// S3.21: a counter that is killed at random counts each event once.
#[test]
fn s3_21_a_counter_killed_at_random_counts_each_event_once() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let events: usize = 3_000;
    let input: String = (0..events).map(|n| format!("piece {n}\n")).collect();
    node.run_with_input(&["log", "append", STREAM], input.as_bytes())
        .ok();
    let count = ["log", "count", "hall-1/#", "--consumer", "pieces"];
    for round in 0..sim_scale(200).max(5) {
        let mut counter = node
            .command(&[&count[..], &["--follow"]].concat())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(5 + (round as u64 * 13) % 60));
        counter.kill().unwrap();
        counter.wait().unwrap();
        node.ok(&["log", "append", STREAM, "one more"]);
    }
    let counted = node.json(&count);
    let expected = events + sim_scale(200).max(5);
    assert_eq!(counted["count"].as_u64(), Some(expected as u64));
}

/// Bad input gets a word that says what to do, and a code that scripts know.
#[test]
fn bad_streams_and_events_are_refused_in_words() {
    let node = Node::new();
    assert!(
        node.fails(&["log", "append", "a b", "x"], 2)
            .cause
            .contains("not used in names")
    );
    assert!(
        node.fails(&["log", "append", "$dead/x", "x"], 2)
            .cause
            .contains("gemba's own")
    );
    node.fails(&["log", "read", "nothing/here"], 3);
    assert!(node.ok(&["log", "read", "nothing/#"]).is_empty());
    node.fails(&["log", "dead", "ls", "nobody"], 3);
    node.fails(&["log", "append", STREAM, "x", "--fast"], 5);
    let large = vec![b'x'; 600 << 10];
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let done = node.run_with_input(&["log", "append", STREAM, "--whole"], &large);
        done.fails(2);
    }
}
