//! Names between daemons of one private swarm on loopback, and without any daemon, driven as their users drive them.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use common::{Daemon, Node, Swarm, noise, until};
use serde_json::Value;

/// Content that nobody has: a name may point to it all the same.
const FIRST: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
const SECOND: &str = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

fn path(cid: &str) -> String {
    format!("/ipfs/{cid}")
}

/// A `name watch` that runs, and the lines that it printed so far.
struct Watcher {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Watcher {
    fn start(node: &Node, args: &[&str]) -> Self {
        let mut child = node
            .command(&[&["name", "watch", "--json"], args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, kept) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        // Ends with the command.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap();
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, lines }
    }

    fn until(&self, count: usize) -> Vec<Value> {
        until("all lines", || self.lines.lock().unwrap().len() >= count);
        self.lines.lock().unwrap().clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn publish(node: &Node, args: &[&str]) -> Value {
    node.json(&[&["name", "publish"], args].concat())
}

fn resolve(node: &Node, name: &str) -> Value {
    node.json(&["name", "resolve", name])
}

/// What a device publishes and has pinned is whole there, with a daemon and without; what it has not is not.
#[test]
fn s0_26_what_is_published_and_pinned_here_is_complete_here() {
    let mut swarm = Swarm::of(1);
    let complete = |node: &Node, name: &str| node.json(&["name", "resolve", "--complete", name]);
    let (first, second) = {
        let node = swarm.node(0);
        let add = |text: &str| node.add(&node.write("f", text), &[]);
        (add("one"), add("two"))
    };
    let name = swarm.node(0).ok(&["key", "new", "app"]).trim().to_owned();
    publish(swarm.node(0), &["--key", "app", FIRST]);
    swarm
        .node(0)
        .fails(&["name", "resolve", "--complete", &name], 3);
    publish(swarm.node(0), &["--key", "app", &first]);
    until("it is complete", || {
        let resolved = resolve(swarm.node(0), &name);
        resolved["complete"] == true
    });
    assert_eq!(complete(swarm.node(0), &name)["value"], path(&first));
    // Without a daemon.
    swarm.nodes[0].1 = None;
    publish(swarm.node(0), &["--key", "app", &second]);
    assert_eq!(complete(swarm.node(0), &name)["value"], path(&second));
    publish(swarm.node(0), &["--key", "app", SECOND]);
    assert_eq!(complete(swarm.node(0), &name)["value"], path(&second));
    assert_eq!(resolve(swarm.node(0), &name)["value"], path(SECOND));
}

/// The same where the content comes after the name: while its pin is open nothing is complete; it is when the pin is whole, or when a daemon finds that it is.
#[test]
fn s0_26_what_is_published_before_it_is_whole_here_is_complete_when_it_is() {
    let mut swarm = Swarm::of(1);
    let name = swarm.node(0).ok(&["key", "new", "app"]).trim().to_owned();
    let later = |node: &Node, text: &str| {
        let file = node.write("later", text);
        (node.add(&file, &["--only-hash"]), file)
    };
    let is_complete = |node: &Node, cid: &str| {
        let resolved = resolve(node, &name);
        resolved["value"] == path(cid) && resolved["complete"] == true
    };
    {
        let node = swarm.node(0);
        let (first, file) = later(node, "one");
        let mut pinning = node.command(&["pin", "add", &first]).spawn().unwrap();
        until("its pin is open", || {
            node.lines(&["pin", "ops"])
                .iter()
                .any(|op| op["cid"] == first.as_str())
        });
        publish(node, &["--key", "app", &first]);
        assert!(!is_complete(node, &first));
        node.add(&file, &[]);
        until("it is complete", || is_complete(node, &first));
        assert!(pinning.wait().unwrap().success());
        // Nobody wanted it before it was stored.
        let (second, file) = later(node, "two");
        publish(node, &["--key", "app", &second]);
        node.add(&file, &[]);
        until("it is complete", || is_complete(node, &second));
    }
    // Without a daemon.
    let (third, file) = later(swarm.node(0), "three");
    publish(swarm.node(0), &["--key", "app", &third]);
    assert!(!is_complete(swarm.node(0), &third));
    swarm.nodes[0].1 = None;
    swarm.node(0).add(&file, &[]);
    let daemon = Daemon::start(swarm.node(0), &[]);
    swarm.nodes[0].1 = Some(daemon);
    until("it is complete", || is_complete(swarm.node(0), &third));
}

/// S0.20, S0.22, S0.23: a name that is published on one node is resolved, inspected and watched on the others; nobody polls.
#[test]
fn s0_22_s0_23_a_published_name_is_told_resolved_and_inspected_elsewhere() {
    let swarm = Swarm::of(3);
    let (a, b, c) = (swarm.node(0), swarm.node(1), swarm.node(2));
    let name = a.ok(&["key", "new", "app-stable"]).trim().to_owned();
    let published = publish(a, &["--key", "app-stable", FIRST]);
    assert_eq!(
        (
            &published["name"],
            &published["value"],
            &published["sequence"]
        ),
        (&name.clone().into(), &path(FIRST).into(), &0.into())
    );
    let resolved = resolve(b, &name);
    for (field, value) in [
        ("name", Value::from(name.clone())),
        ("value", path(FIRST).into()),
        ("sequence", 0.into()),
        ("complete", false.into()),
        ("stale", false.into()),
    ] {
        assert_eq!(resolved[field], value, "{resolved}");
    }

    let watcher = Watcher::start(c, &[&name]);
    assert_eq!(watcher.until(1)[0]["sequence"], 0);
    publish(a, &["--key", &name, SECOND]);
    let told = watcher.until(2)[1].clone();
    assert_eq!(
        (&told["event"], &told["value"], &told["sequence"]),
        (&"changed".into(), &path(SECOND).into(), &1.into())
    );

    let (here, there) = (
        a.json(&["name", "inspect", "app-stable"]),
        c.json(&["name", "inspect", &name]),
    );
    assert_eq!(
        (&here["source"], &there["source"]),
        (&"own".into(), &"peer".into())
    );
    for field in [
        "name",
        "value",
        "sequence",
        "validity",
        "ttl_ns",
        "key",
        "signature",
        "signature_type",
        "pb_size",
    ] {
        assert_eq!(here[field], there[field], "{field}");
    }
    assert_eq!(there["signature"], "valid");
    assert!(there["age_s"].as_u64().unwrap() < 60);
    // The record itself is the same, byte for byte.
    let record = |node: &Node| node.run(&["name", "get", &name]).stdout;
    assert_eq!(record(a), record(c));
}

/// S0.27: published without a daemon and without a network; whoever connects later has it. A later look without a daemon shows it as well.
#[test]
fn s0_27_a_name_is_published_offline_and_arrives_later() {
    let mut swarm = Swarm::of(1);
    swarm.nodes[0].1 = None;
    let a = swarm.node(0);
    let first = publish(a, &[FIRST]);
    let name = first["name"].as_str().unwrap().to_owned();
    assert_eq!(first["sequence"], 0);
    assert_eq!(publish(a, &[SECOND])["sequence"], 1);
    assert_eq!(publish(a, &[SECOND, "--lifetime", "9000h"])["sequence"], 1);
    assert_eq!(resolve(a, &name)["value"], path(SECOND));
    assert_eq!(resolve(a, "self")["sequence"], 1);

    let daemon = Daemon::start(a, &[]);
    swarm.nodes[0].1 = Some(daemon);
    swarm.join(true);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let told = resolve(b, &name);
    assert_eq!(
        (&told["sequence"], &told["value"]),
        (&1.into(), &path(SECOND).into())
    );
    // The numbers go on through the daemon, and after it.
    assert_eq!(publish(a, &[FIRST])["sequence"], 2);
    let b_watches = Watcher::start(b, &[&name, "--after", "0"]);
    until("the newest", || {
        b_watches
            .lines
            .lock()
            .unwrap()
            .iter()
            .any(|line| line["sequence"] == 2)
    });
    swarm.nodes[1].1 = None;
    assert_eq!(resolve(swarm.node(1), &name)["sequence"], 2);
}

/// S0.21, threat N1: an old record, however it comes, changes nothing that a reader is shown; one that was altered is refused.
#[test]
fn s0_21_n1_an_old_or_altered_record_never_comes_back() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let name = publish(a, &[FIRST])["name"].as_str().unwrap().to_owned();
    let old = a.run(&["name", "get", &name]).stdout;
    publish(a, &[SECOND]);
    assert_eq!(resolve(b, &name)["sequence"], 1);
    let file = b.write("old.record", &old);
    let fail = b.fails(&["name", "put", &name, file.to_str().unwrap()], 7);
    assert!(
        fail.cause.contains("an older one never replaces it"),
        "{}",
        fail.cause
    );
    let new = a.run(&["name", "get", &name]).stdout;
    let mut altered = new.clone();
    let last = altered.len() - 10;
    altered[last] ^= 1;
    let file = b.write("altered.record", &altered);
    b.fails(&["name", "put", &name, file.to_str().unwrap()], 8);
    assert_eq!(resolve(b, &name)["sequence"], 1);
    // A record that is carried by hand is as good as one that came by itself.
    let c = Node::new();
    let file = c.write("new.record", &new);
    let file = file.to_str().unwrap();
    assert_eq!(c.json(&["name", "put", &name, file])["sequence"], 1);
    let seen = c.json(&["name", "inspect", &name, "--record", file]);
    assert_eq!(
        (&seen["sequence"], &seen["signature"]),
        (&1.into(), &"valid".into())
    );
}

/// Threat N8: a book that came back from a backup publishes nothing until somebody was heard, or the fork is accepted.
#[test]
fn n8_after_a_restored_backup_nothing_is_published_before_a_peer_was_heard() {
    let node = Node::new();
    publish(&node, &[FIRST]);
    let meta = node.repo.join("meta/meta.redb");
    let backup = std::fs::read(&meta).unwrap();
    publish(&node, &[SECOND]);
    std::fs::write(&meta, backup).unwrap();
    let fail = node.fails(&["name", "publish", FIRST], 7);
    assert!(
        fail.cause.contains("restored from a backup"),
        "{}",
        fail.cause
    );
    let forked = publish(&node, &["--accept-fork", FIRST]);
    assert!(forked["sequence"].as_u64().unwrap() > 1 << 16);
}

/// S0.29 in part: content is read by its name, here and elsewhere, and pinned by it.
#[test]
fn content_is_read_and_pinned_by_its_name() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let folder = a.path("app");
    a.write("app/readme.txt", "version 1");
    a.write("app/lib/code.bin", noise(1, 100_000));
    let root = a.add(&folder, &[]);
    let name = publish(a, &[&root])["name"].as_str().unwrap().to_owned();
    assert_eq!(
        b.ok(&["cat", &format!("/ipns/{name}/readme.txt")]),
        "version 1"
    );
    assert!(b.ok(&["ls", &name]).contains("readme.txt"));
    b.ok(&["get", &name, "-o", "copy"]);
    assert_eq!(
        std::fs::read(b.path("copy/lib/code.bin")).unwrap(),
        noise(1, 100_000)
    );
    assert_eq!(b.json(&["pin", "add", &name])["cid"], root);
    assert_eq!(b.json(&["why", &name])["cid"], root);
}

/// Server-sent events with a cursor: whoever was away is told what he missed, once.
#[test]
fn s0_23_events_are_resumed_behind_the_last_one_that_was_seen() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let name = publish(&node, &[FIRST])["name"]
        .as_str()
        .unwrap()
        .to_owned();
    publish(&node, &[SECOND]);
    let api: Value =
        serde_json::from_slice(&std::fs::read(node.repo.join("api")).unwrap()).unwrap();
    let address = api["address"].as_str().unwrap();
    let events = |last: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let token = api["token"].as_str().unwrap();
        write!(
            stream,
            "GET /v1/names/watch?name={name} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nAccept: text/event-stream\r\n{last}\r\n"
        )
        .unwrap();
        BufReader::new(stream)
    };
    let next = |stream: &mut BufReader<TcpStream>, wanted: &str| loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended");
        if let Some(rest) = line.strip_prefix(wanted) {
            return rest.trim().to_owned();
        }
    };
    let mut stream = events("Last-Event-ID: 0\r\n");
    let id = next(&mut stream, "id: ");
    assert_eq!(next(&mut stream, "event: "), "changed");
    let data: Value = serde_json::from_str(&next(&mut stream, "data: ")).unwrap();
    assert_eq!(
        (&data["sequence"], &data["name"]),
        (&1.into(), &name.clone().into())
    );
    publish(&node, &[FIRST]);
    let later = next(&mut stream, "id: ");
    assert!(later.parse::<u64>().unwrap() > id.parse().unwrap());
    drop(stream);
    let mut stream = events(&format!("Last-Event-ID: {id}\r\n"));
    assert_eq!(next(&mut stream, "id: "), later);
}

