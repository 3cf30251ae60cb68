//! `config` and what a command line may say.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Done, Node};

/// Where and how to set something is told with its value (S0.55), the force setting above all.
#[test]
fn s0_55_value_and_source_of_every_setting_are_shown() {
    let node = Node::new();
    let shown = |env: &[(&str, &str)], args: &[&str]| {
        let mut command = node.command(&[&["config", "show", "--origin", "--json"], args].concat());
        command.envs(env.iter().copied());
        let object: serde_json::Value = serde_json::from_str(&Done::of(command, &[]).ok()).unwrap();
        let entry = &object["network.force_private"];
        (
            entry["value"].clone(),
            entry["origin"].as_str().unwrap().to_owned(),
        )
    };
    let (yes, no) = (serde_json::json!(true), serde_json::json!(false));
    assert_eq!(shown(&[], &[]), (serde_json::Value::Null, "default".into()));
    node.ok(&["config", "set", "network.force_private", "true"]);
    assert_eq!(shown(&[], &[]), (yes.clone(), "config.toml".into()));
    assert_eq!(
        shown(&[("GEMBA_NETWORK__FORCE_PRIVATE", "0")], &[]),
        (no, "GEMBA_NETWORK__FORCE_PRIVATE".into())
    );
    assert_eq!(
        shown(&[("LIBP2P_FORCE_PNET", "1")], &[]),
        (yes.clone(), "LIBP2P_FORCE_PNET".into())
    );
    assert_eq!(
        shown(&[("LIBP2P_FORCE_PNET", "0")], &["--force-private"]),
        (yes, "flag".into())
    );
}

