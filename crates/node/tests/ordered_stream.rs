//! `GET /v1/get`: a folder export reads the daemon's stream block by block, in the stream's order.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;

use cid::Cid;
use common::{noise, tree};
use gemba_node::content::add::{AddObserver, Entry, add};
use gemba_node::content::car::{OrderedSource, export_in_order};
use gemba_node::content::folder::{LeftOut, WalkOptions, walk};
use gemba_node::content::room::Puts;
use gemba_node::content::{StoreSource, read};
use gemba_node::error::{Code, Fail};
use gemba_store::{Config, Store};
use gemba_unixfs::fs::ExportOptions;
use gemba_unixfs::{BlockSource, Estimation, Profile};

struct Silent;

impl AddObserver for Silent {
    fn entry(&mut self, _: &Entry) -> Result<(), Fail> {
        Ok(())
    }
}

/// A folder that needs every kind of block: shards, several levels of file nodes, the same file twice, empty things.
fn sample(dir: &std::path::Path) -> std::path::PathBuf {
    let folder = dir.join("f");
    std::fs::create_dir_all(folder.join("many")).unwrap();
    std::fs::create_dir_all(folder.join("empty")).unwrap();
    for i in 0..500 {
        std::fs::write(folder.join(format!("many/{i}")), format!("{}", i % 50)).unwrap();
    }
    std::fs::write(folder.join("large"), noise(1, 300_000)).unwrap();
    std::fs::write(folder.join("again"), noise(1, 300_000)).unwrap();
    std::fs::write(folder.join("nothing"), "").unwrap();
    std::os::unix::fs::symlink("large", folder.join("link")).unwrap();
    folder
}

fn stored(dir: &std::path::Path, profile: &Profile) -> (Store, Cid) {
    let store = Store::open(dir.join("store"), Config::default()).unwrap();
    let folder = sample(dir);
    let root = add(
        Some(&Puts::new(store.clone())),
        profile,
        &mut Silent,
        |visitor| {
            walk(
                &folder,
                b"f",
                visitor,
                &mut WalkOptions {
                    hidden: true,
                    check: &mut || Ok(()),
                    left_out: &mut LeftOut::default(),
                },
            )
        },
    );
    (store, root.unwrap().cid)
}

fn profiles() -> [Profile; 2] {
    let small = |profile: Profile| {
        profile
            .chunk_size(1000)
            .unwrap()
            .max_links(7)
            .unwrap()
            .hamt_threshold(500, Estimation::Block)
    };
    [
        small(Profile::unixfs_v1_2025()),
        small(Profile::unixfs_v0_2015()),
    ]
}

fn stream(store: &Store, root: Cid) -> Vec<u8> {
    let mut bytes = Vec::new();
    export_in_order(&mut StoreSource(store.clone()), root, &mut bytes).unwrap();
    bytes
}

fn options() -> ExportOptions {
    ExportOptions {
        sync: false,
        ..ExportOptions::default()
    }
}

#[test]
fn an_export_from_the_stream_equals_the_folder() {
    for profile in profiles() {
        let dir = tempfile::tempdir().unwrap();
        let (store, root) = stored(dir.path(), &profile);
        let bytes = stream(&store, root);
        let (mut source, named) = OrderedSource::new(bytes.as_slice()).unwrap();
        assert_eq!(named, root);
        let out = dir.path().join("out");
        read::export(&mut source, root, &out, &options(), &mut |_| Ok(())).unwrap();
        assert_eq!(tree(&out), tree(&dir.path().join("f")));
    }
}

/// What an earlier export finished is left out, so the reader skips over its blocks.
#[test]
fn an_interrupted_export_goes_on_from_a_new_stream() {
    let dir = tempfile::tempdir().unwrap();
    let (store, root) = stored(dir.path(), &profiles()[0]);
    let bytes = stream(&store, root);
    let out = dir.path().join("out");
    let (mut source, _) = OrderedSource::new(bytes.as_slice()).unwrap();
    let mut steps = 0;
    let stopped = read::export(&mut source, root, &out, &options(), &mut |_| {
        steps += 1;
        if steps == 700 {
            Err(Fail::new(Code::Interrupted, "enough"))
        } else {
            Ok(())
        }
    });
    assert_eq!(stopped.unwrap_err().code, Code::Interrupted);
    assert!(!out.exists());
    let (mut source, _) = OrderedSource::new(bytes.as_slice()).unwrap();
    let report = read::export(&mut source, root, &out, &options(), &mut |_| Ok(())).unwrap();
    assert!(report.resumed_files > 0, "{report:?}");
    assert_eq!(tree(&out), tree(&dir.path().join("f")));
}

