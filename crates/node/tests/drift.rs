//! What a pin says and what is on the disk drift apart, under a running daemon or between two: it heals by itself, on request, and never gets worse by
//! a restart.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Node, Swarm, address, damage, http, noise, signal, status, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Damaged blocks that were fetched again.
fn repaired(node: &Node) -> u64 {
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let (_, metrics) = http(node, "GET", "/metrics", headers);
    let mut lines = metrics.lines();
    let count = lines.find_map(|line| line.strip_prefix("gemba_repaired_blocks_total "));
    count.unwrap().parse().unwrap()
}

fn word(node: &Node, cid: &str) -> String {
    let told = node.json(&["pin", "status", cid]);
    told["status"].as_str().unwrap().to_owned()
}

/// Wants what nobody has and goes away; on a slow machine once more, if time ran out before the wish was recorded.
fn want(node: &Node, cid: &str) {
    until("the wish", || {
        node.fails(&["pin", "add", cid, "--timeout", "300ms"], 4);
        node.ok(&["pin", "ls", "-q"]).contains(cid)
    });
}

/// Two nodes; the second compares its pins so often.
fn swarm(compare: &str) -> Swarm {
    let mut swarm = Swarm::of(1);
    swarm.join_with(true, &|node| {
        node.ok(&["config", "set", "pins.compare", compare]);
    });
    swarm
}

/// A folder with a file of several blocks in it: its root, and the root of the file.
fn folder(node: &Node, seed: u64) -> (String, String) {
    node.write(&format!("f{seed}/video"), noise(seed, 3_000_000));
    node.write(&format!("f{seed}/note"), noise(seed + 1, 500));
    let root = node.add(&node.path(&format!("f{seed}")), &[]);
    let listed = node.lines(&["ls", &format!("{root}/")]);
    let video = listed.iter().find(|entry| entry["name"] == "video");
    (root, video.unwrap()["cid"].as_str().unwrap().to_owned())
}

/// A block of a pin that says it is whole goes bad under the running daemon. Nobody reads it and nobody commands anything: the pin is whole again.
/// Here it is looked for each second, by default each 30.
#[test]
fn s2_34_a_pin_that_lost_a_block_behind_the_daemons_back_becomes_whole_by_itself() {
    let mut swarm = swarm("1s");
    let (root, video) = folder(swarm.node(0), 1);
    let b = swarm.node(1);
    b.ok(&["pin", "add", &root]);
    assert_eq!(status(b)["kept"]["compare_struck"], 0);
    // Once each: the root, and a node below it.
    for (lost, times) in [(&root, 1), (&video, 2)] {
        damage(b, lost);
        // By the comparison alone, since nobody reads; but a damaged block is also asked for by itself, and may come before the pin is looked up.
        until("the drift is found", || {
            let struck = status(b)["kept"]["compare_struck"].as_u64().unwrap();
            struck.max(repaired(b)) >= times
        });
        until("the pin is whole", || word(b, &root) == "pinned");
    }
    assert!(status(b)["kept"]["compare_rounds"].as_u64() > Some(0));
    // It is so from this disk.
    swarm.nodes[0].1 = None;
    let b = swarm.node(1);
    b.ok(&["get", &root, "-o", "out"]);
    b.ok(&["repo", "verify"]);
    assert_eq!(
        b.json(&["pin", "sync", &root])["done"],
        "nothing",
        "record and store agree"
    );
}

/// One CID is compared with the store when somebody asks, every block of it: what was found is told, and it is healed.
#[test]
fn s2_35_one_pin_is_compared_and_healed_on_request() {
    let mut swarm = swarm("off");
    let (root, video) = folder(swarm.node(0), 1);
    let leaf = {
        let dag = swarm.node(0).json(&["dag", "get", &video]);
        let link = &dag["Links"][0]["Hash"]["/"];
        link.as_str().unwrap().to_owned()
    };
    let b = swarm.node(1);
    b.ok(&["pin", "add", &root]);
    let blocks = b.json(&["pin", "status", &root])["blocks_done"].clone();
    let synced = b.json(&["pin", "sync", &root]);
    assert_eq!(
        (&synced["done"], &synced["status"], &synced["blocks_here"]),
        (&json!("nothing"), &json!("pinned"), &blocks)
    );
    // A leaf, which nothing but reading it finds.
    damage(b, &leaf);
    let synced = b.json(&["pin", "sync", &root]);
    assert_eq!(
        (&synced["done"], &synced["missing"]),
        (&json!("struck_out"), &json!(1)),
        "{synced}"
    );
    assert_ne!(synced["status"], "pinned");
    assert!(synced["found"].as_str().unwrap().contains("1 block is"));
    until("the pin is whole", || word(b, &root) == "pinned");
    b.ok(&["repo", "verify"]);
    // What is not whole is tried at once, and what is not wanted is not there.
    let absent = Node::new().put("raw", b"nobody has it");
    want(b, &absent);
    let synced = b.json(&["pin", "sync", &absent]);
    assert_eq!(
        (&synced["done"], &synced["blocks_here"], &synced["missing"]),
        (&json!("tried_again"), &json!(0), &json!(1))
    );
    b.ok(&["pin", "rm", &absent]);
    b.fails(&["pin", "sync", &absent], 3);
    // Without a daemon the record is put right, either way.
    swarm.nodes[1].1 = None;
    let b = swarm.node(1);
    damage(b, &leaf);
    assert_eq!(b.json(&["pin", "sync", &root])["done"], "struck_out");
    assert_eq!(
        b.ok(&["pin", "ls"]).trim(),
        format!("{root} recursive waiting")
    );
    assert_eq!(b.json(&["pin", "sync", &root])["done"], "nothing");
    let good = swarm.node(0).run(&["block", "get", &leaf]).stdout;
    assert_eq!(b.put("raw", &good), leaf);
    let synced = b.json(&["pin", "sync", &root]);
    assert_eq!(
        (&synced["done"], &synced["status"]),
        (&json!("recorded"), &json!("pinned"))
    );
    assert_eq!(b.json(&["pin", "sync", &root])["done"], "nothing");
    b.fails(&["pin", "sync", &absent], 3);
}

