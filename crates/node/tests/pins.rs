//! What is wanted on a device and what is being done about it: by real daemons, and without one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;
#[path = "common/kubo.rs"]
mod fake_kubo;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Daemon, Node, Swarm, http, noise, status, until};
use fake_kubo::Kubo;
use gemba_testkit::sim_scale;
use serde_json::{Value, json};

/// Blocks that nobody has.
fn absent(n: u64) -> String {
    use gemba_block::Block;
    Block::raw(format!("nobody has {n}").into_bytes())
        .unwrap()
        .cid()
        .to_string()
}

fn word(node: &Node, cid: &str) -> String {
    node.json(&["pin", "status", cid])["status"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn op(node: &Node, cid: &str) -> Option<Value> {
    let ops = node.lines(&["pin", "ops"]);
    ops.into_iter().find(|op| op["cid"] == cid)
}

fn api(node: &Node, method: &str, path: &str) -> (u16, String) {
    http(
        node,
        method,
        path,
        "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n",
    )
}

fn metric(node: &Node, name: &str) -> f64 {
    let (code, text) = api(node, "GET", "/metrics");
    assert_eq!(code, 200);
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// Wants what nobody has and goes away; on a slow machine once more, if time ran out before the wish was recorded.
fn want(node: &Node, cid: &str) {
    until("the wish", || {
        node.fails(&["pin", "add", cid, "--timeout", "200ms"], 4);
        op(node, cid).is_some()
    });
}

/// Files and sockets that the process has open.
fn open_files(daemon: &Daemon) -> usize {
    let folder = format!("/proc/{}/fd", daemon.child.id());
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn s1_9_what_is_being_done_is_listed_with_phase_age_attempts_and_bytes() {
    let mut swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    assert!(b.lines(&["pin", "ops"]).is_empty());
    let root = absent(1);
    want(b, &root);
    let told = op(b, &root).unwrap();
    for (field, expected) in [
        ("type", json!("pin")),
        ("attempts", json!(1)),
        ("bytes_done", json!(0)),
    ] {
        assert_eq!(told[field], expected, "{told}");
    }
    assert!(
        told["age_s"].is_u64() && ["running", "failed"].contains(&told["phase"].as_str().unwrap())
    );
    let running = metric(b, "gemba_pins_in_flight") + metric(b, "gemba_pins_failed");
    assert_eq!(running as usize, b.lines(&["pin", "ops"]).len());
    // What is whole is no operation any more.
    a.write("f", noise(1, 1000));
    let whole = a.add(&a.path("f"), &[]);
    b.ok(&["pin", "add", &whole]);
    assert!(op(b, &whole).is_none() && word(b, &whole) == "pinned");
    assert!(metric(b, "gemba_pin_operations_done_total") >= 1.0);
    // After a while the try ends with a cause, and the next one is told.
    until("the end of the try", || {
        op(b, &root).unwrap()["phase"] == "failed"
    });
    let told = op(b, &root).unwrap();
    assert_eq!(
        (told["status"].as_str(), word(b, &root).as_str()),
        (Some("pin_error"), "pin_error")
    );
    assert!(
        told["cause"].as_str().unwrap().contains("does not have"),
        "{told}"
    );
    assert!(told["retry_in_s"].is_u64());
    // Without a daemon nothing is being done.
    swarm.nodes[1].1 = None;
    assert!(swarm.node(1).lines(&["pin", "ops"]).is_empty());
}

#[test]
fn s1_7_a_cancel_ends_what_is_being_done_and_leaves_nothing() {
    let mut swarm = Swarm::of(2);
    let (node, daemon) = swarm.nodes.remove(1);
    let daemon = daemon.unwrap();
    let root = absent(1);
    want(&node, &root);
    let before = open_files(&daemon);
    for _ in 0..3 {
        want(&node, &root);
        node.ok(&["pin", "cancel", &root]);
        assert!(node.lines(&["pin", "ops"]).is_empty() && node.lines(&["pin", "ls"]).is_empty());
        node.fails(&["pin", "status", &root], 3);
        // Nothing is asked for any more.
        let why = node.json(&["why", &root]);
        assert_eq!((&why["wanted"], &why["pin"]), (&json!(false), &Value::Null));
    }
    // The caller who waits is told.
    let mut waiting = node
        .command(&["pin", "add", &root, "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the wish", || op(&node, &root).is_some());
    let (code, _) = api(&node, "POST", &format!("/v1/pins/{root}/cancel"));
    assert_eq!(code, 200);
    assert_eq!(waiting.wait().unwrap().code(), Some(7));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut waiting.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("unpinned meanwhile"), "{said}");
    // What is not being done cannot be cancelled, and what is whole is not given up that way.
    assert!(
        node.fails(&["pin", "cancel", &root], 3)
            .hint
            .contains("pin ops")
    );
    node.write("f", "x");
    let whole = node.add(&node.path("f"), &[]);
    node.fails(&["pin", "cancel", &whole], 3);
    assert_eq!(word(&node, &whole), "pinned");
    until("the files to be closed", || {
        open_files(&daemon) <= before + 1
    });
    // Without a daemon nothing is being done.
    drop(daemon);
    node.fails(&["pin", "cancel", &root], 5);
}

/// P8, S1.7: 10,000 pins in full that are cancelled through the API while they are fetched, a twentieth of them in cargo test: no file, no thread, no operation and no
/// want is left, here and at the peer that was asked, and what had come of them is collected.
#[test]
fn p8_s1_7_ten_thousand_cancels_leave_nothing() {
    let swarm = Swarm::of(2);
    let (peer, node) = (swarm.node(0), swarm.node(1));
    let daemon = swarm.nodes[1].1.as_ref().unwrap();
    // Of every other root one block can be had and another is nowhere.
    let there = peer.put("raw", b"a leaf that is there");
    let parts: Vec<String> = (0..10)
        .map(|n| {
            let links = json!([{ "/": there }, { "/": absent(1_000 + n) }]);
            let put = peer.run_with_input(&["dag", "put"], links.to_string().as_bytes());
            put.ok().trim().to_owned()
        })
        .collect();
    let root = |n: u64| match n % 2 {
        0 => absent(n % 20),
        _ => parts[(n / 2) as usize % parts.len()].clone(),
    };
    let headers =
        "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\nContent-Type: application/json\r\n";
    let mut took = Vec::new();
    let mut round = |n: u64| {
        let wish = json!({ "cid": root(n), "timeout_s": 0.003 }).to_string();
        until("the wish", || {
            common::http_with_body(node, "POST", "/v1/pins", headers, wish.as_bytes());
            let begun = Instant::now();
            let (code, _) = api(node, "POST", &format!("/v1/pins/{}/cancel", root(n)));
            took.push(begun.elapsed());
            code == 200
        });
    };
    // What is made once for all of them is there by then.
    (0..20).for_each(&mut round);
    let threads = || {
        let folder = format!("/proc/{}/task", daemon.child.id());
        std::fs::read_dir(folder).unwrap().count()
    };
    let (files, before) = (open_files(daemon), threads());
    (0..sim_scale(10_000) as u64).for_each(&mut round);
    took.sort_unstable();
    let (count, p99, most) = (
        took.len(),
        took[took.len() * 99 / 100],
        took[took.len() - 1],
    );
    println!(
        "figure: p8 {count} cancels through the API, connection included: p99 {p99:.2?}, at most {most:.2?}"
    );
    assert!(node.lines(&["pin", "ops"]).is_empty() && node.lines(&["pin", "ls"]).is_empty());
    until("files, threads and wants to be gone", || {
        let wanted = |n| node.json(&["why", &root(n)])["wanted"] == true;
        open_files(daemon) <= files + 2 && threads() <= before + 8 && !(0..4).any(wanted)
    });
    node.ok(&["gc"]);
    assert_eq!(status(node)["repo"]["blocks"], 0);
}

#[test]
fn what_a_cancelled_pin_had_fetched_is_collected() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    // A folder of which one block is nowhere.
    a.write("f/a", noise(1, 600_000));
    a.write("f/b", noise(2, 600_000));
    let root = a.add(&a.path("f"), &[]);
    let listed = a.lines(&["ls", &format!("{root}/")]);
    let lost = listed[1]["cid"].as_str().unwrap().to_owned();
    a.ok(&["pin", "rm", &root]);
    a.ok(&["block", "rm", &lost]);
    want(b, &root);
    until("the blocks that there are", || {
        status(b)["repo"]["blocks"].as_u64().unwrap() >= 2
    });
    b.ok(&["pin", "cancel", &root]);
    b.ok(&["gc"]);
    assert_eq!(status(b)["repo"]["blocks"], 0);
}

#[test]
fn pin_wait_returns_when_the_last_block_is_there_and_says_why_it_is_not() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let content = noise(3, 1000);
    let root = {
        let other = Node::new();
        other.put("raw", &content)
    };
    b.fails(&["pin", "wait", &root], 3);
    want(b, &root);
    let failure = b.fails(&["pin", "wait", &root, "--timeout", "300ms"], 4);
    assert!(failure.cause.contains(&root), "{failure:?}");
    let mut waiting = b
        .command(&["pin", "wait", &root, "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Past a try that fails.
    until("the end of a try", || word(b, &root) == "pin_error");
    assert!(waiting.try_wait().unwrap().is_none());
    assert_eq!(a.put("raw", &content), root);
    b.ok(&["pin", "recover", &root]);
    assert!(waiting.wait().unwrap().success());
    let line = BufReader::new(waiting.stdout.take().unwrap())
        .lines()
        .next();
    let told: Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
    assert_eq!(
        (&told["status"], &told["blocks_done"]),
        (&json!("pinned"), &json!(1))
    );
    // Whole already, with a daemon and without.
    b.ok(&["pin", "wait", &root]);
}

#[test]
fn s1_28_recover_tries_again_without_waiting_for_what_comes_of_it() {
    let mut swarm = Swarm::of(1);
    // Nothing is tried again by itself, however long it takes until all are in error.
    swarm.join_with(true, &|node| {
        node.ok(&["config", "set", "network.dht", "off"]);
        node.ok(&["config", "set", "pins.pause", "1h"]);
        node.ok(&["config", "set", "pins.pause_longest", "1h"]);
    });
    let (a, b) = (swarm.node(0), swarm.node(1));
    let contents: Vec<Vec<u8>> = (0..8).map(|n| noise(n, 500)).collect();
    let elsewhere = Node::new();
    let roots: Vec<String> = contents
        .iter()
        .map(|bytes| elsewhere.put("raw", bytes))
        .collect();
    for root in &roots {
        want(b, root);
    }
    until("all in error", || {
        roots.iter().all(|root| word(b, root) == "pin_error")
    });
    contents.iter().for_each(|bytes| drop(a.put("raw", bytes)));
    // One alone, then all others; the answer is there at once, and they become whole by themselves.
    assert_eq!(b.json(&["pin", "recover", &roots[0]])["recovered"], 1);
    until("the first", || word(b, &roots[0]) == "pinned");
    assert_eq!(b.json(&["pin", "recover"])["recovered"], 7);
    until("the others", || {
        roots.iter().all(|root| word(b, root) == "pinned")
    });
    assert_eq!(b.json(&["pin", "recover"])["recovered"], 0);
    b.fails(&["pin", "recover", &absent(9)], 3);
}

/// A pin is recorded first and then worked for: whoever got an answer finds it after a kill, and it becomes whole by itself.
#[test]
fn s1_2_an_accepted_pin_survives_a_kill_and_is_done_after_the_restart() {
    let mut swarm = Swarm::of(2);
    let content = noise(5, 2000);
    let root = Node::new().put("raw", &content);
    want(swarm.node(1), &root);
    // Dropped is killed.
    swarm.nodes[1].1 = None;
    let offline = swarm.node(1).json(&["pin", "status", &root]);
    assert_eq!(offline["status"], "pin_queued");
    swarm.node(0).put("raw", &content);
    let bootstrap = common::address(swarm.node(0));
    let daemon = Daemon::start(swarm.node(1), &["--bootstrap", &bootstrap]);
    until("the pin", || word(swarm.node(1), &root) == "pinned");
    drop(daemon);
}

#[test]
fn pin_update_fetches_the_difference_and_releases_the_older_one_last() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    for n in 0..40 {
        a.write(&format!("f/{n}"), noise(n, 3000));
    }
    let old = a.add(&a.path("f"), &[]);
    b.ok(&["pin", "add", &old, "--name", "app"]);
    a.write("f/7", "changed");
    let new = a.add(&a.path("f"), &[]);
    let told = b.json(&["pin", "update", &old, &new]);
    assert_eq!(
        (told["status"].as_str(), told["released"].as_str()),
        (Some("pinned"), Some(old.as_str()))
    );
    assert_eq!(told["name"], "app");
    assert_eq!(
        told["blocks_fetched"], 2,
        "the changed file and the folder: {told}"
    );
    let pins = b.lines(&["pin", "ls"]);
    assert_eq!(pins.len(), 1);
    assert_eq!(
        (pins[0]["cid"].as_str(), pins[0]["name"].as_str()),
        (Some(new.as_str()), Some("app"))
    );
    // A newer one that nobody has: the older one stays.
    let nowhere = absent(1);
    b.fails(&["pin", "update", &new, &nowhere, "--timeout", "300ms"], 4);
    assert_eq!(word(b, &new), "pinned");
    b.ok(&["pin", "cancel", &nowhere]);
    // Both on request; and what is not pinned is not updated.
    b.ok(&["pin", "update", &new, &old, "--keep", "--name", "previous"]);
    assert_eq!(b.lines(&["pin", "ls"]).len(), 2);
    b.fails(&["pin", "update", &absent(2), &old], 3);
}

#[test]
fn pin_update_works_without_a_daemon_where_the_newer_one_is_whole() {
    let node = Node::new();
    node.write("f/a", "a");
    let old = node.add(&node.path("f"), &["--name", "app"]);
    node.write("f/b", "b");
    let new = node.add(&node.path("f"), &[]);
    node.ok(&["pin", "rm", &new]);
    let failure = node.fails(&["pin", "update", &old, &absent(1)], 3);
    assert!(failure.hint.contains("gemba daemon"), "{failure:?}");
    assert_eq!(word(&node, &old), "pinned");
    node.ok(&["pin", "update", &old, &new]);
    let pins = node.lines(&["pin", "ls"]);
    assert_eq!(pins.len(), 1);
    assert_eq!(
        (pins[0]["cid"].as_str(), pins[0]["name"].as_str()),
        (Some(new.as_str()), Some("app"))
    );
}

#[test]
fn s1_33_pins_are_named_renamed_and_listed_by_name() {
    let swarm = Swarm::of(1);
    let node = swarm.node(0);
    let roots: Vec<String> = (0..5).map(|n| node.put("raw", &noise(n, 100))).collect();
    for (n, root) in roots.iter().enumerate() {
        let name = ["app", "app-2", "app"][n % 3];
        node.ok(&["pin", "add", root, "--name", name]);
    }
    let listed = |name: &str| {
        let mut listed: Vec<String> = node
            .lines(&["pin", "ls", "--name", name])
            .iter()
            .map(|pin| pin["cid"].as_str().unwrap().to_owned())
            .collect();
        listed.sort();
        listed
    };
    let mut expected = vec![roots[0].clone(), roots[2].clone(), roots[3].clone()];
    expected.sort();
    assert_eq!(listed("app"), expected);
    node.ok(&["pin", "add", &roots[0], "--name", "ä \"b\" c"]);
    assert_eq!(listed("ä \"b\" c"), [roots[0].clone()]);
    assert_eq!(listed("app").len(), 2);
    assert!(listed("ap").is_empty());
    assert_eq!(node.lines(&["pin", "ls"]).len(), 5);
}

#[test]
fn s1_17_pins_are_written_as_text_and_read_back_with_no_peer_running() {
    let node = Node::new();
    for n in 0..5 {
        let root = node.put("raw", &noise(n, 100));
        let name = format!("pin {n} \"ä\"");
        let mut args = vec!["pin", "add", &root];
        if n % 2 == 0 {
            args.extend(["--name", &name]);
        }
        if n == 3 {
            args.push("--direct");
        }
        node.ok(&args);
    }
    let list = node.ok(&["pin", "export"]);
    assert_eq!(list.lines().next(), Some("{\"gemba_pins\":1}"));
    assert_eq!(list.lines().count(), 6);
    node.ok(&["pin", "export", "-o", "list"]);
    assert_eq!(std::fs::read_to_string(node.path("list")).unwrap(), list);
    // All gone, and all back.
    for pin in node.lines(&["pin", "ls"]) {
        node.ok(&["pin", "rm", pin["cid"].as_str().unwrap()]);
    }
    assert_eq!(node.ok(&["pin", "export"]).lines().count(), 1);
    let report = node.json(&["pin", "import", "list"]);
    assert_eq!((&report["added"], &report["kept"]), (&json!(5), &json!(0)));
    assert_eq!(node.ok(&["pin", "export"]), list);
    // Once more, from standard input, by a daemon: everything is there, and what is here becomes whole without a peer.
    let daemon = Daemon::start(&node, &[]);
    let done = node.run_with_input(&["pin", "import", "--json"], list.as_bytes());
    let report: Value = serde_json::from_str(&done.ok()).unwrap();
    assert_eq!((&report["added"], &report["kept"]), (&json!(0), &json!(5)));
    assert_eq!(node.ok(&["pin", "export"]), list);
    until("all to be whole", || {
        let pins = node.lines(&["pin", "ls"]);
        pins.len() == 5 && pins.iter().all(|pin| pin["status"] == "pinned")
    });
    // On another node, through its daemon.
    let other = Node::new();
    let others = Daemon::start(&other, &[]);
    assert_eq!(
        other.json(&["pin", "import", node.path("list").to_str().unwrap()])["added"],
        5
    );
    assert_eq!(other.ok(&["pin", "export"]), list);
    drop((daemon, others));
    assert_eq!(other.ok(&["pin", "export"]), list);
}

#[test]
fn an_import_takes_nothing_away_and_a_bad_line_is_told_by_its_number() {
    for running in [false, true] {
        let node = Node::new();
        let daemon = running.then(|| Daemon::start(&node, &[]));
        let (a, b) = (node.put("raw", b"a"), node.put("raw", b"b"));
        node.ok(&["pin", "add", &a, "--name", "mine"]);
        node.ok(&["pin", "add", &b, "--direct"]);
        let line = |cid: &str, kind: &str, name: &str| {
            json!({ "cid": cid, "kind": kind, "name": name, "since_ms": 1 }).to_string() + "\n"
        };
        let list = "{\"gemba_pins\":1}\n".to_owned()
            + &line(&a, "direct", "theirs")
            + &line(&b, "recursive", "theirs")
            + &line(
                &absent(1),
                "recursive",
                "follow:k51qzi5uqu5dljtg5upm7x7ugan9lql3ewyknv4r4mhhkwzn8n7cnbd1unfwgq",
            )
            + "no line\n"
            + &line(&absent(2), "recursive", "late");
        node.write("list", &list);
        let failure = node.fails(&["pin", "import", "list"], 2);
        assert!(failure.cause.contains("line 5"), "{failure:?}");
        assert!(failure.hint.contains("3 pins"), "{failure:?}");
        node.write("list", list.replace("no line\n", ""));
        let report = node.json(&["pin", "import", "list"]);
        assert_eq!((&report["added"], &report["kept"]), (&json!(1), &json!(3)));
        assert_eq!(report["labels_dropped"], 1);
        let pins = node.lines(&["pin", "ls"]);
        let of = |cid: &str| pins.iter().find(|pin| pin["cid"] == cid).unwrap();
        assert_eq!(
            (&of(&a)["name"], &of(&a)["kind"]),
            (&json!("mine"), &json!("recursive"))
        );
        assert_eq!(
            (&of(&b)["name"], &of(&b)["kind"]),
            (&json!("theirs"), &json!("recursive"))
        );
        assert_eq!(of(&absent(1))["name"], Value::Null);
        assert_eq!(of(&absent(2))["name"], "late");
        for bad in ["", "{}\n", "{\"gemba_pins\":2}\n"] {
            node.write("bad", bad);
            assert!(
                node.fails(&["pin", "import", "bad"], 2)
                    .cause
                    .contains("line 1")
            );
        }
        drop(daemon);
    }
}

/// Answers `pin/ls` as Kubo does: chunked, a line a pin.
fn kubo(answers: Vec<(u16, Vec<String>, bool)>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for (code, lines, whole) in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut first = String::new();
            reader.read_line(&mut first).unwrap();
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            asked.push(first.trim().to_owned());
            let mut stream = stream;
            write!(stream, "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            for line in lines {
                // In two pieces, wherever a line happens to be.
                let (one, two) = line.split_at(line.len() / 2);
                for piece in [one.to_owned(), format!("{two}\n")] {
                    write!(stream, "{:x}\r\n{piece}\r\n", piece.len()).unwrap();
                }
            }
            if whole {
                write!(stream, "0\r\n\r\n").unwrap();
            }
        }
        asked
    });
    (url, serving)
}

