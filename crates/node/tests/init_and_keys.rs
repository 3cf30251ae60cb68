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
    assert!(
        failure.cause.contains("already") && failure.hint.contains("swarm-key show"),
        "{failure:?}"
    );
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

/// Also by the commands that take no lock, such as `id`.
#[test]
fn a_newer_repository_is_refused() {
    let node = Node::new();
    let file = node.write("f", "x");
    std::fs::write(node.repo.join("version"), "9\n").unwrap();
    for args in [
        &["repo", "stat"][..],
        &["id"],
        &["status"],
        &["peers"],
        &["swarm-key", "show"],
        &["swarm-key", "new", "--replace"],
        &["config", "show"],
        &["config", "set", "network.mdns", "false"],
        &["add", file.to_str().unwrap()],
        &["daemon", "--no-mdns"],
    ] {
        let failure = node.fails(args, 7);
        assert!(
            failure.cause.contains("version 9") && failure.cause.contains("up to version 1"),
            "{args:?}: {failure:?}"
        );
        assert!(failure.hint.contains("newer gemba"), "{failure:?}");
    }
    std::fs::write(node.repo.join("version"), "one\n").unwrap();
    node.fails(&["repo", "stat"], 8);
    node.fails(&["id"], 8);
}

/// The list of pins can be lost without anything else, and there is a way back.
#[test]
fn damaged_metadata_is_damage_and_the_hint_mends_it() {
    let node = Node::new();
    let file = node.write("f", "x");
    let root = node.add(&file, &[]);
    let identity = node.json(&["id"]);
    let key = node.json(&["swarm-key", "show"]);
    let path = node.repo.join("meta/meta.redb");
    let sound = std::fs::read(&path).unwrap();
    let overwritten = |from: usize, len: usize| {
        let mut bytes = sound.clone();
        let to = (from + len).min(bytes.len());
        bytes[from..to].fill(0xa5);
        bytes
    };
    let damages = [
        Vec::new(),
        common::noise(1, 5000),
        sound[..sound.len() / 2].to_vec(),
        overwritten(0, 64),
        // Both places where a transaction is recorded: only the newer one counts.
        overwritten(64, 256),
    ];
    for damage in &damages {
        std::fs::write(&path, damage).unwrap();
        for args in [&["pin", "ls"][..], &["add", "f"], &["status", "--json"]] {
            let failure = node.fails(args, 8);
            assert!(
                failure.cause.contains("meta.redb") && failure.hint.contains("gemba init"),
                "{args:?}: {failure:?}"
            );
        }
    }
    // Damage anywhere is damage or goes unnoticed, and never a stack trace.
    for page in 1..sound.len() / 4096 {
        for offset in [0, 8, 40] {
            std::fs::write(&path, overwritten(page * 4096 + offset, 64)).unwrap();
            for args in [&["pin", "ls"][..], &["pin", "rm", &root]] {
                let done = node.run(args);
                let code = done.status.code();
                assert!(
                    matches!(code, Some(0 | 3 | 7 | 8)) && !done.stderr.contains("panicked"),
                    "page {page}: {done:?}"
                );
            }
        }
    }
    std::fs::remove_file(&path).unwrap();
    node.fails(&["pin", "ls"], 8);

    // What the hint says.
    std::fs::remove_file(node.repo.join("version")).unwrap();
    node.ok(&["init"]);
    assert_eq!(node.json(&["id"]), identity);
    assert_eq!(node.json(&["swarm-key", "show"]), key);
    assert_eq!(node.ok(&["cat", &root]), "x");
    assert_eq!(node.ok(&["pin", "ls"]), "");
    node.ok(&["pin", "add", &root]);
}

/// Kubo takes the first of two keys without a word; then a device is in one of two swarms, and nobody knows in which.
#[test]
fn two_keys_in_one_file_are_refused_everywhere() {
    let (node, other) = (Node::new(), Node::new());
    let key = |node: &Node| std::fs::read_to_string(node.repo.join("swarm.key")).unwrap();
    let two = node.write("two.key", key(&node) + &key(&other));
    let spaced = node.write("spaced.key", format!("{}\n \r\n", key(&node)));
    let commented = node.write("commented.key", format!("{}# hall 3\n", key(&node)));
    let fresh = Node::bare();
    for args in [
        ["init", "--swarm-key", two.to_str().unwrap()],
        ["swarm-key", "import", two.to_str().unwrap()],
    ] {
        let node = if args[0] == "init" { &fresh } else { &node };
        let failure = node.fails(&args, 6);
        assert!(
            failure.cause.contains("second key") && failure.hint.contains("swarm.key"),
            "{failure:?}"
        );
    }
    assert!(!fresh.repo.exists());
    let failure = node.fails(&["swarm-key", "import", commented.to_str().unwrap()], 6);
    assert!(failure.cause.contains("follows the key"), "{failure:?}");
    node.ok(&["swarm-key", "import", spaced.to_str().unwrap()]);

    // One that lies in the repository keeps the daemon from starting.
    let both = std::fs::read(&two).unwrap();
    std::fs::write(node.repo.join("swarm.key"), both).unwrap();
    for args in [&["daemon", "--no-mdns"][..], &["config", "check"]] {
        let failure = node.fails(args, 6);
        assert!(
            failure.cause.contains("second key") && failure.hint.contains("--replace"),
            "{failure:?}"
        );
    }
    let text = format!("{:?}", node.run(&["config", "check"]));
    for node in [&node, &other] {
        let digits = key(node).lines().nth(2).unwrap().to_owned();
        assert!(!text.contains(&digits));
    }
}

