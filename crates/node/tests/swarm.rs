//! Daemons of one private swarm on loopback, driven through the command line and the API as their users drive them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Node, Swarm, address, http, id, noise, status, tree, until};

/// A folder with nested files, an empty folder, a link and a file of several chunks.
fn folder(node: &Node) -> std::path::PathBuf {
    for n in 0..50 {
        node.write(
            &format!("asset/sub-{}/file-{n}.txt", n % 7),
            format!("content of {n}"),
        );
    }
    node.write("asset/video.bin", noise(1, 3_500_000));
    std::fs::create_dir(node.path("asset/empty")).unwrap();
    std::os::unix::fs::symlink("video.bin", node.path("asset/link")).unwrap();
    node.path("asset")
}

/// S0.2: a tree and a large file added on A are got on B, equal byte for byte; a range of the file is read alone.
#[test]
fn s0_2_a_folder_travels_from_one_node_to_another() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let asset = folder(a);
    let root = a.add(&asset, &[]);
    let target = b.path("copy");
    b.ok(&["get", &root, "-o", target.to_str().unwrap()]);
    assert_eq!(tree(&target), tree(&asset));
    let piece = b.run(&[
        "cat",
        &format!("{root}/video.bin"),
        "--offset",
        "2000000",
        "--length",
        "70000",
    ]);
    assert!(piece.stdout == noise(1, 3_500_000)[2_000_000..2_070_000]);
}