#[test]
fn pins_of_a_kubo_are_taken_over_with_their_names() {
    let pin = |cid: &str, kind: &str, name: &str| {
        json!({ "Cid": cid, "Type": kind, "Name": name }).to_string()
    };
    for running in [false, true] {
        let node = Node::new();
        let daemon = running.then(|| Daemon::start(&node, &[]));
        let recursive: Vec<String> = (0..300)
            .map(|n| pin(&absent(n), "recursive", if n == 7 { "app" } else { "" }))
            .collect();
        let direct = vec![pin(&absent(1000), "direct", "")];
        let (url, serving) = kubo(vec![(200, recursive.clone(), true), (200, direct, true)]);
        let report = node.json(&["pin", "import", "--kubo", &url]);
        assert_eq!(report["added"], 301);
        let asked = serving.join().unwrap();
        assert!(
            asked[0].starts_with("POST /api/v0/pin/ls?type=recursive&names=true&stream=true"),
            "{asked:?}"
        );
        assert!(asked[1].contains("type=direct"));
        let named = node.lines(&["pin", "ls", "--name", "app"]);
        assert_eq!(
            (named.len(), named[0]["cid"].as_str().unwrap().to_owned()),
            (1, absent(7))
        );
        let kinds = node.lines(&["pin", "ls"]);
        assert_eq!(
            kinds.iter().filter(|pin| pin["kind"] == "direct").count(),
            1
        );
        // Cut short: nobody takes the beginning for the whole.
        let (url, serving) = kubo(vec![(200, recursive, false)]);
        let failure = node.fails(&["pin", "import", "--kubo", &url], 1);
        assert!(failure.cause.contains("cut short"), "{failure:?}");
        serving.join().unwrap();
        let refusal =
            json!({ "Message": "pinning is off", "Code": 0, "Type": "error" }).to_string();
        let (url, serving) = kubo(vec![(500, vec![refusal], true)]);
        let failure = node.fails(&["pin", "import", "--kubo", &url], 1);
        assert!(failure.cause.contains("pinning is off"), "{failure:?}");
        serving.join().unwrap();
        drop(daemon);
    }
    let node = Node::new();
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    assert!(
        node.fails(&["pin", "import", "--kubo", &nobody], 1)
            .cause
            .contains("nobody answers")
    );
    node.fails(&["pin", "import", "--kubo", "ftp://x"], 2);
}

