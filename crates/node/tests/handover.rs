//! Large files are handed to the daemon as open descriptors (docs/api-tree-stream.md, TREE-5).
#![cfg(any(target_os = "linux", target_os = "android"))]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use common::{Daemon, Node, noise, signal, status, until};
use gemba_node::client::ApiFile;
use gemba_node::handover::Giver;

const MIB: usize = 1 << 20;

fn api(node: &Node) -> ApiFile {
    ApiFile::read(&node.repo.join("api")).unwrap().unwrap()
}

/// Sizes around the least that is handed over, in folders, many at once: the roots are those of a repository without a daemon.
#[test]
fn handed_files_give_the_same_roots_as_sent_ones() {
    let (with, without) = (Node::new(), Node::new());
    let _daemon = Daemon::start(&with, &[]);
    let least = usize::try_from(gemba_node::handover::LEAST).unwrap();
    for (n, len) in [0, 1, least - 1, least, least + 1, 3 * MIB + 17]
        .into_iter()
        .enumerate()
    {
        for node in [&with, &without] {
            node.write(&format!("f/{n}/file"), noise(n as u64, len));
        }
    }
    // More than a socket's queue holds, so that the caller waits for the daemon.
    for n in 0..400 {
        for node in [&with, &without] {
            node.write(&format!("f/many/{n}"), noise(n, least));
        }
    }
    let root = with.add(&with.path("f"), &[]);
    assert_eq!(root, without.add(&without.path("f"), &[]));
    assert_eq!(
        with.run(&["cat", &format!("{root}/5/file")]).stdout,
        noise(5, 3 * MIB + 17)
    );
    let added = with.lines(&["add", "f/5/file"]);
    assert_eq!(added.len(), 1, "progress is no entry: {added:?}");
}

/// The socket is for the owner alone, asks for the token, and is gone with the daemon; one that a killed daemon left does no harm.
#[test]
fn the_socket_asks_for_the_token_and_goes_with_the_daemon() {
    let node = Node::new();
    let socket = node.repo.join("files.sock");
    let mut daemon = Daemon::start(&node, &[]);
    let mode = socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let api = api(&node);
    let name = "0123456789abcdef0123456789abcdef";
    assert!(Giver::connect(&socket, &api.token, name).is_some());
    assert!(Giver::connect(&socket, &"0".repeat(64), name).is_none());
    assert!(Giver::connect(&socket, "", name).is_none(), "nothing said");
    signal(daemon.child.id(), rustix::process::Signal::KILL);
    daemon.child.wait().unwrap();
    assert!(socket.exists());
    let file = node.write("big", noise(1, MIB));
    let mut daemon = Daemon::start(&node, &[]);
    node.add(&file, &[]);
    signal(daemon.child.id(), rustix::process::Signal::TERM);
    daemon.child.wait().unwrap();
    assert!(!socket.exists());
}

/// Frames of the tree stream, by hand.
fn tree_of_one_handed_file() -> Vec<u8> {
    // HANDED_FILE: a head of no flags and the name "x"; END_OF_TREE.
    [b"GEMBATR1".as_slice(), &[8, 3, 0, 1, b'x'], &[7, 0]].concat()
}

fn post(node: &Node, query: &str) -> (u16, String) {
    let api = api(node);
    let body = tree_of_one_handed_file();
    let mut stream = std::net::TcpStream::connect(api.address).unwrap();
    let head = format!(
        "POST /v1/add{query} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        api.address,
        api.token,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    (code, text)
}

/// Whoever announces a file and does not hand it over, hands over something else, or claims what is another's, is refused with the cause.
#[test]
fn what_is_not_handed_over_is_refused_with_its_cause() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let (code, text) = post(&node, "");
    assert_eq!(code, 400, "{text}");
    assert!(text.contains("handed over by nobody"), "{text}");
    let (code, text) = post(&node, "?handover=00000000000000000000000000000000");
    assert_eq!(code, 400, "{text}");

    let api = api(&node);
    let socket = api.files.unwrap();
    let connect = |name: &str| Giver::connect(&socket, &api.token, name).unwrap();
    let name = |n: u32| format!("{n:032x}");

    // A folder and a pipe are no files with an end.
    for (n, what) in [(1, node.dir.path()), (2, Path::new("/dev/null"))] {
        let giver = connect(&name(n));
        giver.give(&File::open(what).unwrap()).unwrap();
        let (code, text) = post(&node, &format!("?handover={}", name(n)));
        assert_eq!(code, 400, "{text}");
        assert!(text.contains("no regular file"), "{text}");
    }
    // Gone before it was taken.
    drop(connect(&name(3)));
    let (code, text) = post(&node, &format!("?handover={}", name(3)));
    assert!(code >= 400 && text.contains("went away"), "{text}");
    // A name counts once.
    let giver = connect(&name(4));
    let file = node.write("x", noise(4, 2 * MIB));
    giver.give(&File::open(&file).unwrap()).unwrap();
    let (code, text) = post(&node, &format!("?handover={}", name(4)));
    assert!(code == 200 && text.contains("\"cid\""), "{text}");
    assert_eq!(post(&node, &format!("?handover={}", name(4))).0, 400);
    status(&node);
    node.ok(&["repo", "verify"]);
}

/// Callers that never make their request are bounded, and others are served beside them.
#[test]
fn callers_that_say_nothing_are_bounded() {
    let node = Node::new();
    let daemon = Daemon::start(&node, &[]);
    let api = api(&node);
    let socket = api.files.unwrap();
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id()))
            .unwrap()
            .count()
    };
    let before = open();
    let idle: Vec<_> = (0..300_u32)
        .filter_map(|n| Giver::connect(&socket, &api.token, &format!("{n:032x}")))
        .collect();
    assert!(open() < before + 80, "{before}, then {}", open());
    let file = node.write("big", noise(1, 3 * MIB));
    assert_eq!(
        node.run(&["cat", &node.add(&file, &[])]).stdout,
        noise(1, 3 * MIB)
    );
    drop(idle);
}

/// Whoever breaks an add off in the middle of a handed file ends it: the daemon reads no further.
#[test]
fn an_interrupted_add_of_a_handed_file_ends_in_the_daemon() {
    let node = Node::new();
    let daemon = Daemon::start(&node, &[]);
    let path = node.path("huge");
    // Sparse: it costs no disk to have, and seconds to read.
    File::create(&path).unwrap().set_len(64 << 30).unwrap();
    let mut child = node
        .command(&["add", "-Q", "huge"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let reads = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap();
        open.flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|target| target == path)
    };
    until("the daemon reads the file", reads);
    signal(child.id(), rustix::process::Signal::INT);
    child.wait().unwrap();
    until("the daemon let go of the file", || !reads());
    assert_eq!(status(&node)["pins"]["pinned"].as_u64().unwrap_or(0), 0);
}