/// Keys: made, carried over, removed; with a daemon and without. Nobody publishes under a name whose key is gone.
#[test]
fn keys_are_made_carried_over_and_removed() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let name = a.ok(&["key", "new", "release"]).trim().to_owned();
    assert!(
        a.fails(&["key", "new", "release"], 7)
            .cause
            .contains("already")
    );
    let keys = a.lines(&["key", "ls"]);
    let labels: Vec<&str> = keys
        .iter()
        .map(|key| key["key"].as_str().unwrap())
        .collect();
    assert_eq!(labels, ["self", "release"]);
    assert_eq!(keys[0]["id"], common::id(a).as_str());
    let file = a.path("release.key");
    let file = file.to_str().unwrap();
    a.ok(&["key", "export", "release", "-o", file]);
    assert_eq!(
        b.json(&["key", "import", "app", file])["name"],
        name.as_str()
    );
    publish(b, &["--key", "app", FIRST]);
    assert_eq!(resolve(a, &name)["value"], path(FIRST));
    b.ok(&["key", "rm", "app"]);
    let fail = b.fails(&["name", "publish", "--key", "app", SECOND], 3);
    assert!(fail.cause.contains("no key"), "{}", fail.cause);
    b.fails(&["name", "publish", "--key", &name, SECOND], 3);
    b.fails(&["key", "rm", "self"], 2);
    let offline = Node::new();
    let name = offline.ok(&["key", "new", "x"]);
    assert_eq!(offline.json(&["key", "rm", "x"])["name"], name.trim());
}

