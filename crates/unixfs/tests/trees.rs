//! Row U8 with our own eyes: random trees go in and come out, and going in again they are the same DAG. (The same
//! trees against a real Kubo are in `interop/`.)
#![cfg(all(feature = "fs", unix))]
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::Memory;
use gemba_testkit::dag::{TreeShape, content};
use gemba_testkit::{Rng, Tree, sim_scale};
use gemba_unixfs::fs::{ExportError, ExportOptions, ExportReport, ImportOptions, export, import};
use gemba_unixfs::{
    Block, BlockSource, Bytes, Cid, CidVersion, Estimation, Meta, Part, Profile, SourceError,
    TreeImporter,
};

fn random_profile(rng: &mut Rng) -> Profile {
    let profile = if rng.coin() {
        Profile::unixfs_v1_2025()
    } else {
        Profile::unixfs_v0_2015()
    };
    let profile = profile.max_links(2 + rng.index(20)).unwrap();
    let profile = profile.chunk_size(1 + rng.index(50_000) + 500).unwrap();
    let profile = if rng.coin() {
        profile.cid_version(CidVersion::V1)
    } else {
        profile
    };
    let profile = if rng.chance(1, 3) {
        profile.raw_leaves(rng.coin())
    } else {
        profile
    };
    let estimation = if rng.coin() {
        Estimation::Links
    } else {
        Estimation::Block
    };
    let profile = profile.hamt_threshold(rng.below(2000), estimation);
    let profile = profile.hamt_fanout(8 << rng.below(8)).unwrap();
    profile
        .preserve_mode(rng.chance(1, 4))
        .preserve_mtime(rng.chance(1, 4))
}

fn import_path(path: &Path, profile: &Profile, workers: usize, store: &mut Memory) -> Part {
    let options = ImportOptions {
        hidden: true,
        workers,
        ..ImportOptions::default()
    };
    import(path, profile, &options, store).unwrap()
}

/// A source that fails after some blocks: the network, the power, the patience of the operator.
struct Failing<'a> {
    store: &'a mut Memory,
    left: u64,
}

impl BlockSource for Failing<'_> {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| SourceError::missing(cid))?;
        self.store.get(cid)
    }
}

#[test]
fn u8_random_trees_go_in_and_come_out() {
    let shape = TreeShape {
        depth: 3,
        entries: 8,
        file: 60_000,
        symlinks: true,
    };
    let mut rng = Rng::from_env_or(0x0b0a);
    for _ in 0..sim_scale(800) {
        let tree = Tree::random(&mut rng, &shape);
        let profile = random_profile(&mut rng);
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("in");
        tree.write_to(&at).unwrap();
        let mut store = Memory::default();
        let part = import_path(&at, &profile, 1, &mut store);
        let several = import_path(&at, &profile, 1 + rng.index(4), &mut store);
        assert_eq!(part, several, "the number of threads does not matter");
        let plain = !profile.preserves_mode() && !profile.preserves_mtime();
        if plain {
            assert_eq!(
                events(&tree, &profile),
                part.cid,
                "a walk of names is a walk of a folder"
            );
        }
        let last = store.entries.last().unwrap();
        assert_eq!((last.part, last.is_dir), (part, true));

        // Interrupted anywhere, any number of times, and then whole.
        let target = dir.path().join("out");
        let options = ExportOptions {
            sync: false,
            ..ExportOptions::default()
        };
        let mut go = |_: &ExportReport| ControlFlow::Continue(());
        for _ in 0..rng.below(3) {
            let left = rng.below(1 + store.blocks.len() as u64);
            let mut failing = Failing {
                store: &mut store,
                left,
            };
            match export(&mut failing, part.cid, &target, &options, &mut go) {
                Ok(_) => std::fs::remove_dir_all(&target).unwrap(),
                Err(ExportError::Source { .. }) => assert!(!target.exists()),
                Err(other) => panic!("{other}"),
            }
        }
        let report = export(&mut store, part.cid, &target, &options, &mut go).unwrap();
        assert_eq!(report.bytes, tree.bytes());
        assert_eq!(report.entries as usize, tree.walk().len() + 1);
        assert_eq!(tree.difference(&target).unwrap(), None);
        if plain {
            assert_eq!(import_path(&target, &profile, 2, &mut store), part);
        }
    }
}

