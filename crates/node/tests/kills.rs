//! A daemon that is killed again and again while it pins: what it had acknowledged is there without it, and what it had taken on goes on.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{Daemon, Node, Swarm, address, noise, until};
use gemba_testkit::{Rng, rng, sim_scale};
use serde_json::Value;

/// Small files of one tree, beside a large one.
const FILES: u64 = 30;

/// Bytes of a block that is put.
const BLOCK: usize = 2_000;

/// What a daemon acknowledged before it died.
#[derive(Default)]
struct Told {
    /// Roots that it took on.
    wanted: BTreeSet<String>,
    /// Those that it called whole.
    pinned: BTreeSet<String>,
    /// Blocks that nobody else has.
    blocks: BTreeSet<String>,
}

/// Sends a request, and gives the objects of its answer as they come, until the daemon ends it or dies.
fn ask(node: &Node, head: &str, body: &[u8], mut each: impl FnMut(Value)) {
    let Ok(api) = std::fs::read(node.repo.join("api")) else {
        return;
    };
    let api: Value = serde_json::from_slice(&api).unwrap();
    let (address, token) = (api["address"].as_str().unwrap(), &api["token"]);
    let Ok(mut stream) = TcpStream::connect(address) else {
        return;
    };
    let head = format!(
        "{head} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        token.as_str().unwrap(),
        body.len()
    );
    let _dead = stream.write_all(&[head.as_bytes(), body].concat());
    // A line that the death cut off is none.
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines
        .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
        .filter(Value::is_object)
        .for_each(&mut each);
}

/// Each tree with its root, all on one node.
fn trees(node: &Node, seed: u64, count: usize) -> Vec<String> {
    for tree in 0..count {
        for file in 0..FILES {
            let content = noise(seed ^ (tree as u64 * FILES + file), 3_000);
            node.write(&format!("all/{tree}/{file}"), content);
        }
        let large = noise(seed ^ !(tree as u64), 400_000);
        node.write(&format!("all/{tree}/large"), large);
    }
    let added = node.lines(&["add", node.path("all").to_str().unwrap()]);
    let root = |tree| {
        let name = format!("all/{tree}");
        let entry = added.iter().find(|entry| entry["name"] == name.as_str());
        entry.unwrap()["cid"].as_str().unwrap().to_owned()
    };
    (0..count).map(root).collect()
}

/// How long the next round may take, after one that was killed in the middle. Until one came to its end nobody knows what that takes here.
fn longer(patience: Duration, after_the_end: usize) -> Duration {
    if after_the_end == 0 {
        patience * 2
    } else {
        patience * 6 / 5
    }
}

/// Everything below a root is read.
fn is_whole(node: &Node, root: &str, context: &str) {
    let export = node.run(&["dag", "export", root]);
    assert!(export.status.success(), "{context}: {}", export.stderr);
}

/// S0.5, with real processes: `kill -9` at a random moment of a pin and of puts beside it, 200 times in full, on one repository. Without the
/// daemon every tree that was called pinned is whole and every block that was acknowledged is there; every root that was taken on is
/// known, and gets whole with no further command.
#[test]
fn s0_5_a_daemon_killed_in_the_middle_of_a_pin_loses_nothing_that_it_acknowledged() {
    let rounds = sim_scale(200);
    let seed = rng::seeds(1)[0];
    let mut rng = Rng::new(seed);
    let swarm = Swarm::of(1);
    let origin = swarm.node(0);
    let roots = trees(origin, seed, rounds);
    let known = address(origin);
    let node = Node::bare();
    let key = origin.repo.join("swarm.key");
    node.ok(&["init", "--swarm-key", key.to_str().unwrap()]);

    let told = Mutex::new(Told::default());
    let (mut in_the_middle, mut after_the_end) = (0, 0);
    // What a pin takes, more or less: half of the kills should come before its end.
    let mut patience = Duration::from_millis(100);
    for (round, root) in roots.iter().enumerate() {
        let mut daemon = Daemon::start(&node, &["--bootstrap", &known]);
        std::thread::scope(|scope| {
            let (node, told) = (&node, &told);
            scope.spawn(move || {
                let body = format!("{{\"cid\":\"{root}\"}}");
                ask(node, "POST /v1/pins", body.as_bytes(), |line| {
                    let mut told = told.lock().unwrap();
                    told.wanted.insert(root.clone());
                    if line["status"] == "pinned" {
                        told.pinned.insert(root.clone());
                    }
                });
            });
            let salt = rng.next_u64();
            scope.spawn(move || {
                for n in 0..1000 {
                    let mut alive = false;
                    let block = noise(salt.wrapping_add(n), BLOCK);
                    ask(node, "PUT /v1/block?pin=true", &block, |done| {
                        alive = true;
                        let cid = done["cid"].as_str().unwrap().to_owned();
                        told.lock().unwrap().blocks.insert(cid);
                    });
                    if !alive {
                        return;
                    }
                }
            });
            let begun = Instant::now();
            let wait = Duration::from_micros(rng.below(2 * patience.as_micros() as u64 + 1));
            while begun.elapsed() < wait && !told.lock().unwrap().pinned.contains(root) {
                std::thread::sleep(Duration::from_micros(300));
            }
            daemon.child.kill().unwrap();
        });
        drop(daemon);

        let told = told.lock().unwrap();
        if told.pinned.contains(root) {
            after_the_end += 1;
            patience = patience * 4 / 5;
        } else {
            in_the_middle += 1;
            patience = longer(patience, after_the_end);
        }
        let context = format!("seed {seed:#x}, round {round}");
        let pins = node.lines(&["pin", "ls"]);
        let status = |cid: &String| {
            let pin = pins.iter().find(|pin| pin["cid"] == cid.as_str());
            pin.unwrap_or_else(|| panic!("{context}: {cid} was taken on and is not known"))["status"]
                .clone()
        };
        told.wanted.iter().for_each(|cid| drop(status(cid)));
        for cid in told.pinned.iter().chain(&told.blocks) {
            assert_eq!(status(cid), "pinned", "{context}: {cid}");
        }
        if told.pinned.contains(root) {
            is_whole(&node, root, &context);
        }
    }
    assert!(
        in_the_middle >= rounds / 8 && after_the_end >= rounds / 8,
        "{in_the_middle} kills in the middle, {after_the_end} after the end"
    );

    // All of it, read and hashed, with nobody to help.
    let told = told.into_inner().unwrap();
    // On a loaded machine a round may be over before its first write is answered.
    assert!(told.blocks.len() >= rounds / 2, "{}", told.blocks.len());
    let verified = node.json(&["repo", "verify"]);
    assert_eq!(verified["corrupt"], serde_json::json!([]));
    for root in &told.pinned {
        is_whole(&node, root, "at the end");
    }
    for cid in told.blocks.iter().step_by(told.blocks.len() / 50 + 1) {
        assert_eq!(
            node.run(&["block", "get", cid]).stdout.len(),
            BLOCK,
            "{cid}"
        );
    }
    // And what was under way gets whole.
    let _daemon = Daemon::start(&node, &["--bootstrap", &known]);
    until("what was taken on is whole", || {
        let pins = node.lines(&["pin", "ls"]);
        pins.iter().all(|pin| pin["status"] == "pinned")
    });
}

