//! Restarts, kills, locks, interruptions, readers that go away.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use common::{Daemon, Node, noise, signal, tree, until, wait};
use rustix::process::Signal;

/// S0.5: the node on the device is its data store. Every command is a process of its own here, and no network is touched.
#[test]
fn s0_5_data_is_kept_and_read_with_the_network_off() {
    let node = Node::new();
    node.write("f/a", noise(1, 700_000));
    node.write("f/b/c", "x");
    let root = node.add(&node.path("f"), &[]);
    // After a daemon that was killed: its `api` file is stale, and reads do not care.
    let mut daemon = Daemon::start(&node, &[]);
    assert!(node.repo.join("api").exists());
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(node.repo.join("api").exists());
    node.ok(&["get", &root, "-o", "out"]);
    assert_eq!(tree(&node.path("out")), tree(&node.path("f")));
    assert_eq!(node.json(&["status"])["daemon"], false);
    for args in [
        &["ls", &root][..],
        &["pin", "ls"],
        &["pin", "status", &root],
        &["repo", "stat"],
        &["repo", "verify"],
        &["id"],
        &["dag", "get", &root],
    ] {
        node.ok(args);
    }
    node.fails(&["peers"], 5);
    // What writes works beside the stale file as well.
    node.write("g", "y");
    node.add(&node.path("g"), &[]);
}

#[test]
fn garbage_in_the_api_file_is_as_good_as_none() {
    let node = Node::new();
    for garbage in [
        "",
        "{",
        "{\"address\":\"127.0.0.1:1\",\"token\":\"x\",\"pid\":1}",
        "\0\0\0",
    ] {
        std::fs::write(node.repo.join("api"), garbage).unwrap();
        node.ok(&["repo", "stat"]);
        node.fails(&["peers"], 5);
    }
}

/// DESIGN §1: acknowledged means on disk. A name that was printed is there after a kill, and the store opens whatever happened.
#[test]
fn a_killed_add_leaves_a_store_that_opens_and_is_sound() {
    let node = Node::new();
    for file in 0..400u64 {
        node.write(&format!("f/{file:04}"), noise(file, 40_000));
    }
    for round in 0..4 {
        let mut add = node
            .command(&["add", "f"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(add.stdout.take().unwrap()).lines();
        // Killed after the first entries came, at another moment each round.
        let seen: Vec<String> = (0..1 + round * 7)
            .map_while(|_| lines.next())
            .map(Result::unwrap)
            .collect();
        signal(add.id(), Signal::KILL);
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        add.wait().unwrap();
        let verified = node.json(&["repo", "verify"]);
        assert_eq!(verified["corrupt"], serde_json::json!([]), "round {round}");
        let mut told = seen
            .iter()
            .chain(&rest)
            .filter(|line| line.starts_with("added "));
        for line in told.by_ref().step_by(50) {
            let mut words = line.split(' ').skip(1);
            let (Some(cid), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            if name.contains('/') {
                assert_eq!(
                    node.run(&["cat", cid]).stdout,
                    std::fs::read(node.path(name)).unwrap(),
                    "{line}"
                );
            }
        }
    }
    let root = node.add(&node.path("f"), &[]);
    node.ok(&["get", &root, "-o", "out"]);
    assert_eq!(tree(&node.path("out")), tree(&node.path("f")));
    assert_eq!(node.json(&["pin", "status", &root])["status"], "pinned");
}

/// Ctrl-C ends cleanly with 130; nothing is pinned, and the lock is free.
#[test]
fn ctrl_c_ends_with_130() {
    let node = Node::new();
    let mut add = node
        .command(&["add", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = add.stdin.take().unwrap();
    // The command reads when it has taken 1 MiB more than a pipe holds.
    std::io::Write::write_all(&mut input, &noise(1, 1 << 20)).unwrap();
    signal(add.id(), Signal::INT);
    until("the command takes more input, and ends", || {
        std::io::Write::write_all(&mut input, &[0; 65536]).is_err()
            || add.try_wait().unwrap().is_some()
    });
    let output = wait(add);
    assert_eq!(
        output.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    assert_eq!(node.ok(&["pin", "ls"]), "");
    node.ok(&["repo", "verify"]);
}

/// Also while the command waits for input that never comes.
#[test]
fn ctrl_c_ends_a_command_that_waits_for_input() {
    let node = Node::new();
    let mut add = node
        .command(&["add", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = add.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &noise(1, 1 << 20)).unwrap();
    signal(add.id(), Signal::INT);
    let output = wait(add);
    assert_eq!(output.status.code(), Some(130));
    drop(input);
    node.ok(&["repo", "verify"]);
}

/// `gemba cat … | head`: the reader goes away and the command ends without a word.
#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let node = Node::new();
    let file = node.write("f", noise(1, 4 << 20));
    let cid = node.add(&file, &[]);
    for args in [
        &["cat", &cid][..],
        &["block", "get", &cid],
        &["dag", "export", &cid],
    ] {
        let mut child = node
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut some = [0; 16];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut some).unwrap();
        drop(stdout);
        let output = wait(child);
        assert!(
            output.stderr.is_empty(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

/// One process writes: the second is told who the first one is. Readers share.
#[test]
fn the_lock_is_named_with_its_holder() {
    let node = Node::new();
    let mut add = node
        .command(&["add", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = add.stdin.take().unwrap();
    // More than a pipe holds: once it is written, the command is reading, and so holds the lock.
    std::io::Write::write_all(&mut input, &noise(1, 1 << 20)).unwrap();
    for args in [
        &["add", "."][..],
        &["repo", "stat"],
        &["daemon", "--no-mdns"],
    ] {
        let failure = node.fails(args, 7);
        assert!(
            failure.cause.contains(&add.id().to_string()),
            "{args:?}: {failure:?}"
        );
    }
    // What needs no lock works.
    for args in [&["id"][..], &["swarm-key", "show"], &["config", "show"]] {
        node.ok(args);
    }
    drop(input);
    assert!(add.wait().unwrap().success());
    node.ok(&["repo", "stat"]);
}

/// A device whose storage was remounted read-only still reads.
#[test]
fn a_read_only_repository_is_read() {
    let node = Node::new();
    let file = node.write("f", "content");
    let cid = node.add(&file, &[]);
    // Root passes every permission, so this shows only that reads need no write where the tester is somebody else.
    let set = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        for path in [
            node.repo.clone(),
            node.repo.join("blocks"),
            node.repo.join("meta"),
        ] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let before: Vec<_> = tree(&node.repo).into_iter().collect();
    set(0o500);
    for args in [
        &["cat", &cid][..],
        &["pin", "ls"],
        &["repo", "stat"],
        &["ls", &cid],
        &["status"],
    ] {
        node.ok(args);
    }
    set(0o700);
    assert_eq!(tree(&node.repo).into_iter().collect::<Vec<_>>(), before);
}