#[test]
fn a_replaced_key_is_kept_and_both_are_named() {
    let (node, other) = (Node::new(), Node::new());
    let fingerprint = |node: &Node| node.ok(&["swarm-key", "show"]).trim().to_owned();
    let first = fingerprint(&node);
    let content = std::fs::read(node.repo.join("swarm.key")).unwrap();
    let kept = node.repo.join(format!("swarm.key.{}.old", &first[..8]));
    let said = node.ok(&[
        "swarm-key",
        "import",
        "--replace",
        other.repo.join("swarm.key").to_str().unwrap(),
    ]);
    assert!(
        [first.as_str(), &fingerprint(&other), kept.to_str().unwrap()]
            .iter()
            .all(|part| said.contains(part)),
        "{said}"
    );
    assert_eq!(std::fs::read(&kept).unwrap(), content);
    assert_eq!(mode(&kept), 0o600);
    let second = fingerprint(&node);
    let said = node.json(&["swarm-key", "new", "--replace"]);
    assert_eq!(said["fingerprint"], fingerprint(&node));
    assert_eq!(said["replaced"]["fingerprint"], second);
    // The way back.
    let said = node.json(&["swarm-key", "import", "--replace", kept.to_str().unwrap()]);
    assert_eq!(said["fingerprint"], first);
    node.ok(&["config", "check"]);
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
    for args in [&["swarm-key", "show"][..], &["init", "--new-swarm-key"]] {
        let done = node.run(args);
        let failure = done.fails(if args[0] == "init" { 7 } else { 3 });
        assert!(failure.hint.contains("gemba swarm-key new"), "{failure:?}");
    }
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

/// Who asked for the public network is named as it is: the file, the variable, or the flag.
#[test]
fn s0_55_the_wish_for_the_public_network_is_named_after_its_source() {
    let node = Node::new();
    let failure = node.fails(&["daemon", "--no-mdns", "--public-network"], 6);
    assert!(failure.cause.contains("`--public-network`"), "{failure:?}");
    let mut variable = node.command(&["config", "check"]);
    variable.env("GEMBA_NETWORK__PUBLIC_NETWORK", "yes");
    let failure = common::Done::of(variable, &[]).fails(6);
    assert!(
        failure.cause.contains("GEMBA_NETWORK__PUBLIC_NETWORK")
            && !failure.cause.contains("--public-network"),
        "{failure:?}"
    );
    node.ok(&["config", "set", "network.public_network", "true"]);
    for args in [&["daemon", "--no-mdns"][..], &["config", "check"]] {
        let failure = node.fails(args, 6);
        assert!(
            failure
                .cause
                .contains("`network.public_network = true` in config.toml")
                && !failure.cause.contains("--public-network"),
            "{failure:?}"
        );
    }
    let status = node.ok(&["status"]);
    assert!(status.contains("in config.toml"), "{status}");
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

/// Row S8: a repository may lie on a tablet's SD card: every file that a node makes, in `init`, while it works, with a migration's
/// backup and an old key, has a name that FAT and Windows take, and no two of them differ by case alone.
#[test]
fn s8_every_file_of_a_repository_has_a_name_for_every_medium() {
    let node = Node::new();
    for seed in 0..4 {
        let file = node.write("file", common::noise(seed, 300_000));
        let root = node.add(&file, &[]);
        if seed % 2 == 0 {
            node.ok(&["pin", "rm", &root]);
        }
    }
    node.ok(&["gc"]);
    let other = Node::new();
    let key = other.repo.join("swarm.key");
    node.ok(&["swarm-key", "import", "--replace", key.to_str().unwrap()]);
    let daemon = common::Daemon::start(&node, &[]);
    let mut names = common::tree(&node.repo);
    drop(daemon);
    names.extend(common::tree(&node.repo));
    let mut seen = std::collections::BTreeSet::new();
    for path in names.keys().filter(|path| !path.as_os_str().is_empty()) {
        for part in path {
            let name = part.to_str().unwrap();
            assert_eq!(gemba_testkit::names::not_portable(name), None, "{name}");
        }
        let folded = path.to_str().unwrap().to_lowercase();
        assert!(seen.insert(folded), "{path:?} twice");
    }
    assert!(seen.iter().any(|name| name.ends_with(".old")));
    assert!(seen.iter().any(|name| name.ends_with(".pack")));
}