/// `pin add` says done when every block is durable: the daemon is killed at once, and everything is there without it.
#[test]
fn a_pinned_folder_survives_a_kill_right_after() {
    let mut swarm = Swarm::of(2);
    let root = swarm.node(0).add(&folder(swarm.node(0)), &[]);
    let lines = swarm.node(1).lines(&["pin", "add", &root, "--name", "app"]);
    let last = lines.last().unwrap();
    assert_eq!(
        (last["status"].as_str(), last["cid"].as_str()),
        (Some("pinned"), Some(root.as_str()))
    );
    assert!(
        last["blocks_done"].as_u64().unwrap() > 50
            && last["bytes_done"].as_u64().unwrap() > 3_500_000
    );
    swarm.nodes[1].1 = None;
    swarm.nodes[0].1 = None;
    let b = swarm.node(1);
    let target = b.path("copy");
    b.ok(&["get", &root, "-o", target.to_str().unwrap()]);
    assert_eq!(tree(&target), tree(&swarm.node(0).path("asset")));
    let verified = b.lines(&["repo", "verify"]);
    assert_eq!(
        verified.last().unwrap()["corrupt"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

/// S4.9: a daemon killed in the middle goes on by itself where it was and fetches nothing twice.
#[test]
fn s4_9_a_fetch_goes_on_after_a_crash_without_fetching_twice() {
    let mut swarm = Swarm::of(2);
    let content = noise(7, 60_000_000);
    let file = swarm.node(0).write("big.bin", &content);
    let root = swarm.node(0).add(&file, &[]);
    let first = address(swarm.node(0));
    let mut pinning = swarm
        .node(1)
        .command(&["pin", "add", &root, "--json"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("some blocks", || {
        status(swarm.node(1))["repo"]["blocks"].as_u64().unwrap() > 2
    });
    swarm.nodes[1].1 = None;
    let _failed = pinning.wait();
    let kept = swarm.node(1).json(&["repo", "stat"])["blocks"]
        .as_u64()
        .unwrap();
    assert!(kept > 2);
    let daemon = Daemon::start(swarm.node(1), &["--bootstrap", &first]);
    swarm.nodes[1].1 = Some(daemon);
    let b = swarm.node(1);
    until("the rest", || {
        b.json(&["pin", "status", &root])["status"] == "pinned"
    });
    let fetched = status(b)["transfer"]["blocks_in"].as_u64().unwrap();
    let total = b.json(&["repo", "stat"])["blocks"].as_u64().unwrap();
    assert!(
        fetched + kept <= total,
        "{fetched} blocks were fetched after the crash, {kept} of {total} had been there"
    );
    assert!(b.run(&["cat", &root]).stdout == content);
}

/// S0.7: what `status` and `peers` tell, by the names that scripts rely on.
#[test]
fn s0_7_connectivity_is_visible() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let root = a.add(&folder(a), &[]);
    b.ok(&["pin", "add", &root]);
    let seen = status(b);
    assert_eq!(seen["id"].as_str().unwrap(), id(b));
    assert_eq!(
        (
            seen["peers"].as_u64(),
            seen["private"].as_bool(),
            seen["health"].as_str()
        ),
        (Some(1), Some(true), Some("ok"))
    );
    assert_eq!(
        seen["fingerprint"].as_str().unwrap(),
        b.json(&["swarm-key", "show"])["fingerprint"]
            .as_str()
            .unwrap()
    );
    assert!(
        seen["repo"]["blocks"].as_u64().unwrap() > 0
            && seen["repo"]["bytes"].as_u64().unwrap() > 3_500_000
    );
    assert!(seen["transfer"]["bytes_in"].as_u64().unwrap() > 3_500_000);
    until("a round trip and the agent", || {
        let peer = &b.lines(&["peers"])[0];
        peer["rtt_ms"].is_number()
            && peer["agent"]
                .as_str()
                .is_some_and(|agent| agent.starts_with("gemba/"))
    });
    let peer = b.lines(&["peers"]).remove(0);
    assert_eq!(
        (peer["id"].as_str(), peer["transport"].as_str()),
        (Some(id(a).as_str()), Some("tcp"))
    );
    assert!(
        peer["address"]
            .as_str()
            .unwrap()
            .starts_with("/ip4/127.0.0.1/tcp/")
    );
    assert!(peer["bytes_in"].as_u64().unwrap() > 3_500_000 && peer["bytes_out"].is_number());
}

/// S0.6: a node without the key opens no stream, and both sides know why (S0.56, S2.26, S2.41).
#[test]
fn s0_6_a_stranger_opens_no_stream() {
    let member = Swarm::of(1);
    let stranger = Swarm::of(1);
    let (a, b) = (member.node(0), stranger.node(0));
    let failure = b.fails(&["connect", &address(a), "--json"], 6);
    assert!(failure.cause.contains("swarm key"), "{}", failure.cause);
    assert_eq!(
        (status(a)["peers"].as_u64(), status(b)["peers"].as_u64()),
        (Some(0), Some(0))
    );
}

/// S0.56: with different keys both sides say so, in the command and in `status`.
#[test]
fn s0_56_both_sides_report_a_key_mismatch() {
    let (one, other) = (Swarm::of(1), Swarm::of(1));
    let (a, b) = (one.node(0), other.node(0));
    let _failure = b.fails(&["connect", &address(a)], 6);
    for (node, direction) in [(a, "in"), (b, "out")] {
        until("the trouble in status", || {
            let troubles = status(node)["troubles"].as_array().unwrap().clone();
            troubles.iter().any(|t| {
                t["direction"] == direction
                    && t["kind"].as_str().unwrap().contains("wrong_swarm_key")
                    && t["cause"].as_str().unwrap().contains("swarm key")
            })
        });
    }
}

/// S0.57: ping by peer id, with round trips, or with a cause.
#[test]
fn s0_57_ping_measures_or_says_why_not() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let pongs = b.lines(&["ping", &id(a), "--count", "3"]);
    assert_eq!(pongs.len(), 3);
    assert!(
        pongs
            .iter()
            .enumerate()
            .all(|(n, pong)| pong["seq"] == n as u64 + 1 && pong["rtt_ms"].as_f64().unwrap() > 0.0)
    );
    let stranger = Swarm::of(1);
    let failure = b.fails(&["ping", &id(stranger.node(0)), "--json"], 3);
    assert!(failure.cause.contains("not connected") && failure.hint.contains("gemba connect"));
    assert!(b.fails(&["ping", "nonsense"], 2).cause.contains("peer id"));
}

/// S2.27, S2.37, S2.38: malformed, wrong peer and nobody there are told apart.
#[test]
fn s2_27_what_is_wrong_with_an_address_is_told() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    assert!(
        b.fails(&["connect", "10.0.0.1:4001", "--json"], 2)
            .hint
            .contains("/ip4/")
    );
    let elsewhere = address(a).replace(
        &id(a),
        "12D3KooWDpp7U7W9Q8feMZPPEpPP5FKXTUakLgnVLbavfjb9mzrT",
    );
    let failure = b.fails(&["connect", &elsewhere, "--json"], 7);
    assert!(
        failure.cause.contains(&id(a))
            && failure
                .cause
                .contains("12D3KooWDpp7U7W9Q8feMZPPEpPP5FKXTUakLgnVLbavfjb9mzrT"),
        "{}",
        failure.cause
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let failure = b.fails(
        &["connect", &format!("/ip4/127.0.0.1/tcp/{free}"), "--json"],
        1,
    );
    assert!(
        failure.cause.contains("nothing listens"),
        "{}",
        failure.cause
    );
}

/// A want that nobody has ends with a cause, and `why` tells who was asked.
#[test]
fn a_block_that_nobody_has_ends_with_a_cause() {
    let swarm = Swarm::of(2);
    let b = swarm.node(1);
    let cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    let failure = b.fails_in_time(&["pin", "add", cid, "--timeout", "3s", "--json"]);
    assert!(
        failure.cause.contains("the only peer asked does not have"),
        "{}",
        failure.cause
    );
    // Who was asked and what came back, for people and with ages for scripts.
    let told = b.ok(&["why", cid]);
    let asked = swarm.node(0).json(&["id"])["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        told.contains("is not on this device; it has been wanted for")
            && told.contains(&format!("asked     {asked} "))
            && told.contains("waits for")
            && !told.contains('{'),
        "{told}"
    );
    let why = b.json(&["why", cid]);
    assert!(why["why"]["age_ms"].as_u64().unwrap() >= 3000, "{why}");
    assert!(why["why"]["asked"][0]["age_ms"].is_u64(), "{why}");
    assert_eq!(
        (why["here"].as_bool(), why["wanted"].as_bool()),
        (Some(false), Some(true))
    );
    assert_eq!(
        b.json(&["pin", "status", cid])["cid"].as_str().unwrap(),
        cid
    );
    b.ok(&["pin", "rm", cid]);
    b.fails(&["pin", "status", cid], 3);
    let failure = b.fails(&["cat", cid, "--json"], 3);
    assert!(
        failure.cause.contains("not on this device"),
        "{}",
        failure.cause
    );
}

/// Rows H2 and H3 at the socket: every route wants the token, a loopback `Host`, and no foreign `Origin`.
#[test]
fn h2_every_route_is_guarded() {
    let swarm = Swarm::of(1);
    let node = swarm.node(0);
    let good = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let routes = [
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("GET", "/v1/id"),
        ("GET", "/v1/status"),
        ("POST", "/v1/add"),
        ("POST", "/v1/shutdown"),
        ("GET", "/nothing"),
    ];
    for (method, path) in routes {
        assert_eq!(
            http(node, method, path, "Host: ADDRESS\r\n").0,
            401,
            "{path}"
        );
        assert_eq!(
            http(
                node,
                method,
                path,
                "Host: ADDRESS\r\nAuthorization: Bearer 00\r\n"
            )
            .0,
            401,
            "{path}"
        );
        assert_eq!(
            http(
                node,
                method,
                path,
                "Host: evil.example\r\nAuthorization: Bearer TOKEN\r\n"
            )
            .0,
            403,
            "{path}"
        );
        assert_eq!(
            http(
                node,
                method,
                path,
                &format!("{good}Origin: http://evil.example\r\n")
            )
            .0,
            403,
            "{path}"
        );
    }
    assert_eq!(http(node, "GET", "/healthz", good).0, 200);
    assert_eq!(http(node, "GET", "/nothing", good).0, 404);
    let (code, metrics) = http(node, "GET", "/metrics", good);
    assert!(
        code == 200
            && metrics.contains("gemba_peers 0")
            && metrics.contains("gemba_exchange_blocks_in_total"),
        "{metrics}"
    );
}

/// S2.6, S2.8: without a way to tell friend from foe on other machines the API listens on loopback only, and its file is private.
#[test]
fn s2_6_the_api_is_for_this_machine_and_this_user() {
    use std::os::unix::fs::PermissionsExt as _;
    let swarm = Swarm::of(1);
    let node = swarm.node(0);
    assert_eq!(
        std::fs::metadata(node.repo.join("api"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let bare = Node::new();
    let failure = bare.fails(
        &[
            "daemon",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--no-mdns",
            "--api",
            "0.0.0.0:0",
        ],
        2,
    );
    assert!(
        failure.cause.contains("other machines"),
        "{}",
        failure.cause
    );
    assert!(!bare.repo.join("api").exists());
}

/// S0.49: no address of anybody is built into the program.
#[test]
fn s0_49_the_program_knows_no_public_address() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_gemba")).unwrap();
    for known in [
        "bootstrap.libp2p.io",
        "/dnsaddr/",
        "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
        "ipfs.io",
        "104.131.131.82",
        "dweb.link",
        "delegated-ipfs",
    ] {
        let found = program
            .windows(known.len())
            .any(|window| window == known.as_bytes());
        assert!(!found, "{known} is in the program");
    }
}

/// SIGTERM drains: exit 0, the `api` file is gone, the lock is free.
#[test]
fn sigterm_ends_the_daemon_cleanly() {
    let mut swarm = Swarm::of(1);
    let mut daemon = swarm.nodes[0].1.take().unwrap();
    common::signal(daemon.child.id(), rustix::process::Signal::TERM);
    assert!(daemon.child.wait().unwrap().success());
    let node = swarm.node(0);
    assert!(!node.repo.join("api").exists());
    node.ok(&["repo", "verify"]);
    drop(Daemon::start(node, &[]));
}

/// Commands work beside the `api` file of a daemon that was killed.
#[test]
fn a_stale_api_file_is_in_nobodys_way() {
    let mut swarm = Swarm::of(1);
    let root = swarm.node(0).add(&folder(swarm.node(0)), &[]);
    swarm.nodes[0].1 = None;
    let node = swarm.node(0);
    assert!(node.repo.join("api").exists());
    assert_eq!(node.lines(&["pin", "ls"])[0]["cid"].as_str().unwrap(), root);
    assert!(
        node.run(&["cat", &format!("{root}/sub-0/file-0.txt")])
            .stdout
            == b"content of 0"
    );
    assert_eq!(status(node)["daemon"], false);
    node.fails(&["peers"], 5);
}

/// S2.24: a second daemon on a port that another one listens on is refused, and the first one keeps all its connections.
#[test]
fn s2_24_a_port_of_another_daemon_is_refused() {
    let swarm = Swarm::of(1);
    let port = address(swarm.node(0)).split('/').nth(4).unwrap().to_owned();
    let second = Node::new();
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    let args = [
        "daemon",
        "--no-mdns",
        "--api",
        "127.0.0.1:0",
        "--listen",
        &listen,
        "--json",
    ];
    let failure = second.fails(&args, 7);
    assert!(failure.cause.contains(&port), "{}", failure.cause);
}

/// Connecting twice, or to oneself, is answered and not hung on.
#[test]
fn connect_knows_itself_and_whom_it_has() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let bare = address(a).split("/p2p/").next().unwrap().to_owned();
    for _ in 0..4 {
        assert_eq!(b.json(&["connect", &bare])["id"].as_str().unwrap(), id(a));
    }
    for own in [
        address(b),
        address(b).split("/p2p/").next().unwrap().to_owned(),
    ] {
        assert!(b.fails(&["connect", &own], 2).cause.contains("own address"));
    }
}

/// A repository is never published by an `add` of the folder around it.
#[test]
fn a_repository_with_its_keys_is_not_added() {
    let node = Node::new();
    let failure = node.fails(&["add", node.dir.path().to_str().unwrap(), "--json"], 2);
    assert!(failure.cause.contains("secret keys"), "{}", failure.cause);
}