/// S0.25, S0.26, threats N11, P10: a device that follows a name is killed at random moments, 200 times in full, while new versions are published. Without the
/// daemon, what it calls complete is a version that is whole here, never an older one than before, and never one less than it told; and whoever watches with a
/// cursor is told of each complete version once, over all of these deaths.
#[test]
fn s0_25_s0_26_n11_p10_a_follower_killed_at_any_moment_points_to_a_whole_version() {
    let rounds = sim_scale(200);
    let seed = rng::seeds(1)[0];
    let mut rng = Rng::new(seed);
    let swarm = Swarm::of(1);
    let origin = swarm.node(0);
    let known = address(origin);
    let node = Node::bare();
    let key = origin.repo.join("swarm.key");
    node.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    let name = origin.ok(&["key", "new", "app"]).trim().to_owned();
    node.ok(&["name", "follow", "add", &name]);

    // The revision that was seen last, and the complete versions that were told.
    let told = Mutex::new((0, Vec::<u64>::new()));
    let watch = |node: &Node| {
        let after = told.lock().unwrap().0;
        let head = format!("GET /v1/names/watch?name={name}&after={after}");
        ask(node, &head, b"", |line| {
            let mut told = told.lock().unwrap();
            told.0 = line["revision"].as_u64().unwrap();
            if line["event"] == "complete" {
                told.1.push(line["sequence"].as_u64().unwrap());
            }
        });
    };
    let (mut in_the_middle, mut after_the_end) = (0, 0);
    let mut patience = Duration::from_millis(150);
    let mut least = None;
    for round in 0..rounds as u64 {
        for file in 0..FILES {
            let salt = if file < FILES / 2 { round } else { 0 };
            let content = noise(seed ^ (salt * FILES + file), 3_000);
            origin.write(&format!("app/{file}"), content);
        }
        let root = origin.add(&origin.path("app"), &[]);
        origin.ok(&["name", "publish", "--key", "app", &root]);
        let mut daemon = Daemon::start(&node, &["--bootstrap", &known]);
        std::thread::scope(|scope| {
            scope.spawn(|| watch(&node));
            let begun = Instant::now();
            let wait = Duration::from_micros(rng.below(2 * patience.as_micros() as u64 + 1));
            while begun.elapsed() < wait && !told.lock().unwrap().1.contains(&round) {
                std::thread::sleep(Duration::from_micros(300));
            }
            daemon.child.kill().unwrap();
        });
        drop(daemon);

        let context = format!("seed {seed:#x}, round {round}");
        let last = told.lock().unwrap().1.last().copied();
        if last == Some(round) {
            after_the_end += 1;
            patience = patience * 4 / 5;
        } else {
            in_the_middle += 1;
            patience = longer(patience, after_the_end);
        }
        let resolved = node.run(&["name", "resolve", "--complete", &name, "--json"]);
        if !resolved.status.success() {
            assert_eq!(
                (last, least),
                (None, None),
                "{context}: {}",
                resolved.stderr
            );
            continue;
        }
        let resolved: Value = serde_json::from_str(&resolved.text()).unwrap();
        let sequence = resolved["sequence"].as_u64();
        assert!(sequence >= last.max(least), "{context}: {resolved}");
        least = sequence;
        let value = resolved["value"].as_str().unwrap();
        is_whole(&node, value.trim_start_matches("/ipfs/"), &context);
    }
    assert!(
        in_the_middle >= rounds / 8 && after_the_end >= rounds / 8,
        "{in_the_middle} kills in the middle, {after_the_end} after the end"
    );
    let mut daemon = Daemon::start(&node, &["--bootstrap", &known]);
    let newest = rounds as u64 - 1;
    until("the newest is whole", || {
        let follows = node.lines(&["name", "follow", "ls"]);
        follows[0]["complete_sequence"] == newest
    });
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&node));
        until("it was told", || {
            told.lock().unwrap().1.last() == Some(&newest)
        });
        daemon.child.kill().unwrap();
    });
    let told = told.into_inner().unwrap().1;
    assert!(told.is_sorted_by(|a, b| a < b), "seed {seed:#x}: {told:?}");
}
