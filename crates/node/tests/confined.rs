//! Export through the command line never leaves its folder, whatever names and links a DAG holds (threat rows U1, U2).
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Node, tree};
use gemba_unixfs::dagpb::{self, FsData, Kind, Link};

/// Stores a folder with one entry of this name, without the checks of an importer.
fn folder_with(node: &Node, entries: &[(&[u8], &str)]) -> String {
    let cids: Vec<cid::Cid> = entries
        .iter()
        .map(|(_, cid)| cid.parse().unwrap())
        .collect();
    let links: Vec<Link<'_>> = entries
        .iter()
        .zip(&cids)
        .map(|((name, _), cid)| Link::new(*cid, name, 5))
        .collect();
    node.put(
        "dag-pb",
        &dagpb::encode(
            links.into_iter(),
            Some(&FsData::new(Kind::Directory).encode()),
        ),
    )
}

fn symlink_to(node: &Node, target: &str) -> String {
    let mut data = FsData::new(Kind::Symlink);
    data.data = Some(target.to_owned().into());
    node.put(
        "dag-pb",
        &dagpb::encode(std::iter::empty(), Some(&data.encode())),
    )
}

/// Everything beside the repository. An export of a DAG that can never be written leaves nothing.
fn outside(node: &Node) -> Vec<std::path::PathBuf> {
    let all = tree(node.dir.path()).into_keys();
    all.filter(|path| !path.starts_with("repo")).collect()
}

fn check_hostile(node: &Node, root: &str) {
    let before = outside(node);
    let failure = node.fails(&["get", root, "-o", "out"], 8);
    assert!(!failure.cause.is_empty());
    assert_eq!(outside(node), before);
}

fn hostile_dags(node: &Node) -> Vec<String> {
    let file = node.put("raw", b"owned");
    let names: [&[u8]; 7] = [
        b"../escaped",
        b"..",
        b".",
        b"",
        b"a/b",
        b"/tmp/escaped",
        b"nul\0",
    ];
    let mut roots: Vec<String> = names
        .iter()
        .map(|name| folder_with(node, &[(name, &file)]))
        .collect();
    // A link out of the folder, and then a file below the link's name.
    let link = symlink_to(node, "..");
    let inner = folder_with(node, &[(b"escaped", &file)]);
    roots.push(folder_with(node, &[(b"x", &link), (b"x", &inner)]));
    roots.push(folder_with(node, &[(b"x", &inner), (b"x", &link)]));
    roots
}

#[test]
fn u1_names_that_leave_the_folder_are_refused() {
    let node = Node::new();
    for root in hostile_dags(&node) {
        check_hostile(&node, &root);
    }
}

/// The same through a daemon, where the command line exports from the daemon's stream.
#[test]
fn u1_names_that_leave_the_folder_are_refused_through_the_daemon() {
    let node = Node::new();
    let roots = hostile_dags(&node);
    let _daemon = Daemon::start(&node, &[]);
    for root in roots {
        check_hostile(&node, &root);
    }
}

/// A link is written as a link and never followed.
#[test]
fn u2_links_out_of_the_folder_are_written_and_not_followed() {
    let node = Node::new();
    let victim = node.write("victim", "safe");
    let link = symlink_to(&node, "../victim");
    let root = folder_with(&node, &[(b"l", &link)]);
    node.ok(&["get", &root, "-o", "out"]);
    assert_eq!(
        std::fs::read_link(node.path("out/l")).unwrap(),
        std::path::Path::new("../victim")
    );
    // A second export over it replaces the link's folder, not what the link points to.
    let file = node.put("raw", b"owned");
    let second = folder_with(&node, &[(b"l", &file)]);
    node.ok(&["get", &second, "-o", "out", "--overwrite"]);
    assert_eq!(std::fs::read(&victim).unwrap(), b"safe");
    assert_eq!(std::fs::read(node.path("out/l")).unwrap(), b"owned");
}