/// The line of a followed name.
fn follow_of(node: &Node, name: &str) -> Value {
    let all = node.lines(&["name", "follow", "ls"]);
    let found = all.into_iter().find(|follow| follow["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not followed"))
}

fn until_complete(node: &Node, name: &str, sequence: u64) {
    until("it is whole", || {
        follow_of(node, name)["complete_sequence"] == sequence
    });
}

fn pins(node: &Node) -> Vec<(String, Value)> {
    let pins = node.lines(&["pin", "ls"]);
    let told = |pin: Value| (pin["cid"].as_str().unwrap().to_owned(), pin["name"].clone());
    pins.into_iter().map(told).collect()
}

fn is_pinned(node: &Node, cid: &str) -> bool {
    pins(node).iter().any(|(pin, _)| pin == cid)
}

/// A folder of which one file differs from version to version; its root.
fn version_of(node: &Node, number: u64) -> String {
    for file in 0..20 {
        node.write(&format!("app/{file}"), noise(file, 20_000));
    }
    node.write("app/version", format!("version {number}"));
    node.add(&node.path("app"), &[])
}

/// S0.24, S0.26, S0.29: a device follows a name: whole or not at all, only the difference is fetched, what is old is released, and one can go back.
#[test]
fn s0_24_s0_26_s0_29_a_followed_name_is_whole_or_not_at_all_and_can_go_back() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let mut roots = vec![version_of(a, 0)];
    let name = publish(a, &[&roots[0]])["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let fail = b.fails(&["name", "resolve", "--complete", &name], 3);
    assert!(fail.cause.contains("whole"), "{}", fail.cause);
    let added = b.json(&["name", "follow", "add", &name, "--wait"]);
    assert_eq!(
        (&added["status"], &added["complete_sequence"]),
        (&"complete".into(), &0.into())
    );
    let complete = |node: &Node| node.json(&["name", "resolve", "--complete", &name]);
    assert_eq!(complete(b)["value"], path(&roots[0]));

    let watcher = Watcher::start(b, &[&name]);
    let before = common::status(b)["transfer"]["bytes_in"].as_u64().unwrap();
    roots.push(version_of(a, 1));
    publish(a, &[&roots[1]]);
    let told = watcher.until(2);
    let events: Vec<(&Value, &Value)> = told
        .iter()
        .map(|line| (&line["event"], &line["sequence"]))
        .collect();
    assert_eq!(
        events,
        [
            (&"changed".into(), &1.into()),
            (&"complete".into(), &1.into())
        ]
    );
    assert_eq!(complete(b)["value"], path(&roots[1]));
    let fetched = common::status(b)["transfer"]["bytes_in"].as_u64().unwrap() - before;
    assert!(fetched < 8_192, "{fetched} bytes for a file of 9");

    // Two versions are kept; the third lets the first go.
    assert!(is_pinned(b, &roots[0]));
    roots.push(version_of(a, 2));
    publish(a, &[&roots[2]]);
    until_complete(b, &name, 2);
    // How it was come by is told afterwards, too: the file and the folder above it.
    let told = follow_of(b, &name);
    assert_eq!(
        (&told["blocks_fetched"], &told["blocks_done"]),
        (&2.into(), &22.into()),
        "{told}"
    );
    until("the oldest is released", || !is_pinned(b, &roots[0]));
    assert!(is_pinned(b, &roots[1]) && is_pinned(b, &roots[2]));
    let fail = b.fails(&["pin", "rm", &roots[2]], 7);
    assert!(fail.cause.contains("is followed"), "{}", fail.cause);

    let back = b.json(&["name", "follow", "rollback", &name]);
    assert_eq!(
        (&back["status"], &back["complete_sequence"]),
        (&"held".into(), &1.into())
    );
    assert_eq!(complete(b)["value"], path(&roots[1]));
    assert_eq!(resolve(b, &name)["sequence"], 2);
    // Something newer still goes on.
    roots.push(version_of(a, 3));
    publish(a, &[&roots[3]]);
    until_complete(b, &name, 3);
    b.ok(&["name", "follow", "rm", &name]);
    until("all is released", || pins(b).is_empty());
    b.fails(&["name", "follow", "rm", &name], 3);
}

