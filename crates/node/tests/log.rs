//! Events, driven as their users drive them: with a daemon and without one, over the swarm, and through kills.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Daemon, Node, Swarm, id, until};
use data_encoding::BASE64;
use gemba_testkit::sim_scale;
use serde_json::Value;

const STREAM: &str = "hall-1/line-3/press-7/count";

fn payloads(node: &Node, args: &[&str]) -> Vec<String> {
    node.lines(&[&["log", "read"], args].concat())
        .iter()
        .map(payload)
        .collect()
}

/// None where the node has not heard of the stream yet.
fn payloads_so_far(node: &Node, stream: &str) -> Vec<String> {
    let done = node.run(&["log", "read", stream, "--json"]);
    if !done.status.success() {
        assert_eq!(done.fails(3).code, "not_found");
        return Vec::new();
    }
    let line = |line: &str| payload(&serde_json::from_str(line).unwrap());
    done.text().lines().map(line).collect()
}

fn payload(line: &Value) -> String {
    let data = BASE64.decode(line["data"].as_str().unwrap().as_bytes());
    String::from_utf8(data.unwrap()).unwrap()
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

/// Events go to a device that no network reaches as a file: with a daemon and without one on either side, in the same places and order. A file comes
/// twice without harm; one that is cut or is none is refused, what came before is kept, and nobody is told that there is something where there is not.
#[test]
fn s3_48_events_travel_as_files() {
    let (one, two) = (Node::new(), Node::new());
    one.run_with_input(&["log", "append", STREAM], b"1\n2\n3\n")
        .ok();
    one.ok(&["log", "append", "hall-2/x", "elsewhere"]);
    one.ok(&["log", "describe", STREAM, "--unit", "pieces"]);
    let file = two.path("events.car");
    let file_text = file.to_str().unwrap();
    let export = |args: &[&str]| {
        let output = one.run(&[&["log", "export"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        output.stdout
    };
    for with_daemon in [false, true] {
        let _there = with_daemon.then(|| Daemon::start(&one, &[]));
        let _here = with_daemon.then(|| Daemon::start(&two, &[]));
        let bytes = export(&["hall-1/#", "$about/#"]);
        let (cut, none) = (&bytes[..bytes.len() - 10], b"no archive");
        for wrong in [cut, none] {
            std::fs::write(&file, wrong).unwrap();
            two.fails(&["log", "import", file_text], 8);
        }
        std::fs::write(&file, &bytes).unwrap();
        two.ok(&["log", "import", file_text]);
        let again = two.lines(&["log", "import", file_text]).swap_remove(0);
        assert_eq!(
            (again["new"].as_u64(), again["refused"].as_u64()),
            (Some(0), Some(0))
        );
        let all = ["log", "read", "#"];
        let of_one = one.lines(&["log", "read", "hall-1/#"]);
        assert_eq!(two.lines(&all), of_one);
        let listed = two.lines(&["log", "ls"]).swap_remove(0);
        assert_eq!(listed["about"]["unit"], "pieces");
        one.fails(&["log", "export", "nobody/x"], 3);
        one.ok(&["log", "append", STREAM, "one more"]);
    }
}

/// An author numbers the events of each stream, so letters of two streams may have one id. Whoever names the id alone is asked which; nothing is
/// dropped that nobody named, and all are tried again when all are to be. How many are open is told by any process.
#[test]
fn s3_53_letters_of_several_streams_are_told_apart() {
    let node = Node::new();
    for stream in ["hall-1/a", "hall-1/b", "hall-1/c"] {
        node.ok(&["log", "append", stream, stream]);
    }
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let name = if with_daemon { "with" } else { "without" };
        let consume = |command: &str| {
            let args = ["log", "consume", "hall-1/#", "--consumer", name, "--exec"];
            node.ok(&[&args[..], &[command, "--attempts", "1", "--drain"]].concat())
        };
        let streams = || {
            let letters = node.lines(&["log", "dead", "ls", name]);
            let of = letters
                .iter()
                .map(|letter| letter["stream"].as_str().unwrap().to_owned());
            of.collect::<Vec<_>>()
        };
        let dead = || {
            let views = node.lines(&["log", "consumers"]);
            let view = views.iter().find(|view| view["consumer"] == name).unwrap();
            view["dead"].as_u64().unwrap()
        };
        consume("false");
        let letters = node.lines(&["log", "dead", "ls", name]);
        assert_eq!((letters.len(), dead()), (3, 3), "{letters:?}");
        let id = letters[0]["id"].as_str().unwrap();
        assert!(
            letters.iter().all(|letter| letter["id"] == id),
            "{letters:?}"
        );
        for what in ["show", "retry", "drop"] {
            let refused = node.fails(&["log", "dead", what, name, id], 7);
            assert!(refused.cause.contains("hall-1/"), "{refused:?}");
        }
        let of_b = [name, id, "--stream", "hall-1/b"];
        let show = [&["log", "dead", "show"][..], &of_b].concat();
        assert_eq!(node.ok(&show), "hall-1/b\n");
        node.ok(&[&["log", "dead", "drop"][..], &of_b].concat());
        assert_eq!(
            (streams(), dead()),
            (vec!["hall-1/a".to_owned(), "hall-1/c".to_owned()], 2)
        );
        node.ok(&["log", "dead", "retry", name]);
        consume("cat > /dev/null");
        assert_eq!((streams().len(), dead()), (0, 0));
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
    // The places of all streams are not those of one: nothing moves.
    node.fails(
        &["log", "ack", "third", "--to-start", "--stream", STREAM],
        2,
    );
    assert_eq!(
        node.lines(&["log", "consumers"])[1]["lag"].as_u64(),
        Some(0)
    );
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

/// A worker that runs a command for each event until it is killed.
fn worker(node: &Node, consumer: &str, command: &str) -> Child {
    node.command(&[
        "log",
        "consume",
        "hall-1/#",
        "--consumer",
        consumer,
        "--exec",
        command,
        "--json",
    ])
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap()
}

/// LR-6, S3.22, S3.53: who runs a consumer, and what it could not do, is known on other nodes although nobody appends an event; who was replaced ends
/// by itself, and the two do not take it from each other for ever.
#[test]
fn s3_22_s3_53_claims_and_dead_letters_reach_other_nodes_by_themselves() {
    let swarm = Swarm::of(2);
    let (one, two) = (swarm.node(0), swarm.node(1));
    one.ok(&["log", "append", STREAM, "bad"]);
    let consume = |command: &'static str, more: &[&'static str]| {
        let args = ["log", "consume", "hall-1/#", "--consumer", "work", "--exec"];
        [&args[..], &[command, "--drain", "--attempts", "1"], more].concat()
    };
    one.ok(&consume("false", &[]));
    let count = |node: &Node, pattern: &str| node.lines(&["log", "read", pattern]).len();
    until("the other node has the letter and the claim", || {
        count(two, "$dead/#") == 1 && count(two, "$consumer/#") == 1
    });
    let refused = two.fails(&consume("true", &[]), 7);
    assert!(refused.cause.contains("runs elsewhere"), "{refused:?}");
    let letters = two.lines(&["log", "dead", "ls", "work"]);
    assert_eq!(
        (letters.len(), letters[0]["attempts"].as_u64()),
        (1, Some(1))
    );
    let id = letters[0]["id"].as_str().unwrap();
    assert_eq!(two.ok(&["log", "dead", "show", "work", id]), "bad\n");
    two.fails(&["log", "dead", "ls", "nobody"], 3);
    // What is to be done about it is done where the consumer runs: which node that is, and how, is told.
    let elsewhere = two.fails(&["log", "dead", "retry", "work", id], 3);
    let runs_on = one.json(&["id"])["id"].as_str().unwrap().to_owned();
    assert!(elsewhere.cause.contains(&runs_on), "{elsewhere:?}");
    let command = format!("on {runs_on} run `gemba log dead retry work {id}`");
    assert!(elsewhere.hint.contains(&command), "{elsewhere:?}");
    assert!(
        elsewhere.hint.contains("connected, at /ip4/"),
        "{elsewhere:?}"
    );

    let mut waiting = worker(one, "work", "true");
    two.ok(&consume("true", &["--take-over"]));
    until("the worker of the first node ends", || {
        waiting.try_wait().unwrap().is_some()
    });
    let output = common::wait(waiting);
    assert_eq!(output.status.code(), Some(7));
    for node in [one, two] {
        until("one claim each", || count(node, "$consumer/#") == 2);
    }
    // What moved away keeps nobody from seeing the others.
    one.ok(&["log", "count", "hall-1/#", "--consumer", "pieces"]);
    let views = one.lines(&["log", "consumers"]);
    let told = views.iter().map(|view| {
        let is_elsewhere = view["elsewhere"] == true;
        (
            view["consumer"].as_str().unwrap(),
            is_elsewhere,
            view["dead"].as_u64(),
        )
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told, [("pieces", false, Some(0)), ("work", true, Some(1))]);
    let runs_on = two.json(&["id"])["id"].clone();
    assert_eq!(views[1]["runs_on"], runs_on);
    let elsewhere = one.fails(&["log", "dead", "drop", "work", id], 7);
    assert!(
        elsewhere.hint.contains(runs_on.as_str().unwrap()),
        "{elsewhere:?}"
    );
}

/// L11: a consumer is forgotten by command, with a daemon and without one; whoever works for it is told.
#[test]
fn l11_a_consumer_is_forgotten_by_command() {
    let node = Node::new();
    node.ok(&["log", "append", STREAM, "one"]);
    let drain = |name: &str| {
        let consume = ["log", "consume", "hall-1/#", "--consumer", name];
        node.ok(&[&consume[..], &["--exec", "true", "--drain"]].concat());
    };
    drain("first");
    node.ok(&["log", "consumers", "rm", "first"]);
    node.fails(&["log", "consumers", "rm", "first"], 3);
    assert!(node.lines(&["log", "consumers"]).is_empty());

    let _daemon = Daemon::start(&node, &[]);
    drain("second");
    node.ok(&["log", "consumers", "rm", "second"]);
    assert!(node.lines(&["log", "consumers", "ls"]).is_empty());

    // Its handler does not end before it may: a worker that is in the middle of an event is as much in use as one that waits.
    let gate = node.repo.with_extension("gate");
    let waits = format!("until [ -e '{}' ]; do sleep 0.05; done", gate.display());
    let busy = worker(&node, "third", &waits);
    let in_use = |what: &str| {
        let mut hint = String::new();
        until(what, || {
            // It may not be there yet, or be between an event and the next wait.
            let removed = node.run(&["log", "consumers", "rm", "third"]);
            let is_in_use = removed.status.code() == Some(7);
            if is_in_use {
                hint = removed.fails(7).hint;
            }
            is_in_use
        });
        assert!(hint.contains("--force"), "{hint}");
    };
    in_use("it holds an event");
    node.ok(&["log", "consumers", "rm", "third", "--force"]);
    std::fs::write(&gate, "").unwrap();
    assert_eq!(common::wait(busy).status.code(), Some(3));
    assert!(node.lines(&["log", "consumers"]).is_empty());

    // A worker between an acknowledgement and the next claim holds nothing. It learns of it by that claim, and does not make the consumer anew, at its first
    // event. It stays there as long as nobody reads what it says of a large one.
    node.run_with_input(
        &["log", "append", STREAM, "--whole"],
        &vec![b'x'; 256 << 10],
    );
    let speaks = [
        "log",
        "consume",
        "hall-1/#",
        "--consumer",
        "fourth",
        "--exec",
        "true",
        "--json",
    ];
    let mut speaking = node.command(&speaks);
    let speaking = speaking.stdout(Stdio::piped()).stderr(Stdio::piped());
    let speaking = speaking.spawn().unwrap();
    until("all is acknowledged", || {
        let consumers = node.lines(&["log", "consumers"]);
        consumers
            .first()
            .is_some_and(|consumer| consumer["lag"] == 0)
    });
    node.ok(&["log", "consumers", "rm", "fourth"]);
    assert_eq!(common::wait(speaking).status.code(), Some(3));
    assert!(node.lines(&["log", "consumers"]).is_empty());
}

/// L5: a repository is copied, as by a backup that comes back, and its device had written on: no number is given to two events, and the node says what
/// has happened.
#[test]
fn l5_a_restored_repository_gives_no_number_twice() {
    let mut swarm = Swarm::of(2);
    let texts = |node: &Node| {
        let mut texts = payloads_so_far(node, STREAM);
        texts.sort();
        texts
    };
    swarm.node(1).ok(&["log", "append", STREAM, "before"]);
    swarm.nodes[1].1 = None;
    let backup = Node::bare();
    copy_folder(&swarm.node(1).repo, &backup.repo);
    let known = common::address(swarm.node(0));
    let daemon = Daemon::start(swarm.node(1), &["--bootstrap", &known]);
    swarm
        .node(1)
        .ok(&["log", "append", STREAM, "lost with the disk"]);
    until("the other has it", || texts(swarm.node(0)).len() == 2);
    drop(daemon);

    // It meets nobody yet.
    let ack = backup.json(&["log", "append", STREAM, "after"]);
    assert!(ack["epoch"].as_u64().unwrap() >= 1 << 50, "{ack}");
    assert_eq!(ack["seq"].as_u64(), Some(0));
    let _daemon = Daemon::start(&backup, &["--bootstrap", &known]);
    let all = ["after", "before", "lost with the disk"];
    until("both have all", || {
        texts(&backup) == all && texts(swarm.node(0)) == all
    });
    let status = common::status(&backup);
    let troubles = status["troubles"].as_array().unwrap();
    let returned = troubles.iter().find(|one| one["kind"] == "events_returned");
    let cause = returned.unwrap()["cause"].as_str().unwrap();
    assert!(cause.contains("backup"), "{cause}");
    assert_eq!(status["events"]["cloned"], false);
    assert_eq!(status["health"], "degraded");
    let listed = &swarm.node(0).lines(&["log", "ls", STREAM])[0];
    assert_eq!(listed["forked"], false);
    // By hand, too: also where nothing tells that it is a copy.
    backup.ok(&["log", "restored"]);
    let ack = backup.json(&["log", "append", STREAM, "by hand"]);
    assert_eq!(ack["seq"].as_u64(), Some(0));
}

/// L5: two devices run on one repository, an image of a disk, so that nothing tells that it was copied. They hear of each other by others and both write on: no
/// event is lost, none has the number of another, each says what is wrong, and it does not cost an epoch each time they hear of each other.
#[test]
fn l5_two_devices_with_one_repository_are_told_and_cost_one_epoch_each() {
    let swarm = Swarm::of(2);
    let key = swarm.node(0).repo.join("swarm.key");
    let (one, two) = (Node::bare(), Node::bare());
    one.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    one.ok(&["config", "set", "network.dht", "off"]);
    one.ok(&["log", "append", STREAM, "before"]);
    copy_folder(&one.repo, &two.repo);
    std::fs::remove_file(two.repo.join("log/events.born")).unwrap();
    // They have one peer id, so nobody is connected to both.
    let start = |node: &Node, at: usize| {
        let known = common::address(swarm.node(at));
        Daemon::start(node, &["--bootstrap", &known])
    };
    let _daemons = [start(&one, 0), start(&two, 1)];
    let mut expected = vec!["before".to_owned()];
    for n in 0..16 {
        let (from, to) = if n % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        from.ok(&["log", "append", STREAM, &n.to_string()]);
        expected.push(n.to_string());
        until("the other one has it", || {
            payloads_so_far(to, STREAM).contains(&n.to_string())
        });
    }
    expected.sort();
    for node in [&one, &two] {
        until("all have all", || {
            let mut texts = payloads_so_far(node, STREAM);
            texts.sort();
            texts == expected
        });
        let events = node.lines(&["log", "read", STREAM]);
        let epochs: std::collections::BTreeSet<_> =
            events.iter().map(|event| event["epoch"].as_u64()).collect();
        // The first, and one of each.
        assert_eq!(epochs.len(), 3, "{epochs:?}");
        let listed = &node.lines(&["log", "ls", STREAM])[0];
        assert_eq!(listed["forked"], false);
        // Each has answered to the start of the other.
        let mut cause = String::new();
        until("it is told that another device has this identity", || {
            let status = common::status(node);
            let troubles = status["troubles"].as_array().unwrap();
            let cloned = troubles.iter().find(|one| one["kind"] == "events_cloned");
            if let Some(cloned) = cloned {
                cause = cloned["cause"].as_str().unwrap().to_owned();
            }
            cloned.is_some()
        });
        assert!(cause.contains("gemba init"), "{cause}");
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let to = to.join(entry.file_name());
        if kind.is_dir() {
            copy_folder(&entry.path(), &to);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A line between two nodes that can be cut.
struct Line {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    fn to(node: &Node) -> Self {
        let target: u16 = common::address(node)
            .split('/')
            .nth(4)
            .unwrap()
            .parse()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                let clones = [&near, &far].map(|end| end.try_clone().unwrap());
                kept.lock().unwrap().extend(clones);
                let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || carry(near, far));
                std::thread::spawn(move || carry(far2, near2));
            }
        });
        Self { port, open }
    }

    fn cut(&self) {
        for end in self.open.lock().unwrap().drain(..) {
            let _closed = end.shutdown(Shutdown::Both);
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(Shutdown::Both);
}

/// S3.32: the link between two nodes is cut again and again; each time they find each other by themselves, and what was appended meanwhile comes, once.
/// How soon is asserted in virtual time (crates/pnet/tests/sleep.rs).
#[test]
fn s3_32_after_each_cut_of_the_link_events_flow_again_by_themselves() {
    let swarm = Swarm::of(1);
    let (one, two) = (swarm.node(0), Node::bare());
    let key = one.repo.join("swarm.key");
    two.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    let line = Line::to(one);
    let known = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", line.port, id(one));
    let _daemon = Daemon::start(&two, &["--bootstrap", &known]);
    let mut expected = Vec::new();
    for cut in 0..sim_scale(1000).div_ceil(20) {
        let text = format!("event {cut}");
        one.ok(&["log", "append", STREAM, &text]);
        expected.push(text);
        until("the event has come", || {
            let read = two.run(&["log", "read", "hall-1/#", "--raw"]);
            read.ok().lines().eq(&expected)
        });
        line.cut();
    }
}

/// S3.3: work that must happen at the machine happens there, whatever becomes of the way to others: a consumer on the same node works on while the
/// node that it knows is gone.
#[test]
fn s3_3_a_consumer_at_the_machine_works_on_while_the_way_to_others_is_cut() {
    let mut swarm = Swarm::of(2);
    let out = swarm.node(1).path("out");
    let command = format!("cat >> {0}; echo >> {0}", out.display());
    let mut worker = worker(swarm.node(1), "at-the-machine", &command);
    let seen = || std::fs::read_to_string(&out).unwrap_or_default();
    swarm.node(1).ok(&["log", "append", STREAM, "before"]);
    until("it works", || seen() == "before\n");
    swarm.nodes[0].1 = None;
    until("the way is cut", || {
        common::status(swarm.node(1))["peers"] == 0
    });
    swarm
        .node(1)
        .ok(&["log", "append", STREAM, "while cut off"]);
    until("it works on", || seen() == "before\nwhile cut off\n");
    worker.kill().unwrap();
    worker.wait().unwrap();
}

/// S3.9: there is no broker. Of three nodes any may die: the two others still give each other their events, and the third gets them when it is back.
#[test]
fn s3_9_any_node_may_die_and_the_others_exchange_events() {
    let mut swarm = Swarm::of(3);
    let connect = |swarm: &Swarm, from: usize, to: usize| {
        let address = common::address(swarm.node(to));
        swarm.node(from).ok(&["connect", &address]);
    };
    connect(&swarm, 2, 1);
    for victim in 0..3 {
        swarm.nodes[victim].1 = None;
        let (one, two) = ((victim + 1) % 3, (victim + 2) % 3);
        swarm
            .node(one)
            .ok(&["log", "append", STREAM, "while one is dead"]);
        let has_all =
            |swarm: &Swarm, n: usize| payloads(swarm.node(n), &["hall-1/#"]).len() == victim + 1;
        until("the other has it", || has_all(&swarm, two));
        let (known, other) = (
            common::address(swarm.node(one)),
            common::address(swarm.node(two)),
        );
        let args = ["--bootstrap", &known, "--bootstrap", &other];
        let daemon = Daemon::start(swarm.node(victim), &args);
        swarm.nodes[victim].1 = Some(daemon);
        until("the third has it, too", || has_all(&swarm, victim));
        until("all are connected", || {
            (0..3).all(|n| common::status(swarm.node(n))["peers"] == 2)
        });
    }
}

/// S0.3: one node, one process, gives out assets and events at once, and takes both.
#[test]
fn s0_3_one_node_serves_assets_and_events_at_once() {
    let swarm = Swarm::of(2);
    let (one, two) = (swarm.node(0), swarm.node(1));
    let pid = |node: &Node| -> Value {
        let api = std::fs::read(node.repo.join("api")).unwrap();
        serde_json::from_slice::<Value>(&api).unwrap()["pid"].clone()
    };
    let before = pid(one);
    let content = common::noise(3, 8 << 20);
    let asset = one.add(&one.write("asset", &content), &[]);
    let mut reader = two
        .command(&["log", "read", "hall-1/#", "--follow", "--raw"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| two.run(&["cat", &asset]).stdout);
        for n in 0..20 {
            let text = format!("event {n}");
            one.ok(&["log", "append", STREAM, &text]);
            assert_eq!(lines.next().unwrap().unwrap(), text);
        }
        assert!(fetching.join().unwrap() == content);
    });
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert_eq!(pid(one), before);
}

/// S0.35: the hash of what was appended goes over gossip, to whomever reads the topic; the events themselves come over exchange, by that hash, from a
/// node that speaks nothing else. However often a hash is heard or a batch fetched, the events in it have one name each, by which they count once.
#[test]
fn s0_35_hashes_go_over_gossip_and_entries_over_exchange() {
    let mut swarm = Swarm::of(2);
    // It keeps no events: it has what pubsub and blocks give.
    swarm.join_with(true, &|node| {
        node.ok(&["config", "set", "events.replicate", "false"]);
    });
    let plain = swarm.node(2);
    let mut listening = plain
        .command(&["pubsub", "sub", "/gemba/log/heads/1", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, heard) = std::sync::mpsc::sync_channel(64);
    let output = BufReader::new(listening.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut appended = std::collections::BTreeMap::new();
    let mut counted = std::collections::BTreeMap::new();
    until("each event was counted", || {
        // Gossip promises nothing, least of all before its neighbours know who subscribes: the next hash leads to all before it.
        if appended.len() < 5 || counted != appended {
            let text = format!("piece {}", appended.len());
            let ack = swarm.node(0).json(&["log", "append", STREAM, &text]);
            appended.insert(ack["seq"].as_u64().unwrap(), text);
        }
        while let Ok(line) = heard.recv_timeout(Duration::from_millis(600)) {
            let line: Value = serde_json::from_str(&line).unwrap();
            let data = BASE64.decode(line["data"].as_str().unwrap().as_bytes());
            let told = gemba_log::wire::Message::decode(&data.unwrap().into()).unwrap();
            let gemba_log::wire::Message::Announce(told) = told else {
                panic!("{told:?}");
            };
            for tip in told.tips {
                // From the last one back to the first, each by its hash.
                let mut next = Some(cid_of(&tip.batch));
                while let Some(cid) = next {
                    let got = plain.run(&["block", "get", &cid.to_string()]);
                    if !got.status.success() {
                        // Not yet: the next hash leads here again.
                        break;
                    }
                    let batch = gemba_log::Batch::decode(got.stdout.into()).unwrap();
                    for event in batch.owned_events() {
                        let text = String::from_utf8(event.payload.to_vec()).unwrap();
                        counted.insert(event.seq, text);
                    }
                    next = batch.prev();
                }
            }
        }
        appended.len() >= 5 && counted == appended
    });
    listening.kill().unwrap();
    listening.wait().unwrap();
    assert!(plain.lines(&["log", "ls"]).is_empty());
}

/// dag-cbor, SHA2-256.
fn cid_of(digest: &[u8; 32]) -> cid::Cid {
    cid::Cid::new_v1(0x71, cid::multihash::Multihash::wrap(0x12, digest).unwrap())
}

/// A line that is no event is named by its number, with the limit, and those before it are appended and told. What was cut has no length to speak of.
#[test]
fn s3_40_a_line_that_is_too_long_is_named_and_those_before_it_are_there() {
    let node = Node::new();
    let mut input = b"one\ntwo\n".to_vec();
    input.extend(vec![b'x'; 600 << 10]);
    input.extend(b"\nfour\n");
    let done = node.run_with_input(&["log", "append", STREAM], &input);
    let cause = done.fails(2).cause;
    assert!(
        cause.contains("524288 bytes") && cause.contains("line 3"),
        "{cause}"
    );
    assert_eq!(done.text().lines().count(), 2);
    assert_eq!(payloads(&node, &[STREAM]), ["one", "two"]);
    // At the limit it is one.
    let most = vec![b'x'; 512 << 10];
    node.run_with_input(&["log", "append", STREAM], &most).ok();
}
