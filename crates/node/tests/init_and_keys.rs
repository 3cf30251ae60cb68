//! `init`, `swarm-key`, `id`, and the refusal to start without a key.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::Node;

fn mode(path: &std::path::Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_whole_and_private_repository() {
    let node = Node::bare();
    let made = node.json(&["init", "--new-swarm-key"]);
    assert!(made["id"].as_str().unwrap().starts_with("12D3KooW"));
    assert_eq!(made["fingerprint"].as_str().unwrap().len(), 32);
    for secret in ["swarm.key", "identity.key"] {
        assert_eq!(mode(&node.repo.join(secret)), 0o600, "{secret}");
    }
    assert_eq!(mode(&node.repo), 0o700);
    for part in ["config.toml", "version", "repo.lock", "blocks", "meta"] {
        assert!(node.repo.join(part).exists(), "{part}");
    }
    let id = node.json(&["id"]);
    assert_eq!(id["id"], made["id"]);
    assert_eq!(id["addresses"], serde_json::json!([]));
    assert!(id["agent"].as_str().unwrap().starts_with("gemba/"));
}

#[test]
fn init_twice_changes_nothing() {
    let node = Node::new();
    let before = node.json(&["id"]);
    let failure = node.fails(&["init", "--new-swarm-key"], 7);
    assert!(failure.cause.contains("already"), "{failure:?}");
    assert_eq!(node.json(&["id"]), before);
}

/// A power cut in the middle of `init` leaves parts without `version`: the same command finishes them.
#[test]
fn an_interrupted_init_is_finished_by_the_next_one() {
    let node = Node::new();
    let key = node.json(&["swarm-key", "show"]);
    let identity = node.json(&["id"]);
    std::fs::remove_file(node.repo.join("version")).unwrap();
    node.fails(&["repo", "stat"], 3);
    node.ok(&["init"]);
    assert_eq!(node.json(&["swarm-key", "show"]), key);
    assert_eq!(node.json(&["id"]), identity);
}

#[test]
fn commands_without_a_repository_say_how_to_make_one() {
    let node = Node::bare();
    for args in [
        &["id"][..],
        &["swarm-key", "show"],
        &["add", "."],
        &["pin", "ls"],
        &["config", "show"],
        &["status"],
        &["peers"],
        &["daemon"],
    ] {
        let failure = node.fails(args, 3);
        assert!(failure.hint.contains("gemba init"), "{args:?}: {failure:?}");
    }
    assert!(!node.repo.exists());
}

#[test]
fn a_newer_repository_is_refused() {
    let node = Node::new();
    std::fs::write(node.repo.join("version"), "2\n").unwrap();
    let failure = node.fails(&["repo", "stat"], 7);
    assert!(
        failure.cause.contains("version 2") && failure.hint.contains("newer"),
        "{failure:?}"
    );
    std::fs::write(node.repo.join("version"), "one\n").unwrap();
    node.fails(&["repo", "stat"], 8);
}

/// People generate a key a node and wonder why nothing syncs: making one says what to do with it, and joining takes it over.
#[test]
fn s0_59_one_key_for_all_nodes() {
    let first = Node::bare();
    let said = first.ok(&["init", "--new-swarm-key"]);
    assert!(
        said.contains("fingerprint") && said.contains("copy") && said.contains("all devices"),
        "{said}"
    );
    let fingerprint = first.json(&["swarm-key", "show"])["fingerprint"].clone();
    let key = first.repo.join("swarm.key");

    let joined = Node::bare();
    let made = joined.json(&["init", "--swarm-key", key.to_str().unwrap()]);
    assert_eq!(made["fingerprint"], fingerprint);
    assert_eq!(joined.json(&["status"])["fingerprint"], fingerprint);

    let later = Node::bare();
    assert!(later.ok(&["init"]).contains("no swarm key yet"));
    assert_eq!(
        later.json(&["swarm-key", "import", key.to_str().unwrap()])["fingerprint"],
        fingerprint
    );
    assert_eq!(mode(&later.repo.join("swarm.key")), 0o600);
    assert!(
        later
            .ok(&["swarm-key", "import", key.to_str().unwrap()])
            .contains("already")
    );
}

/// S2.26: whether two nodes have the same secret is told by the fingerprint, without showing the secret.
#[test]
fn s2_26_same_secret_is_checked_by_fingerprint() {
    let (a, b) = (Node::new(), Node::new());
    let fingerprint = |node: &Node| node.ok(&["swarm-key", "show"]).trim().to_owned();
    assert_ne!(fingerprint(&a), fingerprint(&b));
    let failure = a.fails(
        &[
            "swarm-key",
            "import",
            b.repo.join("swarm.key").to_str().unwrap(),
        ],
        7,
    );
    assert!(
        failure.cause.contains(&fingerprint(&a)) && failure.cause.contains(&fingerprint(&b)),
        "{failure:?}"
    );
    a.ok(&[
        "swarm-key",
        "import",
        "--replace",
        b.repo.join("swarm.key").to_str().unwrap(),
    ]);
    assert_eq!(fingerprint(&a), fingerprint(&b));
    let failure = a.fails(&["swarm-key", "new"], 7);
    assert!(failure.hint.contains("share one key"), "{failure:?}");
}

#[test]
fn a_bad_key_file_makes_no_repository() {
    let node = Node::bare();
    let bad = node.write("bad.key", "/key/swarm/psk/1.0.0/\n/base16/\n1234\n");
    let failure = node.fails(&["init", "--swarm-key", bad.to_str().unwrap()], 6);
    assert!(failure.cause.contains("cut short"), "{failure:?}");
    assert!(!node.repo.exists());
    node.fails(
        &["init", "--swarm-key", node.path("none").to_str().unwrap()],
        3,
    );
    node.fails(&["init", "--swarm-key", "x", "--new-swarm-key"], 2);
    node.fails(&["init", "--public-network", "--new-swarm-key"], 2);
}

#[test]
fn s0_48_a_node_without_key_opens_no_socket() {
    let node = Node::bare();
    node.ok(&["init"]);
    let failure = node.fails(
        &["daemon", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns"],
        6,
    );
    assert!(
        failure.cause.contains("no swarm key") && failure.cause.contains("swarm-key import"),
        "{failure:?}"
    );
    assert!(!node.repo.join("api").exists());
    node.fails(&["config", "check"], 6);
    node.fails(&["swarm-key", "show"], 3);
    // Reading and adding need no network.
    let file = node.write("f", "x");
    node.add(&file, &[]);
    let status = node.json(&["status"]);
    assert_eq!(
        (
            &status["private"],
            &status["fingerprint"],
            &status["health"]
        ),
        (&false.into(), &serde_json::Value::Null, &"refused".into())
    );
}

#[test]
fn s0_50_a_misnamed_key_file_is_named() {
    for wrong in ["swarm_key", "Swarm.Key", "swarm.key.txt", "swarmkey"] {
        let node = Node::new();
        std::fs::rename(node.repo.join("swarm.key"), node.repo.join(wrong)).unwrap();
        for args in [
            &["daemon", "--no-mdns"][..],
            &["daemon", "--public-network", "--no-mdns"],
        ] {
            let failure = node.fails(args, 6);
            assert!(
                failure.cause.contains(&format!("{wrong:?}"))
                    && failure.cause.contains("`swarm.key`"),
                "{failure:?}"
            );
        }
    }
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let node = Node::new();
    for secret in ["swarm.key", "identity.key"] {
        let path = node.repo.join(secret);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let failure = node.fails(&["daemon", "--no-mdns"], 6);
        assert!(format!("{failure:?}").contains("chmod 600"), "{failure:?}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    node.ok(&["config", "check"]);
}

/// The wish for the public network never overrides what forbids it, and a key never goes with it.
#[test]
fn s0_48_the_public_network_must_be_asked_for_and_allowed() {
    let node = Node::bare();
    node.ok(&["init", "--public-network"]);
    assert!(node.ok(&["config", "check"]).contains("public"));
    let mut forced = node.command(&["config", "check"]);
    forced.env("LIBP2P_FORCE_PNET", "1");
    let failure = common::Done::of(forced, &[]).fails(6);
    assert!(failure.cause.contains("LIBP2P_FORCE_PNET"), "{failure:?}");
    node.fails(&["--force-private", "config", "check"], 6);
    let mut misspelt = node.command(&["config", "check"]);
    misspelt.env("LIBP2P_FORCE_PRIVATE", "1");
    let failure = common::Done::of(misspelt, &[]).fails(6);
    assert!(failure.cause.contains("LIBP2P_FORCE_PNET"), "{failure:?}");
    let key = Node::new();
    node.ok(&[
        "swarm-key",
        "import",
        key.repo.join("swarm.key").to_str().unwrap(),
    ]);
    let failure = node.fails(&["config", "check"], 6);
    assert!(failure.cause.contains("public"), "{failure:?}");
}

#[test]
fn s0_60_with_a_key_the_force_setting_changes_nothing() {
    let node = Node::new();
    let plain = node.json(&["config", "check"]);
    for value in ["1", "0", "true", ""] {
        let mut forced = node.command(&["config", "check", "--json"]);
        forced.env("LIBP2P_FORCE_PNET", value);
        let said: serde_json::Value =
            serde_json::from_str(&common::Done::of(forced, &[]).ok()).unwrap();
        assert_eq!(said, plain);
    }
}

/// The key appears in no output of any command, also not in failures.
#[test]
fn s0_53_no_command_shows_the_key() {
    let node = Node::new();
    let text = std::fs::read_to_string(node.repo.join("swarm.key")).unwrap();
    let digits = text.lines().nth(2).unwrap().to_owned();
    for args in [
        &["swarm-key", "show"][..],
        &["status"],
        &["id"],
        &["config", "show", "--origin"],
        &["-vvv", "status"],
        &["swarm-key", "new"],
        &["init"],
    ] {
        let done = node.run(args);
        assert!(
            !done.text().contains(&digits) && !done.stderr.contains(&digits),
            "{args:?}"
        );
    }
}
