//! S4.23, S1.32: the files on disk, byte for byte, of every format; each is read by every later one.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemba_block::{Block, MhCode, codec};
use gemba_store::{Config, Store};
use gemba_testkit::disk::SimDisk;

/// The `version` file of format 1; that of format 2 is the golden file `version-2`. Packs are the same in both.
const VERSION: &[u8] = b"gemba-store 1\nid 0123456789abcdef\n";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../specs/vectors/store")
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap()
}

/// What specs/vectors/store/README.md lists.
fn blocks() -> Vec<Block> {
    vec![
        Block::raw("hello world").unwrap(),
        Block::v0(vec![0x0a, 0x02, 0x08, 0x01]).unwrap(),
        Block::encode(codec::RAW, MhCode::Blake3, "gemba").unwrap(),
        Block::raw("").unwrap(),
        Block::raw("deleted").unwrap(),
    ]
}

/// Two groups and a deletion in a pack that was closed in order, and one group in the next pack.
fn write() -> SimDisk {
    let sim = SimDisk::new(1);
    sim.install(&Path::new(common::DIR).join("version"), VERSION.to_vec());
    let blocks = blocks();
    let open = |pack_bytes| {
        let config = Config::default().pack_bytes(pack_bytes);
        Store::open_on(Arc::new(sim.clone()), common::DIR, config).unwrap()
    };
    let store = open(4 << 10);
    store.put_many(&blocks[..2]).unwrap();
    store.put_many(&blocks[2..]).unwrap();
    store.delete_many(&[*blocks[4].cid()]).unwrap();
    // More than is left of the first pack: it is sealed.
    store
        .put_many(&[Block::raw(vec![0x5a; 4000]).unwrap()])
        .unwrap();
    drop(store);
    sim
}

#[test]
fn s4_23_the_files_are_written_as_the_golden_ones() {
    let sim = write();
    if std::env::var_os("GEMBA_WRITE_VECTORS").is_some() {
        std::fs::write(vectors().join("version"), VERSION).unwrap();
        let now = sim.bytes(&Path::new(common::DIR).join("version"));
        std::fs::write(vectors().join("version-2"), now.unwrap()).unwrap();
        for number in 1..=2 {
            let name = format!("{number:06}.pack");
            std::fs::write(
                vectors().join(name),
                sim.bytes(&common::pack(number)).unwrap(),
            )
            .unwrap();
        }
    }
    for number in 1..=2 {
        let name = format!("{number:06}.pack");
        assert!(
            sim.bytes(&common::pack(number)).unwrap() == golden(&name),
            "{name} is written in another way than formats 1 and 2 have it"
        );
    }
    let version = |name| sim.bytes(&Path::new(common::DIR).join(name)).unwrap();
    assert_eq!(version("version"), golden("version-2"));
    assert_eq!(version("version.1"), golden("version"));
}

#[test]
fn s4_23_s1_32_the_golden_files_of_every_format_are_read() {
    for version in ["version", "version-2"] {
        read(version);
    }
}

fn read(version: &str) {
    let sim = SimDisk::new(1);
    for (name, file) in [
        ("version", version),
        ("000001.pack", "000001.pack"),
        ("000002.pack", "000002.pack"),
    ] {
        sim.install(&Path::new(common::DIR).join(name), golden(file));
    }
    let store = Store::open_read_only_on(Arc::new(sim), common::DIR, Config::default()).unwrap();
    let blocks = blocks();
    for block in &blocks[..4] {
        assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
    }
    assert!(!store.has(blocks[4].cid()));
    assert_eq!(store.stat().blocks, 5);
    assert_eq!(*store.open_report(), gemba_store::OpenReport::default());
}