#[test]
fn settings_are_shown_set_and_refused() {
    let node = Node::new();
    let text = node.ok(&["config", "show"]);
    assert!(
        text.contains("network.mdns = true") && text.contains("api.address = \"127.0.0.1:"),
        "{text}"
    );
    node.ok(&[
        "config",
        "set",
        "network.bootstrap",
        "/ip4/192.0.2.1/tcp/4001",
        "/ip4/192.0.2.2/tcp/4001",
    ]);
    assert_eq!(
        node.json(&["config", "show", "network.bootstrap"])["network.bootstrap"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    node.ok(&["config", "set", "network.bootstrap"]);
    assert_eq!(
        node.json(&["config", "show", "network.bootstrap"])["network.bootstrap"],
        serde_json::json!([])
    );
    let before = std::fs::read(node.repo.join("config.toml")).unwrap();
    for (args, said) in [
        (
            &["config", "set", "network.bootstrap", "not-an-address"][..],
            "multiaddr",
        ),
        (&["config", "set", "network.mdsn", "true"], "unknown"),
        (&["config", "set", "api.address", "0.0.0.0:1"], "loopback"),
        (&["config", "show", "network.lsiten"], "unknown"),
    ] {
        let failure = node.fails(args, 2);
        assert!(failure.cause.contains(said), "{args:?}: {failure:?}");
    }
    assert_eq!(
        std::fs::read(node.repo.join("config.toml")).unwrap(),
        before
    );
    assert_eq!(
        node.fails(&["config", "set", "network.mdsn", "true"], 2)
            .hint,
        "hint: did you mean `network.mdns`?"
    );
}

/// A word that is no level was taken for the name of a part of the program, and nothing was logged any more.
#[test]
fn levels_that_are_none_are_refused_with_the_allowed_ones() {
    let node = Node::new();
    let before = std::fs::read(node.repo.join("config.toml")).unwrap();
    for level in ["trace2", "loud", "info,gemba_node", ""] {
        let failure = node.fails(&["config", "set", "log.level", level], 2);
        for word in ["error", "warn", "info", "debug", "trace"] {
            assert!(failure.cause.contains(word), "{failure:?}");
        }
    }
    assert_eq!(
        std::fs::read(node.repo.join("config.toml")).unwrap(),
        before
    );
    for level in ["trace", "info,gemba_node=debug"] {
        node.ok(&["config", "set", "log.level", level]);
    }
    // Also in a file that was written by hand, and in the variables that only the daemon reads.
    std::fs::write(node.repo.join("config.toml"), "[log]\nlevel = \"trace2\"\n").unwrap();
    let failure = node.fails(&["status"], 2);
    assert!(failure.cause.contains("config.toml"), "{failure:?}");
    node.ok(&["config", "unset", "log.level"]);
    for variable in ["GEMBA_LOG", "GEMBA_LOG_FORMAT"] {
        let mut command = node.command(&["daemon", "--no-mdns"]);
        command.env(variable, "trace2");
        let failure = Done::of(command, &[]).fails(2);
        assert!(failure.cause.contains(variable), "{failure:?}");
    }
}

/// Whoever reads the log of a daemon reads of the daemon first, not of its libraries.
#[test]
fn the_first_word_in_the_log_is_the_daemons_own() {
    let node = Node::new();
    // Standard input is closed at once, so it starts and ends.
    let done = node.run(&[
        "daemon",
        "--no-mdns",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--api",
        "127.0.0.1:0",
        "--until-stdin-closes",
    ]);
    assert!(done.status.success(), "{}", done.stderr);
    let mut lines = done.stderr.lines();
    let first = lines.next().unwrap();
    assert!(
        first.contains("gemba_node") && first.contains("the daemon starts"),
        "{first}"
    );
    assert!(
        lines.all(|line| !line.contains("INFO libp2p")),
        "{}",
        done.stderr
    );
}

/// A wrong variable is not a wrong file.
#[test]
fn s0_55_errors_name_the_source_they_come_from() {
    let node = Node::new();
    let mut command = node.command(&["config", "show"]);
    command.env("GEMBA_NETWORK__MDNS", "maybe");
    let failure = Done::of(command, &[]).fails(2);
    assert!(
        failure.cause.contains("GEMBA_NETWORK__MDNS") && !failure.cause.contains("config.toml"),
        "{failure:?}"
    );
    std::fs::write(node.repo.join("config.toml"), "[network]\nmdns = 3\n").unwrap();
    let failure = node.fails(&["config", "show"], 2);
    assert!(failure.cause.contains("config.toml"), "{failure:?}");
    let failure = node.fails(&["config", "set", "network.site", "hall-1"], 2);
    assert!(
        failure.cause.contains("config.toml") && failure.cause.contains("network.mdns"),
        "{failure:?}"
    );
}

#[test]
fn a_setting_can_be_taken_back() {
    let node = Node::new();
    node.ok(&["config", "set", "network.force_private", "true"]);
    let said = node.ok(&["config", "unset", "network.force_private"]);
    assert!(said.contains("default"), "{said}");
    assert_eq!(
        node.json(&["config", "show", "network.force_private"])["network.force_private"],
        serde_json::Value::Null
    );
    node.fails(&["config", "unset", "network.forceprivate"], 2);
    let failure = node.fails(&["config", "set", "network.mdns"], 2);
    assert!(
        failure.cause.contains("no value") && failure.hint.contains("unset"),
        "{failure:?}"
    );
}

#[test]
fn a_wrong_file_is_refused_by_every_command_with_the_place() {
    let node = Node::new();
    std::fs::write(
        node.repo.join("config.toml"),
        "[network]\nlisten_address = []\n",
    )
    .unwrap();
    for args in [
        &["config", "show"][..],
        &["repo", "stat"],
        &["daemon", "--no-mdns"],
        &["status"],
    ] {
        let failure = node.fails(args, 2);
        assert!(
            failure.cause.contains("config.toml")
                && failure.cause.contains("network.listen_address"),
            "{failure:?}"
        );
    }
    // The key needs no settings.
    node.ok(&["id"]);
}

#[test]
fn wrong_command_lines_have_exit_code_2_in_both_forms() {
    let node = Node::new();
    for args in [
        &["nonsense"][..],
        &["add"],
        &["cat"],
        &["add", ".", "--cid-version", "x"],
        &["--timeout", "soon", "id"],
        &["block"],
    ] {
        let done = node.run(args);
        assert_eq!(done.status.code(), Some(2), "{args:?}");
        assert!(!done.stderr.is_empty());
    }
    for args in [
        &["nonsense", "--json"][..],
        &["--json", "add", ".", "--no-such-flag"],
    ] {
        let failure = node.fails(args, 2);
        assert_eq!(failure.code, "usage");
    }
    let failure = node.fails(&["--json", "cat", "not-a-cid"], 2);
    assert!(failure.cause.contains("not-a-cid") && !failure.hint.is_empty());
    for args in [&["--help"][..], &["--version"], &["add", "--help"]] {
        assert!(!node.ok(args).is_empty());
    }
}

/// S2.6, S2.8: the control API listens on loopback, or not at all.
#[test]
fn s2_8_the_api_listens_on_loopback_only() {
    let node = Node::new();
    assert!(
        node.json(&["config", "show"])["api.address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    let failure = node.fails(
        &[
            "daemon",
            "--no-mdns",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--api",
            "0.0.0.0:0",
        ],
        2,
    );
    assert!(failure.cause.contains("other machines"), "{failure:?}");
}

/// S2.24: an address that is taken is named.
#[test]
fn s2_24_an_address_in_use_is_named() {
    let node = Node::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let failure = node.fails(
        &[
            "daemon",
            "--no-mdns",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--api",
            &address.to_string(),
        ],
        7,
    );
    assert!(
        failure.cause.contains(&address.port().to_string()) && failure.cause.contains("in use"),
        "{failure:?}"
    );
    let listen = format!("/ip4/127.0.0.1/tcp/{}", address.port());
    let done = node.run(&[
        "daemon",
        "--no-mdns",
        "--listen",
        &listen,
        "--api",
        "127.0.0.1:0",
    ]);
    assert_eq!(done.status.code(), Some(7), "{}", done.stderr);
    assert!(
        done.stderr.contains(&address.port().to_string()),
        "{}",
        done.stderr
    );
}

/// S3.37: blocks, names, messages and events need one process and one file of settings, and nothing beside them.
#[cfg(target_os = "linux")]
#[test]
fn s3_37_a_node_is_one_process_with_one_file_of_settings() {
    let node = Node::new();
    node.ok(&["config", "set", "events.max_size", "1GiB"]);
    node.ok(&["config", "set", "network.force_private", "true"]);
    let daemon = Daemon::start(&node, &[]);
    node.add(&node.write("file", "content"), &[]);
    node.ok(&["log", "append", "hall-1/press-7/count", "1"]);
    node.ok(&["log", "count", "hall-1/#", "--consumer", "pieces"]);
    let parent_of = |stat: &str| -> Option<u32> {
        let (_, behind) = stat.rsplit_once(") ")?;
        behind.split(' ').nth(1)?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stats =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let children: Vec<String> = stats
        .filter(|stat| parent_of(stat) == Some(daemon.child.id()))
        .collect();
    assert_eq!(children, [""; 0]);
    // Settings of every part stand in that one file.
    let shown = node.ok(&["config", "show", "--origin", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    for name in ["events.max_size", "network.force_private"] {
        assert_eq!(shown[name]["origin"], "config.toml", "{name}");
    }
    let files = common::tree(&node.repo);
    let settings: Vec<_> = files
        .keys()
        .filter(|path| {
            path.extension()
                .is_some_and(|end| ["toml", "yaml", "conf", "ini"].iter().any(|it| end == *it))
        })
        .collect();
    assert_eq!(settings, [std::path::Path::new("config.toml")]);
}