/// A root that somebody pinned himself is his, before and after a follow wanted it, too.
#[test]
fn s0_24_a_follow_never_releases_what_somebody_pinned_himself() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let (first, second) = (version_of(a, 0), version_of(a, 1));
    let name = publish(a, &[&first])["name"].as_str().unwrap().to_owned();
    b.ok(&["pin", "add", &first, "--name", "mine"]);
    b.ok(&["name", "follow", "add", &name, "--keep", "1", "--wait"]);
    assert_eq!(pins(b), [(first.clone(), "mine".into())]);
    publish(a, &[&second]);
    until_complete(b, &name, 1);
    b.ok(&["pin", "add", &second]);
    b.ok(&["name", "follow", "rm", &name]);
    let left: std::collections::BTreeMap<_, _> = pins(b).into_iter().collect();
    assert_eq!(left[&first], "mine");
    assert_eq!(left[&second], Value::Null);
    // Given up by him while a follow needs it, it stays until the follow lets it go.
    b.ok(&["name", "follow", "add", &name, "--wait"]);
    b.ok(&["pin", "rm", &second]);
    assert!(is_pinned(b, &second));
    b.ok(&["name", "follow", "rm", &name]);
    until("it is released", || !is_pinned(b, &second));
}

/// S0.29: the publisher is gone, and those who follow its name tell it and serve it to whoever comes.
#[test]
fn s0_29_a_name_lives_on_among_its_followers_when_the_publisher_is_gone() {
    let mut swarm = Swarm::of(2);
    let root = version_of(swarm.node(0), 0);
    let name = publish(swarm.node(0), &[&root])["name"]
        .as_str()
        .unwrap()
        .to_owned();
    swarm
        .node(1)
        .ok(&["name", "follow", "add", &name, "--wait"]);
    let known = common::address(swarm.node(1));
    swarm.nodes[0].1 = None;
    let late = Node::bare();
    let key = swarm.node(0).repo.join("swarm.key");
    late.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    let _daemon = Daemon::start(&late, &["--bootstrap", &known]);
    let told = late.json(&["name", "follow", "add", &name, "--wait"]);
    assert_eq!(told["complete_value"], path(&root));
}

