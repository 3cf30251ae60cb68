//! Collection: what pins hold stays, whatever else goes on; the rest goes, and the disk gets its space back.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Daemon, Node, Swarm, damage, noise, signal, status, until, wait};
use rustix::process::Signal;
use serde_json::Value;

/// A tree of some hundred blocks beside the repository.
fn tree(node: &Node, name: &str, seed: u64) -> PathBuf {
    for file in 0..20 {
        let content = noise(seed * 100 + file, 10_000 + 300 * file as usize);
        node.write(&format!("{name}/{}/{file}", file % 3), content);
    }
    node.write(&format!("{name}/big"), noise(seed, 1_500_000));
    node.path(name)
}

fn blocks(node: &Node) -> u64 {
    node.json(&["repo", "stat"])["blocks"].as_u64().unwrap()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// Everything below the root is read: exit code 0 means that it is whole.
fn is_whole(node: &Node, root: &str) {
    let done = node.run(&["dag", "export", root]);
    assert!(done.status.success(), "{root}: {}", done.stderr);
}

/// S4.49, with and without a daemon: the dry run says what goes and removes nothing; then that goes, and what is pinned stays.
#[test]
fn s4_49_what_is_pinned_stays_and_the_rest_goes() {
    for with_daemon in [false, true] {
        let node = Node::new();
        let kept = node.add(&tree(&node, "kept", 1), &[]);
        let direct = node.put("raw", b"pinned alone");
        let before = blocks(&node);
        // Enough that the file which is written to is worth ending for it.
        node.write("gone/more", noise(3, 18_000_000));
        let gone = node.add(&tree(&node, "gone", 2), &["--pin=false"]);
        let unpinned = node.add(&node.write("unpinned", noise(9, 300_000)), &[]);
        let all = blocks(&node);
        let daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        node.ok(&["pin", "add", "--direct", &direct]);
        // Taking a pin away removes nothing by itself.
        node.ok(&["pin", "rm", &unpinned]);
        assert_eq!(blocks(&node), all);

        let dry = node.json(&["gc", "--dry-run"]);
        assert_eq!(
            (&dry["dry_run"], &dry["done"]),
            (&true.into(), &true.into())
        );
        assert_eq!(number(&dry, "blocks"), all - before, "{dry}");
        assert_eq!(number(&dry, "kept_blocks"), before, "{dry}");
        assert_eq!(
            (number(&dry, "freed_bytes"), number(&dry, "guarded_blocks")),
            (0, 0)
        );
        assert_eq!(blocks(&node), all);
        is_whole(&node, &gone);

        let done = node.json(&["gc"]);
        for name in ["blocks", "bytes", "kept_blocks", "kept_bytes", "pins"] {
            assert_eq!(done[name], dry[name], "{name}: {done}");
        }
        assert!(number(&done, "freed_bytes") > 15_000_000, "{done}");
        assert_eq!(blocks(&node), before);
        is_whole(&node, &kept);
        node.fails(
            &["block", "stat", &gone, "--timeout", "100ms"],
            if with_daemon { 4 } else { 3 },
        );
        // Nothing is left to do, and people are told so.
        assert!(node.ok(&["gc"]).starts_with("removed 0 blocks"));
        drop(daemon);
        // Packs that went were not lost: the next start has nothing to strike out.
        let pins = node.lines(&["pin", "ls"]);
        assert!(pins.iter().all(|pin| pin["status"] == "pinned"), "{pins:?}");
        node.ok(&["repo", "verify"]);
    }
}

/// S4.49: a block of a pin that cannot be read may hide others, so the collection ends and has removed nothing.
#[test]
fn s4_49_damage_below_a_pin_stops_the_collection() {
    let node = Node::new();
    let root = node.add(&tree(&node, "kept", 1), &[]);
    node.add(&tree(&node, "gone", 2), &["--pin=false"]);
    let all = blocks(&node);
    damage(&node, &root);
    for args in [&["gc", "--json"][..], &["gc", "--dry-run", "--json"]] {
        let failure = node.fails(args, 8);
        assert_eq!(failure.code, "integrity");
        assert!(
            failure.cause.contains(&root) && failure.cause.contains("nothing was collected"),
            "{failure:?}"
        );
        assert!(failure.hint.contains("repo verify"), "{failure:?}");
    }
    assert_eq!(blocks(&node), all);
    let _daemon = Daemon::start(&node, &[]);
    node.fails(&["gc"], 8);
    assert_eq!(blocks(&node), all);
}

/// S4.49: collections run one after the other while trees are added, imported, pinned from the swarm and unpinned again. Whatever is
/// pinned at the end is whole.
#[test]
fn s4_49_collections_beside_add_import_and_pin_take_nothing_that_is_pinned() {
    let mut swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let remote: Vec<String> = (0..4)
        .map(|n| a.add(&tree(a, &format!("r{n}"), 20 + n), &[]))
        .collect();
    let trees: Vec<PathBuf> = (0..4).map(|n| tree(b, &format!("t{n}"), 10 + n)).collect();
    let archive = b.path("remote.car");
    std::fs::write(&archive, a.run(&["dag", "export", &remote[3]]).stdout).unwrap();
    /// Also when a test fails: nobody collects for ever.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    let mut pinned = Vec::new();
    let runs = std::thread::scope(|scope| {
        let ended = Over(&over);
        let collecting = scope.spawn(|| {
            let mut runs = 0;
            while !over.load(Ordering::Relaxed) || runs < 2 {
                b.ok(&["gc"]);
                runs += 1;
            }
            runs
        });
        let fetching = scope.spawn(|| {
            for root in &remote[..3] {
                // The leaves come first, as a cache that nobody pins; they are what a collection may take in the middle.
                is_whole(b, root);
                b.ok(&["pin", "add", root, "--timeout", "30s"]);
            }
        });
        let adding = scope.spawn(|| {
            let mut pinned = Vec::new();
            for tree in &trees {
                let unpinned = b.add(tree, &["--pin=false"]);
                pinned.push(b.add(tree, &[]));
                assert_eq!(pinned.last(), Some(&unpinned));
            }
            b.ok(&["dag", "import", archive.to_str().unwrap()]);
            b.ok(&["pin", "rm", &pinned[0]]);
            pinned.remove(0);
            pinned
        });
        let (added, fetched) = (adding.join(), fetching.join());
        pinned.extend(added.unwrap());
        fetched.unwrap();
        drop(ended);
        collecting.join().unwrap()
    });
    assert!(runs >= 2);
    pinned.extend(remote);
    // Without the swarm: what is missing cannot come from elsewhere.
    swarm
        .nodes
        .iter_mut()
        .for_each(|(_, daemon)| drop(daemon.take()));
    let b = swarm.node(1);
    pinned.iter().for_each(|root| is_whole(b, root));
    b.ok(&["gc"]);
    pinned.iter().for_each(|root| is_whole(b, root));
}

/// The end of the daemon ends a collection at once, and one that a signal cut off leaves a repository that is as good as ever.
#[test]
fn a_collection_ends_with_the_daemon_and_with_a_signal() {
    let node = Node::new();
    let kept = node.add(&tree(&node, "kept", 1), &[]);
    for seed in 2..6 {
        node.add(&tree(&node, "gone", seed), &["--pin=false"]);
    }
    let collecting = |node: &Node| {
        node.command(&["gc", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let daemon = Daemon::start(&node, &[]);
    let child = collecting(&node);
    signal(daemon.child.id(), Signal::TERM);
    let output = wait(child);
    // Done before, told that the daemon is ending, or come too late for it and done without one.
    let code = output.status.code().unwrap();
    assert!(
        matches!(code, 0 | 1 | 5 | 7),
        "{code}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    drop(daemon);
    let child = collecting(&node);
    signal(child.id(), Signal::TERM);
    wait(child);
    node.ok(&["gc"]);
    is_whole(&node, &kept);
    node.ok(&["repo", "verify"]);
}

/// The daemon makes room by itself: at 90 % of the limit what no pin holds goes, least recently used first, and adding goes on.
#[test]
fn a_daemon_near_its_limit_takes_what_was_used_least_recently() {
    let node = Node::new();
    for (key, value) in [("max_size", "48MiB"), ("gc_interval", "1s")] {
        node.ok(&["config", "set", &format!("store.{key}"), value]);
    }
    let _daemon = Daemon::start(&node, &[]);
    let kept = node.add(&tree(&node, "kept", 1), &[]);
    let unpinned = |seed: u64| {
        let path = node.write(&format!("cache-{seed}"), noise(seed, 1_400_000));
        node.add(&path, &["--pin=false"])
    };
    let ticks = || {
        let begun = std::time::Instant::now();
        until("a unit of last use", || begun.elapsed().as_millis() > 1600);
    };
    let (used, unused) = (unpinned(50), unpinned(51));
    ticks();
    is_whole(&node, &used);
    ticks();
    // Far more than the limit in all, and never refused.
    for seed in 52..92 {
        unpinned(seed);
        until("room", || {
            number(&node.json(&["repo", "stat"]), "disk_bytes") <= (48 << 20) * 9 / 10
        });
    }
    let kept_house = status(&node)["kept"].clone();
    assert!(number(&kept_house, "gc_runs") > 0, "{kept_house}");
    assert!(
        number(&kept_house, "freed_bytes") > 10_000_000,
        "{kept_house}"
    );
    assert_eq!(number(&kept_house, "limit_bytes"), 48 << 20);
    is_whole(&node, &kept);
    node.fails(&["dag", "export", &unused, "--timeout", "200ms"], 4);
}

/// P9: the scrub finds damage in a block that nobody reads, and the block comes back from the swarm.
#[test]
fn p9_the_scrub_finds_damage_and_has_it_repaired() {
    let mut swarm = Swarm::of(2);
    let content = noise(7, 100_000);
    let root = swarm.node(0).add(&swarm.node(0).write("x", &content), &[]);
    let b = swarm.node(1);
    b.ok(&["pin", "add", &root, "--timeout", "30s"]);
    // In order: after an unclean end the opening reads the last pack itself, and finds the damage first.
    let mut daemon = swarm.nodes[1].1.take().unwrap();
    signal(daemon.child.id(), Signal::TERM);
    daemon.child.wait().unwrap();
    let b = swarm.node(1);
    damage(b, &root);
    b.ok(&["config", "set", "store.scrub", "1s"]);
    let first = common::address(swarm.node(0));
    let _daemon = Daemon::start(b, &["--bootstrap", &first]);
    until("the damage is found", || {
        number(&status(b)["kept"], "scrub_damaged") > 0
    });
    until("the repair", || {
        let (_, metrics) = common::http(
            b,
            "GET",
            "/metrics",
            "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n",
        );
        metrics.contains("gemba_repaired_blocks_total 1\n")
    });
    assert_eq!(b.run(&["cat", &root]).stdout, content);
    b.ok(&["repo", "verify"]);
    assert!(number(&status(b)["kept"], "scrubbed_bytes") > 0);
}

/// S4.23: a store of an older format is migrated with a backup, and a second time there is nothing to do.
#[test]
fn s4_23_migrate_tells_the_formats_and_the_backup() {
    let node = Node::new();
    let root = node.add(&node.write("x", "content"), &[]);
    let version = node.repo.join("blocks/version");
    let now = std::fs::read_to_string(&version).unwrap();
    let id = now.lines().find(|line| line.starts_with("id ")).unwrap();
    let word = now.split(' ').next().unwrap();
    let old = format!("{word} 1\n{id}\n");
    std::fs::write(&version, &old).unwrap();
    let done = node.json(&["repo", "migrate"]);
    assert_eq!((number(&done, "from"), number(&done, "to")), (1, 2));
    let backup = done["backup"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(backup).unwrap(), old);
    let again = node.json(&["repo", "migrate"]);
    assert_eq!(
        (&again["migrated"], number(&again, "from")),
        (&false.into(), 2)
    );
    is_whole(&node, &root);
}

/// S4.23: the blocks of a flatfs repository come over, what is damaged is told, a dry run takes nothing, and nothing is written there.
#[test]
fn s4_23_the_blocks_of_a_kubo_repository_come_over() {
    let node = Node::new();
    node.write(
        "ipfs/blocks/SHARDING",
        "/repo/flatfs/shard/v1/next-to-last/2\n",
    );
    // The empty folder that each repository has, and the same bytes under another name.
    let name = "CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y.data";
    node.write(&format!("ipfs/blocks/X3/{name}"), [0x0a, 0x02, 0x08, 0x01]);
    node.write("ipfs/blocks/X4/other.data", "no block");
    let dir = node.path("ipfs");
    let dir = dir.to_str().unwrap();
    let dry = node.json(&["repo", "import-kubo", dir, "--dry-run"]);
    assert_eq!(
        (
            number(&dry, "blocks"),
            number(&dry, "skipped"),
            blocks(&node)
        ),
        (1, 1, 0)
    );
    let done = node.json(&["repo", "import-kubo", dir]);
    assert_eq!(
        (
            number(&done, "blocks"),
            number(&done, "bytes"),
            blocks(&node)
        ),
        (1, 4, 1)
    );
    assert!(
        done["skipped_files"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("name"),
        "{done}"
    );
    assert_eq!(done["pins_imported"], false);
    assert!(
        node.ok(&["repo", "import-kubo", dir])
            .contains("pins are not taken over")
    );
    let empty = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";
    assert_eq!(
        node.run(&["block", "get", empty]).stdout,
        [0x0a, 0x02, 0x08, 0x01]
    );
    node.fails(&["repo", "import-kubo", node.repo.to_str().unwrap()], 3);
}

/// What was used lately survives, and what was used longest ago goes, when the daemon makes room.
#[test]
fn s4_49_what_was_used_lately_stays_and_the_oldest_goes() {
    let node = Node::new();
    for (key, value) in [("max_size", "48MiB"), ("gc_interval", "1s")] {
        node.ok(&["config", "set", &format!("store.{key}"), value]);
    }
    let _daemon = Daemon::start(&node, &[]);
    let cached = |seed: u64| {
        let path = node.write(&format!("cache-{seed}"), noise(seed, 1_400_000));
        node.add(&path, &["--pin=false"])
    };
    let a_unit_of_last_use_later = || {
        let begun = std::time::Instant::now();
        until("a unit of last use", || begun.elapsed().as_millis() > 1600);
    };
    // Both are as old as each other; one is read again and again.
    let (used, unused) = (cached(50), cached(51));
    let mut latest = Vec::new();
    for round in 0..5 {
        a_unit_of_last_use_later();
        is_whole(&node, &used);
        latest = (0..8).map(|n| cached(100 + 10 * round + n)).collect();
    }
    until("room", || {
        number(&status(&node)["kept"], "gc_blocks") > 0
            && number(&node.json(&["repo", "stat"]), "disk_bytes") <= (48 << 20) * 9 / 10
    });
    // Nobody is connected: what is whole is so from this disk.
    is_whole(&node, &used);
    latest.iter().for_each(|root| is_whole(&node, root));
    node.fails(&["dag", "export", &unused, "--timeout", "200ms"], 4);
}

/// 48 MiB with 36 MB of unpinned content in it.
fn with_a_full_cache(node: &Node) -> Vec<String> {
    node.ok(&["config", "set", "store.max_size", "48MiB"]);
    let cached = (0..4).map(|seed| {
        let path = node.write(&format!("cache-{seed}"), noise(200 + seed, 9_000_000));
        node.add(&path, &["--pin=false"])
    });
    cached.collect()
}

/// An add, an import or a fetch that is larger than the free margin waits for the collection and is done, with and without a daemon.
#[test]
fn what_is_larger_than_the_margin_waits_for_the_collection() {
    for with_daemon in [true, false] {
        let node = Node::new();
        with_a_full_cache(&node);
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let content = noise(1, 30_000_000);
        let root = node.add(&node.write("large", &content), &[]);
        assert!(node.run(&["cat", &root]).stdout == content);
        let stat = node.json(&["repo", "stat"]);
        assert!(number(&stat, "disk_bytes") <= 48 << 20, "{stat}");
        let other = Node::new();
        let more = other.add(&other.write("more", noise(2, 12_000_000)), &[]);
        let car = node.write("car", other.run(&["dag", "export", &more]).stdout);
        node.ok(&["dag", "import", car.to_str().unwrap()]);
        is_whole(&node, &more);
        is_whole(&node, &root);
        let pins = node.lines(&["pin", "ls"]);
        assert!(pins.iter().all(|pin| pin["status"] == "pinned"), "{pins:?}");
    }
}

#[test]
fn a_fetch_that_is_larger_than_the_margin_waits_for_the_collection() {
    let swarm = Swarm::of(1);
    let a = swarm.node(0);
    let content = noise(3, 30_000_000);
    let root = a.add(&a.write("large", &content), &[]);
    let b = Node::bare();
    let key = a.repo.join("swarm.key");
    b.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    with_a_full_cache(&b);
    let _daemon = Daemon::start(&b, &["--bootstrap", &common::address(a)]);
    b.ok(&["pin", "add", &root, "--timeout", "50s"]);
    assert!(b.run(&["cat", &root]).stdout == content);
    let seen = status(&b);
    assert!(number(&seen["kept"], "gc_blocks") > 0, "{seen}");
    // Nothing was refused on the way.
    assert_eq!(seen["health"], "ok", "{seen}");
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let (_, metrics) = common::http(&b, "GET", "/metrics", headers);
    assert!(
        metrics.contains("gemba_refused_batches_total 0\n"),
        "{metrics}"
    );
}

/// It is refused when the collection cannot make enough room, because the rest is pinned, and told in figures; what is pinned is whole.
#[test]
fn what_finds_no_room_beside_the_pins_is_refused_with_the_figures() {
    for with_daemon in [true, false] {
        let node = Node::new();
        node.ok(&["config", "set", "store.max_size", "32MiB"]);
        let daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let kept = node.add(&node.write("kept", noise(1, 16_000_000)), &[]);
        let cache = node.write("cache", noise(2, 6_000_000));
        let cached = node.add(&cache, &["--pin=false"]);
        let large = node.write("large", noise(3, 20_000_000));
        let failure = node.fails(&["add", large.to_str().unwrap(), "--json"], 1);
        for part in ["no room for", "31457280 bytes", "are pinned", "gave back"] {
            assert!(failure.cause.contains(part), "{part}: {failure:?}");
        }
        assert!(failure.hint.contains("store.max_size"), "{failure:?}");
        // It was tried in earnest: the cache is gone.
        is_whole(&node, &kept);
        let missing = node.run(&["dag", "export", &cached, "--timeout", "200ms"]);
        assert!(!missing.status.success());
        // With that pin given up there is room.
        node.ok(&["pin", "rm", &kept]);
        let root = node.add(&large, &[]);
        is_whole(&node, &root);
        drop(daemon);
    }
}

/// Where nothing may be collected unasked, the refusal says so.
#[test]
fn a_store_that_may_not_collect_says_so() {
    let node = Node::new();
    with_a_full_cache(&node);
    node.ok(&["config", "set", "store.gc", "false"]);
    let large = node.write("large", noise(1, 30_000_000));
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let failure = node.fails(&["add", large.to_str().unwrap(), "--json"], 1);
        assert!(
            failure.cause.contains("may take") && failure.hint.contains("`store.gc` is off"),
            "{failure:?}"
        );
    }
}