/// What a node is, as its users see it.
#[derive(Debug, PartialEq)]
struct Seen {
    pins: String,
    words: Vec<(String, bool)>,
    follows: Vec<Value>,
    complete: Value,
    own: Value,
    events: String,
    consumers: Vec<Value>,
    blocks: Value,
    settings: Value,
    id: Value,
}

fn seen(node: &Node, followed: &str, own: &str) -> Seen {
    let pins = node.lines(&["pin", "ls"]);
    let whole = |pin: &Value| {
        let cid = pin["cid"].as_str().unwrap().to_owned();
        (cid, pin["status"] == "pinned")
    };
    let follow = |follow: &Value| {
        json!([
            follow["name"],
            follow["status"],
            follow["complete_value"],
            follow["complete_sequence"]
        ])
    };
    let consumer = |of: &Value| json!([of["name"], of["lag"]]);
    let record = |told: Value| json!([told["value"], told["sequence"], told["complete"]]);
    Seen {
        pins: node.ok(&["pin", "export"]),
        words: pins.iter().map(whole).collect(),
        follows: node
            .lines(&["name", "follow", "ls"])
            .iter()
            .map(follow)
            .collect(),
        complete: record(node.json(&["name", "resolve", "--complete", followed])),
        own: record(node.json(&["name", "resolve", own])),
        events: node.ok(&["log", "read", "line-1/count"]),
        consumers: node
            .lines(&["log", "consumers"])
            .iter()
            .map(consumer)
            .collect(),
        blocks: node.json(&["repo", "stat"])["blocks"].clone(),
        settings: node.json(&["config", "show"]),
        id: node.json(&["id"])["id"].clone(),
    }
}

/// Ended in order, killed, killed again at once: what the node has, wants, follows, said and consumed is as before.
#[test]
fn s2_36_a_restart_makes_nothing_worse() {
    let mut swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let (root, _) = folder(a, 1);
    let published = a.json(&["name", "publish", &root]);
    let followed = published["name"].as_str().unwrap().to_owned();
    b.ok(&["name", "follow", "add", &followed, "--wait"]);
    let (other, _) = folder(a, 7);
    b.ok(&["pin", "add", &other, "--name", "mine"]);
    let direct = b.put("raw", b"direct");
    b.ok(&["pin", "add", &direct, "--direct"]);
    b.put("raw", b"a cache");
    let absent = Node::new().put("raw", b"nobody has it");
    want(b, &absent);
    b.ok(&["key", "new", "state"]);
    let own = b.json(&["name", "publish", "--key", "state", &root]);
    let own = own["name"].as_str().unwrap().to_owned();
    b.run_with_input(&["log", "append", "line-1/count"], b"1\n2\n3\n")
        .ok();
    let consume = ["--consumer", "total", "--exec", "true", "--drain"];
    b.ok(&[&["log", "consume", "line-1/count"], &consume[..]].concat());
    b.run_with_input(&["log", "append", "line-1/count"], b"4\n")
        .ok();
    let before = seen(b, &followed, &own);
    assert_eq!(before.words.iter().filter(|(_, whole)| *whole).count(), 3);

    for end in [Signal::TERM, Signal::KILL, Signal::KILL, Signal::TERM] {
        let mut daemon = swarm.nodes[1].1.take().unwrap();
        signal(daemon.child.id(), end);
        daemon.child.wait().unwrap();
        let known = address(swarm.node(0));
        let daemon = Daemon::start(swarm.node(1), &["--bootstrap", &known]);
        swarm.nodes[1].1 = Some(daemon);
        // From the first moment on, and after it has met the others.
        assert_eq!(seen(swarm.node(1), &followed, &own), before, "{end:?}");
    }
    until("it is connected", || status(swarm.node(1))["peers"] == 1);
    assert_eq!(seen(swarm.node(1), &followed, &own), before);
    swarm.node(1).ok(&["repo", "verify"]);
}