#[test]
fn a_stream_that_breaks_off_or_lacks_a_block_is_an_error_and_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (store, root) = stored(dir.path(), &profiles()[0]);
    let bytes = stream(&store, root);
    for cut in [0, 1, 30, bytes.len() / 2, bytes.len() - 1] {
        let out = dir.path().join(format!("out{cut}"));
        let failed = OrderedSource::new(&bytes[..cut]).and_then(|(mut source, root)| {
            read::export(&mut source, root, &out, &options(), &mut |_| Ok(()))
        });
        assert!(failed.is_err(), "cut at {cut}");
        assert!(!out.exists());
    }
    let (mut source, _) = OrderedSource::new(bytes.as_slice()).unwrap();
    let absent: Cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
        .parse()
        .unwrap();
    assert!(source.get(&absent).is_err());
}

#[test]
fn hostile_streams_are_refused_before_anything_is_allocated() {
    for bytes in [
        &[0xff, 0xff, 0xff, 0xff, 0x0f][..],
        &[0xff, 0xff, 0xff, 0x7f],
        &[3, 1, 2, 3],
        b"HTTP/1.1 200 OK\r\n\r\n",
    ] {
        assert!(OrderedSource::new(bytes).is_err());
    }
}

/// The blocks of an add are durable before its entries are told, whatever the number of batches.
#[test]
fn an_entry_is_told_when_its_blocks_are_stored() {
    struct InStore(Store, u64);
    impl AddObserver for InStore {
        fn entry(&mut self, entry: &Entry) -> Result<(), Fail> {
            assert!(self.0.has(&entry.cid), "{entry:?} was told too early");
            self.1 += 1;
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = sample(dir.path());
    let store = Store::open(dir.path().join("store"), Config::default()).unwrap();
    let mut observer = InStore(store.clone(), 0);
    let root = add(
        Some(&Puts::new(store.clone())),
        &profiles()[0],
        &mut observer,
        |visitor| {
            walk(
                &folder,
                b"f",
                visitor,
                &mut WalkOptions {
                    hidden: true,
                    check: &mut || Ok(()),
                    left_out: &mut LeftOut::default(),
                },
            )
        },
    );
    let root = root.unwrap();
    assert_eq!((observer.1, root.name.as_slice()), (507, &b"f"[..]));
    let mut blocks = 0;
    store
        .for_each_cid(|_, _| {
            blocks += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(blocks, store.stat().blocks);
}

/// An observer that fails ends the add with its failure, and the writing thread is gone when it returns.
#[test]
fn a_failing_observer_ends_the_add_with_its_failure() {
    struct Fails(u32);
    impl AddObserver for Fails {
        fn entry(&mut self, _: &Entry) -> Result<(), Fail> {
            self.0 += 1;
            if self.0 > 3 {
                Err(Fail::new(Code::NoDaemon, "gone"))
            } else {
                Ok(())
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = sample(dir.path());
    let store = Store::open(dir.path().join("store"), Config::default()).unwrap();
    let outcome = add(
        Some(&Puts::new(store.clone())),
        &profiles()[0],
        &mut Fails(0),
        |visitor| {
            walk(
                &folder,
                b"f",
                visitor,
                &mut WalkOptions {
                    hidden: true,
                    check: &mut || Ok(()),
                    left_out: &mut LeftOut::default(),
                },
            )
        },
    );
    assert_eq!(outcome.unwrap_err().code, Code::NoDaemon);
    drop(store);
    // Nobody else holds it.
    Store::open(dir.path().join("store"), Config::default()).unwrap();
}