/// From one Kubo to gemba and on to another Kubo the set stays the same: roots, kinds and names. What is there already stays, what cannot be made is told, and
/// the same command goes on with it.
#[test]
fn s4_21_pins_go_from_a_kubo_and_back_and_the_sets_are_equal() {
    for running in [false, true] {
        let node = Node::new();
        let daemon = running.then(|| Daemon::start(&node, &[]));
        let (from, to) = (Kubo::start(), Kubo::start());
        for n in 0..60 {
            let name = ["", "app", "ä b&c=1 \"x\""][n as usize % 3];
            from.pin(&absent(n), n % 5 != 0, name);
        }
        assert_eq!(
            node.json(&["pin", "import", "--kubo", &from.url])["added"],
            60
        );
        assert_eq!(
            node.json(&["pin", "export", "--kubo", &to.url])["added"],
            60
        );
        assert_eq!(to.held().pins, from.held().pins);
        // Once more there is nothing to do, either way.
        let again = node.json(&["pin", "export", "--kubo", &to.url]);
        assert_eq!((&again["added"], &again["kept"]), (&json!(0), &json!(60)));
        let again = node.json(&["pin", "import", "--kubo", &to.url]);
        assert_eq!((&again["added"], &again["kept"]), (&json!(0), &json!(60)));
        drop(daemon);
    }
}