/// What was followed without a daemon is fetched by the next one; going back works without one, too.
#[test]
fn follows_are_added_rolled_back_and_ended_without_a_daemon() {
    let mut swarm = Swarm::of(2);
    let roots = [version_of(swarm.node(0), 0), version_of(swarm.node(0), 1)];
    let name = publish(swarm.node(0), &[&roots[0]])["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let known = common::address(swarm.node(0));
    swarm.nodes[1].1 = None;
    assert_eq!(
        swarm.node(1).json(&["name", "follow", "add", &name])["status"],
        "unknown"
    );
    let start = |swarm: &Swarm| Daemon::start(swarm.node(1), &["--bootstrap", &known]);
    let daemon = start(&swarm);
    swarm.nodes[1].1 = Some(daemon);
    until_complete(swarm.node(1), &name, 0);
    publish(swarm.node(0), &[&roots[1]]);
    until_complete(swarm.node(1), &name, 1);
    swarm.nodes[1].1 = None;
    let b = swarm.node(1);
    let back = b.json(&["name", "follow", "rollback", &name, "--to", "0"]);
    assert_eq!(
        (&back["status"], &back["complete_sequence"]),
        (&"held".into(), &0.into())
    );
    let daemon = start(&swarm);
    swarm.nodes[1].1 = Some(daemon);
    assert_eq!(follow_of(swarm.node(1), &name)["complete_sequence"], 0);
    swarm.nodes[1].1 = None;
    swarm.node(1).ok(&["name", "follow", "rm", &name]);
    let daemon = start(&swarm);
    swarm.nodes[1].1 = Some(daemon);
    until("all is released", || pins(swarm.node(1)).is_empty());
}

/// S0.26, N11: without a daemon, too, nothing takes away what a follow keeps: neither `pin rm` nor `pin update`. What somebody pinned himself he may give up, and
/// it goes back to the follow.
#[test]
fn s0_26_n11_what_is_followed_is_kept_without_a_daemon() {
    let node = Node::new();
    let roots = [version_of(&node, 0), version_of(&node, 1)];
    let name = publish(&node, &[&roots[0]])["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let daemon = Daemon::start(&node, &[]);
    node.json(&["name", "follow", "add", &name, "--wait"]);
    drop(daemon);
    let label = |node: &Node| {
        let pin = pins(node).into_iter().find(|(pin, _)| *pin == roots[0]);
        pin.map(|(_, label)| label).unwrap_or_default()
    };
    // `add` pinned it: that pin goes, the follow's stays.
    assert_eq!(label(&node), Value::Null);
    node.ok(&["pin", "rm", &roots[0]]);
    assert_eq!(label(&node), format!("follow:{name}"));
    for refused in [
        &["pin", "rm", &roots[0]][..],
        &["pin", "update", &roots[0], &roots[1]],
    ] {
        let fail = node.fails(refused, 7);
        assert!(fail.cause.contains("is followed"), "{}", fail.cause);
    }
    node.ok(&["gc"]);
    let whole = node.json(&["name", "resolve", "--complete", &name]);
    assert_eq!(whole["value"], path(&roots[0]));
    node.ok(&["get", &roots[0], "-o", node.path("out").to_str().unwrap()]);
    // Followed no longer, it is as any other pin.
    node.ok(&["name", "follow", "rm", &name]);
    node.ok(&["pin", "rm", &roots[0]]);
}

/// A cursor that this book never gave, as one from before a backup was put back, hides nothing: everything is told anew.
#[test]
fn s0_23_a_cursor_of_another_book_hides_no_change() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let root = version_of(&node, 0);
    publish(&node, &[&root]);
    for after in ["0", "99999"] {
        let told = node.lines(&["name", "watch", "--after", after, "--count", "2"]);
        assert_eq!(
            (&told[0]["event"], &told[1]["event"]),
            (&"changed".into(), &"complete".into())
        );
    }
    let fail = node.fails(&["name", "watch", "--timeout", "300ms"], 4);
    assert!(
        fail.cause.contains("waiting for a change"),
        "{}",
        fail.cause
    );
}

/// Whoever waits is told why it does not end; the versions that a rollback can go to are listed.
#[test]
fn a_follow_says_what_it_waits_for_and_where_it_can_go_back() {
    let node = Node::new();
    let key = node.json(&["key", "new", "app"]);
    let name = key["name"].as_str().unwrap();
    let wait = [
        "name",
        "follow",
        "add",
        name,
        "--wait",
        "--timeout",
        "300ms",
    ];
    let fail = node.fails(&wait, 5);
    assert!(
        fail.cause.contains("is followed from now on"),
        "{}",
        fail.cause
    );
    let daemon = Daemon::start(&node, &[]);
    let fail = node.fails(&wait, 4);
    assert!(fail.cause.contains("has told a record"), "{}", fail.cause);
    for sequence in 0..2 {
        let root = version_of(&node, sequence);
        publish(&node, &[&root, "--key", "app", "--lifetime", "30d"]);
        until_complete(&node, name, sequence);
    }
    let listed = node.ok(&["name", "follow", "ls"]);
    assert!(listed.contains("also here: version 0 (/ipfs/"), "{listed}");
    assert!(!listed.contains("also here: version 1"), "{listed}");
    drop(daemon);
}

/// S0.10: the cloud publishes while it is cut off; when it is back every device gets the new version, and nobody lifts a hand there.
#[test]
fn s0_10_what_is_published_while_cut_off_arrives_when_the_line_is_back() {
    let mut swarm = Swarm::of(3);
    let first = version_of(swarm.node(0), 0);
    let name = publish(swarm.node(0), &[&first])["name"]
        .as_str()
        .unwrap()
        .to_owned();
    for device in [1, 2] {
        swarm
            .node(device)
            .ok(&["name", "follow", "add", &name, "--wait"]);
    }
    swarm.nodes[0].1 = None;
    let second = version_of(swarm.node(0), 1);
    assert_eq!(publish(swarm.node(0), &[&second])["sequence"], 1);
    // Without mDNS it comes back at another address, so it has to know where the others are.
    let known = [1, 2].map(|device| common::address(swarm.node(device)));
    let daemon = Daemon::start(
        swarm.node(0),
        &["--bootstrap", &known[0], "--bootstrap", &known[1]],
    );
    swarm.nodes[0].1 = Some(daemon);
    for device in [1, 2] {
        until_complete(swarm.node(device), &name, 1);
    }
}

/// The DHT alone: a publisher, a server that knows nothing of the name, and a tablet that only asks. No pubsub and no push on any of them.
#[test]
fn s0_22_s0_54_a_name_goes_by_the_dht_alone_also_to_a_client() {
    let mut swarm = Swarm::of(0);
    for (at, mode) in ["server", "server", "client"].into_iter().enumerate() {
        swarm.join_with(at > 0, &|node| {
            for (setting, value) in [
                ("pubsub.enabled", "false"),
                ("names.push", "false"),
                ("network.dht", mode),
            ] {
                node.ok(&["config", "set", setting, value]);
            }
        });
    }
    let (publisher, server, tablet) = (swarm.node(0), swarm.node(1), swarm.node(2));
    for node in [publisher, server, tablet] {
        until("a server is known", || {
            common::status(node)["dht"]["servers"].as_u64() >= Some(1)
        });
    }
    let name = publisher.ok(&["key", "new", "app"]).trim().to_owned();
    publish(publisher, &["--key", "app", FIRST]);
    until("the other server keeps it", || {
        common::status(server)["dht"]["records"] == 1
    });
    let resolved = resolve(tablet, &name);
    assert_eq!(resolved["value"], path(FIRST));
    assert_eq!(tablet.json(&["name", "inspect", &name])["source"], "dht");
    // Whoever follows finds it in what he keeps himself, and is told of the next version by the put.
    let watcher = Watcher::start(server, &[&name]);
    assert_eq!(watcher.until(1)[0]["value"], path(FIRST));
    publish(publisher, &["--key", "app", SECOND]);
    assert_eq!(watcher.until(2)[1]["value"], path(SECOND));
    let modes = [publisher, server, tablet].map(|node| common::status(node)["dht"]["mode"].clone());
    assert_eq!(modes, ["server", "server", "client"]);
    // The tablet is in nobody's table.
    assert_eq!(common::status(server)["dht"]["servers"], 1);
}
