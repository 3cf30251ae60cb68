//! A new version of a folder costs what is new in it: bytes on the wire, counted between the nodes.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Daemon, Node, Swarm, address, id, noise, status, until};
use serde_json::Value;

/// What may come besides the blocks: answers, frames, pings.
const BESIDES: u64 = 4 << 10;

/// Stands between two nodes and counts what goes to the one that dials.
struct Counter {
    port: u16,
    received: Arc<AtomicU64>,
}

impl Counter {
    fn before(node: &Node) -> Self {
        let target: u16 = address(node).split('/').nth(4).unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(("127.0.0.1", target)).unwrap();
                let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let count = Arc::clone(&count);
                std::thread::spawn(move || carry(near, far, &AtomicU64::new(0)));
                std::thread::spawn(move || carry(far2, near2, &count));
            }
        });
        Self { port, received }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        count.fetch_add(len as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(Shutdown::Both);
}

/// Adds a folder; what stands under each name.
fn add(node: &Node, folder: &Path) -> Vec<Value> {
    node.lines(&["add", folder.to_str().unwrap()])
}

fn cid<'a>(added: &'a [Value], name: &str) -> &'a str {
    let entry = added.iter().find(|entry| entry["name"] == name);
    entry.unwrap_or_else(|| panic!("{name} was not added"))["cid"]
        .as_str()
        .unwrap()
}

/// 2000 files of 1 KiB, in one folder or in folders of fifty; one of them changes, and the new version is pinned where the old one is: the
/// changed leaf and the folders on its path come, and at most 4 KiB besides.
#[test]
fn one_changed_file_of_two_thousand_costs_its_leaf_and_the_folders_above_it() {
    for in_folders in [false, true] {
        let swarm = Swarm::of(1);
        let (a, b) = (swarm.node(0), Node::bare());
        b.ok(&[
            "init",
            "--swarm-key",
            a.repo.join("swarm.key").to_str().unwrap(),
        ]);
        let counter = Counter::before(a);
        let known = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", counter.port, id(a));
        let _daemon = Daemon::start(&b, &["--bootstrap", &known]);
        until("a connection", || status(&b)["peers"] == 1);

        let name = |file: u64| match in_folders {
            true => format!("all/{}/{file}", file / 50),
            false => format!("all/{file}"),
        };
        for file in 0..2000 {
            a.write(&name(file), noise(file, 1024));
        }
        let old = add(a, &a.path("all"));
        b.ok(&["pin", "add", cid(&old, "all")]);
        a.write(&name(1234), noise(9999, 1024));
        let new = add(a, &a.path("all"));
        let changed = name(1234);
        let path: Vec<&Path> = Path::new(&changed).ancestors().collect();
        let path: Vec<&str> = path.iter().map(|at| at.to_str().unwrap()).collect();
        let path: Vec<&str> = path.into_iter().filter(|at| !at.is_empty()).collect();
        let size = |name: &&str| {
            assert_ne!(cid(&old, name), cid(&new, name), "{name}");
            a.json(&["block", "stat", cid(&new, name)])["size"]
                .as_u64()
                .unwrap()
        };
        let wanted: u64 = path.iter().map(size).sum();

        let (before, wire) = (status(&b)["transfer"].clone(), counter.received());
        b.ok(&["pin", "add", cid(&new, "all")]);
        let (after, wire) = (status(&b)["transfer"].clone(), counter.received() - wire);
        let more = |name: &str| after[name].as_u64().unwrap() - before[name].as_u64().unwrap();
        assert_eq!(more("blocks_in"), path.len() as u64, "{path:?}");
        assert_eq!(more("bytes_in"), wanted, "{path:?}");
        println!(
            "one of 2000 files changed: {} blocks with {wanted} bytes, and {} bytes besides on the wire",
            path.len(),
            wire - wanted
        );
        assert!(wire <= wanted + BESIDES, "{wire} bytes for {wanted}");
    }
}