#[test]
fn s4_21_an_export_takes_nothing_away_at_the_kubo_and_tells_what_it_could_not_make() {
    let node = Node::new();
    let roots: Vec<String> = (0..5).map(|n| node.put("raw", &noise(n, 100))).collect();
    for root in &roots[..4] {
        node.ok(&["pin", "add", root, "--name", "ours"]);
    }
    node.ok(&["pin", "add", &roots[4], "--direct"]);
    let kubo = Kubo::start();
    kubo.pin(&roots[0], true, "theirs");
    kubo.pin(&roots[1], true, "");
    kubo.pin(&roots[2], false, "theirs");
    kubo.pin(&roots[4], true, "theirs");
    kubo.pin(&absent(1), true, "only there");
    kubo.held().missing.push(roots[3].clone());
    let export = ["pin", "export", "--kubo", &kubo.url, "--timeout", "300ms"];
    let done = node.run(&[&export[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(done.text().trim()).unwrap();
    let counts = ["added", "kept", "named", "widened", "failed"];
    assert_eq!(
        counts.map(|count| report[count].as_u64().unwrap()),
        [0, 2, 1, 1, 1],
        "{report}"
    );
    assert_eq!(report["failures"][0]["cid"], roots[3].as_str());
    assert!(done.fails(4).hint.contains("again"));
    let pin = |recursive: bool, name: &str| (recursive, name.to_owned());
    let expected = [
        (roots[0].clone(), pin(true, "theirs")),
        (roots[1].clone(), pin(true, "ours")),
        (roots[2].clone(), pin(true, "theirs")),
        (roots[4].clone(), pin(true, "theirs")),
        (absent(1), pin(true, "only there")),
    ];
    assert_eq!(kubo.held().pins, expected.into());
    // Somebody who has it is connected now.
    kubo.held().missing.clear();
    let report = node.json(&["pin", "export", "--kubo", &kubo.url]);
    assert_eq!((&report["added"], &report["kept"]), (&json!(1), &json!(4)));
    let refused = node.fails(&["pin", "export", "--kubo", "ftp://x"], 2);
    assert!(refused.hint.contains("5001"), "{refused:?}");
}

/// A Kubo that says nothing, and what is none, end an import and an export within the patience that was asked for, with the cause.
#[test]
fn a_kubo_that_is_silent_or_none_ends_the_command() {
    let node = Node::new();
    let root = node.put("raw", b"here");
    node.ok(&["pin", "add", &root]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let other = Daemon::start(&node, &[]);
    let api = std::fs::read(node.repo.join("api")).unwrap();
    let api: Value = serde_json::from_slice(&api).unwrap();
    let guarded = format!("http://{}", api["address"].as_str().unwrap());
    for way in ["import", "export"] {
        let fail = node.fails(&["pin", way, "--kubo", &url, "--timeout", "300ms"], 4);
        assert!(
            fail.cause.contains("sent nothing for 0.3 s"),
            "{}",
            fail.cause
        );
        let fail = node.fails(&["pin", way, "--kubo", &guarded], 6);
        assert!(
            fail.cause.contains("wants an authorization"),
            "{}",
            fail.cause
        );
    }
    drop(other);
}

/// What was removed is told, though a later one of the command is refused.
#[test]
fn each_removal_is_told() {
    let node = Node::new();
    for running in [false, true] {
        let daemon = running.then(|| Daemon::start(&node, &[]));
        let root = node.put("raw", &noise(u64::from(running), 100));
        node.ok(&["pin", "add", &root]);
        let done = node.run(&["pin", "rm", &root, &absent(1)]);
        assert!(done.text().contains(&root), "{}", done.text());
        done.fails(3);
        drop(daemon);
    }
}

/// A caller's patience beyond what any clock shows is his alone: he waits, and the daemon goes on.
#[test]
fn a_patience_without_end_ends_no_daemon() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let cid = absent(1);
    let patience = "10000000000000000000s";
    let mut waits = node.command(&["pin", "add", &cid, "--timeout", patience]);
    waits.stdout(Stdio::null()).stderr(Stdio::null());
    let mut waits = waits.spawn().unwrap();
    until("its operation", || op(&node, &cid).is_some());
    node.ok(&["pin", "rm", &cid]);
    let conflict = Some(7);
    assert_eq!(waits.wait().unwrap().code(), conflict);
}

/// Hundreds of wishes at once, a tenth of them for what nobody has at first.
#[test]
fn s1_26_many_pins_at_once_become_whole_without_a_hand() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let count = 300;
    let content = |n: u64| format!("block {n}").into_bytes();
    let cid = |n: u64| {
        gemba_block::Block::raw(content(n))
            .unwrap()
            .cid()
            .to_string()
    };
    // One folder holds those that are there.
    for n in (0..count).filter(|n| n % 10 != 0) {
        a.write(&format!("f/{n}"), content(n));
    }
    a.add(&a.path("f"), &[]);
    let lines: Vec<String> = (0..count)
        .map(|n| json!({ "cid": cid(n), "kind": "recursive", "since_ms": 0 }).to_string())
        .collect();
    b.write(
        "list",
        format!("{{\"gemba_pins\":1}}\n{}\n", lines.join("\n")),
    );
    assert_eq!(b.json(&["pin", "import", "list"])["added"], count);
    let whole = |b: &Node| {
        let pins = b.lines(&["pin", "ls"]);
        pins.iter().filter(|pin| pin["status"] == "pinned").count() as u64
    };
    let patient = |what: &str, is_so: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(300), "{what}");
            std::thread::sleep(Duration::from_millis(500));
        }
    };
    patient("those that are there", &|| whole(b) >= count * 9 / 10);
    assert_eq!(whole(b), count * 9 / 10);
    for n in (0..count).filter(|n| n % 10 == 0) {
        a.write(&format!("g/{n}"), content(n));
    }
    a.add(&a.path("g"), &[]);
    // By themselves, each after its pause.
    patient("the rest", &|| whole(b) == count);
    assert!(b.lines(&["pin", "ops"]).is_empty());
}