/// The tree as events, entries in another order than the folder's.
fn events(tree: &Tree, profile: &Profile) -> Cid {
    fn add(tree: &Tree, name: &[u8], importer: &mut TreeImporter, store: &mut Memory) {
        let none = Meta::default();
        match tree {
            Tree::File { len, seed } => {
                importer
                    .file(name, &none, &mut &content(*len, *seed)[..], store)
                    .unwrap();
            }
            Tree::Symlink(target) => importer
                .symlink(name, target.as_bytes(), &none, store)
                .unwrap(),
            Tree::Dir(entries) => {
                importer.enter_dir(name, &none, store).unwrap();
                for (name, entry) in entries.iter().rev() {
                    add(entry, name.as_bytes(), importer, store);
                }
                importer.leave_dir(store).unwrap();
            }
        }
    }
    let mut store = Memory::default();
    let mut importer = TreeImporter::new(profile, 2);
    add(tree, b"", &mut importer, &mut store);
    importer.finish(&mut store).unwrap().cid
}

/// The name of a root is no part of it, and nothing about attributes is stored unless asked for.
#[test]
fn u10_holes_and_empty_files_are_content() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
    sparse.set_len(3_000_000).unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let mut store = Memory::default();
    let part = import_path(dir.path(), &Profile::default(), 2, &mut store);
    let zeros = vec![0; 3_000_000];
    let (_, whole) = common::import_bytes(&zeros, &Profile::default(), 1);
    assert_eq!(store.entries[1].part, whole);
    assert_eq!(store.entries[0].part.content, 0);
    // Equal chunks are one block, counted as often as they occur.
    assert!(store.blocks.len() <= 6);
    assert!(part.tsize > 3_000_000);
    let target = dir.path().join("out");
    let mut go = |_: &ExportReport| ControlFlow::Continue(());
    export(
        &mut store,
        part.cid,
        &target,
        &ExportOptions::default(),
        &mut go,
    )
    .unwrap();
    assert_eq!(std::fs::read(target.join("sparse")).unwrap(), zeros);
    assert_eq!(std::fs::read(target.join("empty")).unwrap(), Bytes::new());
}

/// Batches are bounded in blocks and bytes, and small files share them.
#[test]
fn batches_are_bounded_and_shared() {
    struct Sizes(Vec<(usize, usize)>);
    impl gemba_unixfs::ImportSink for Sizes {
        fn blocks(&mut self, blocks: Vec<Block>) -> Result<(), gemba_unixfs::BoxError> {
            self.0.push((
                blocks.len(),
                blocks.iter().map(|block| block.data().len()).sum(),
            ));
            Ok(())
        }
    }
    let none = Meta::default();
    for workers in [1, 2] {
        let mut sizes = Sizes(Vec::new());
        let mut importer = TreeImporter::new(&Profile::default(), workers);
        importer.enter_dir(b"", &none, &mut sizes).unwrap();
        for index in 0..2000u32 {
            let name = index.to_string();
            importer
                .file(
                    name.as_bytes(),
                    &none,
                    &mut name.repeat(200).as_bytes(),
                    &mut sizes,
                )
                .unwrap();
        }
        importer
            .file(b"big", &none, &mut &vec![1; 40 << 20][..], &mut sizes)
            .unwrap();
        importer.leave_dir(&mut sizes).unwrap();
        importer.finish(&mut sizes).unwrap();
        let limit = (3 << 20) + (2 << 20);
        assert!(
            sizes
                .0
                .iter()
                .all(|(count, bytes)| *count <= 257 && *bytes <= limit),
            "{:?}",
            sizes.0
        );
        assert!(
            sizes.0.len() <= 2000 / 256 + 40 / 3 + 3,
            "{} batches",
            sizes.0.len()
        );
    }
}

/// A sink that fails ends the import with its own error, also while workers are busy.
#[test]
fn a_failing_sink_ends_the_import() {
    for workers in [1, 4] {
        let mut calls = 0;
        let mut full = |_: Vec<Block>| {
            calls += 1;
            if calls == 2 {
                Err("the disk is full".into())
            } else {
                Ok(())
            }
        };
        let content = vec![7; 64 << 20];
        let failed =
            gemba_unixfs::import_reader(&content[..], &Profile::default(), workers, &mut full);
        assert!(failed.unwrap_err().to_string().contains("the disk is full"));
        assert_eq!(calls, 2);
    }
}
