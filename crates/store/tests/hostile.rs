//! What careless callers, odd files and odd names can do to a store, by somebody who did not write the crate.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use gemba_block::codec::RAW;
use gemba_block::{Block, Cid, MAX_BLOCK_BYTES, MhCode};
use gemba_store::{Aim, Config, ScrubPoint, Store, StoreError};

fn small() -> Config {
    Config::default().pack_bytes(0).open_packs(0)
}

fn blocks(from: u32, count: u32) -> Vec<Block> {
    (from..from + count)
        .map(|i| Block::raw(i.to_be_bytes().repeat(100)).unwrap())
        .collect()
}

fn listed(store: &Store) -> BTreeSet<Cid> {
    let mut all = BTreeSet::new();
    store
        .for_each_cid(|cid, _| {
            all.insert(cid);
            ControlFlow::Continue(())
        })
        .unwrap();
    all
}

/// Fails instead of hanging: the limit is only reached by a deadlock.
fn within_a_minute(run: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        run();
        let _ = done.send(());
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("deadlock"),
        _ => thread.join().unwrap(),
    }
}

/// A caller that does everything else from inside the callbacks: lists, puts, deletes, scrubs and takes guards.
#[test]
fn callbacks_may_use_the_store_they_are_called_from() {
    within_a_minute(|| {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), small()).unwrap();
        let old = blocks(0, 60);
        store.put_many(&old).unwrap();
        let mut next = 1000;
        let mut meddle = |cid: Cid| {
            let _guard = store.guard();
            let new = blocks(next, 3);
            next += 3;
            assert_eq!(store.put_many(&new).unwrap().new, 3);
            store.delete_many(&[cid]).unwrap();
            assert_eq!(store.get(&cid).unwrap(), None);
            assert!(listed(&store).contains(new[2].cid()));
            let scrub = store.verify(|_| ControlFlow::Break(())).unwrap();
            assert!(scrub.corrupt.is_empty());
        };
        let mut shown = 0;
        store
            .for_each_cid(|cid, _| {
                shown += 1;
                meddle(cid);
                if shown < 60 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .unwrap();
        let mut steps = 0;
        let report = store
            .verify(|_| {
                steps += 1;
                meddle(*listed(&store).first().unwrap());
                if steps < 5 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .unwrap();
        assert!(report.corrupt.is_empty(), "{report:?}");
        assert_eq!(store.stat().blocks, listed(&store).len() as u64);
    });
}

/// The same name many times in one call, names that were never put, names that are their content, and all calls with nothing.
#[test]
fn counts_are_right_however_often_a_name_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    let (one, none) = (&blocks(1, 1)[0], *blocks(2, 1)[0].cid());
    let identity = Block::encode(RAW, MhCode::Identity, vec![7; 64]).unwrap();
    let report = store
        .put_many(&[&[identity.clone()][..], &vec![one.clone(); 40_000]].concat())
        .unwrap();
    assert_eq!((report.new, report.present), (1, 40_000));
    assert_eq!(store.put_many(&[]).unwrap().new, 0);
    assert_eq!(store.delete_many(&[]).unwrap().removed, 0);
    let mut gone = vec![*one.cid(); 40_000];
    gone.extend([none, *identity.cid()]);
    let report = store.delete_many(&gone).unwrap();
    assert_eq!((report.removed, report.absent), (1, 40_001));
    let stat = store.stat();
    assert_eq!((stat.blocks, stat.bytes), (0, 0));
    assert!(store.has(identity.cid()) && !store.has(one.cid()));
}

/// Empty and largest blocks under every function, and a shortened digest beside the full one: each is its own key, now and later.
#[test]
fn every_name_that_is_taken_finds_its_own_block() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), small()).unwrap();
    let mut all = Vec::new();
    for code in [0x11, 0x12, 0x13, 0x14, 0x16, 0x1e] {
        let code = MhCode::from_code(code).unwrap();
        for data in [vec![], vec![0xf7]] {
            let full = Block::encode(u64::MAX, code, data.clone()).unwrap();
            for len in (20..code.digest_len().unwrap()).step_by(11) {
                let digest = &full.cid().hash().digest()[..len];
                let hash = cid::multihash::Multihash::wrap(code.code(), digest).unwrap();
                all.push(Block::new(Cid::new_v1(RAW, hash), data.clone()).unwrap());
            }
            all.push(full);
        }
    }
    all.push(Block::raw(vec![0xf7; MAX_BLOCK_BYTES]).unwrap());
    let names: BTreeSet<_> = all.iter().map(|b| b.cid().hash().to_bytes()).collect();
    assert_eq!(store.put_many(&all).unwrap().new, names.len() as u64);
    drop(store);
    let store = Store::open(dir.path(), small()).unwrap();
    for block in &all {
        assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
    }
    assert_eq!(listed(&store).len(), names.len());
}

/// Clones are dropped while threads put and delete, and a guard is left over: nothing holds the lock, and nothing that was
/// acknowledged is missing.
#[test]
fn a_store_that_is_dropped_in_the_middle_of_calls_opens_again_at_once_with_all_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), small()).unwrap();
    let (guard, stop) = (store.guard(), Arc::new(AtomicBool::new(false)));
    let threads: Vec<_> = (0..4_u32)
        .map(|t| {
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut kept = Vec::new();
                for round in 0..50 {
                    let batch = blocks(t << 16 | round << 4, 4);
                    store.put_many(&batch).unwrap();
                    // Guarded: stays.
                    store.delete_many(&[*batch[0].cid()]).unwrap();
                    kept.extend(batch);
                    if stop.load(Ordering::Relaxed) && round > 5 {
                        break;
                    }
                }
                kept
            })
        })
        .collect();
    drop(store);
    stop.store(true, Ordering::Relaxed);
    let kept: Vec<_> = threads
        .into_iter()
        .flat_map(|t| t.join().unwrap())
        .collect();
    let again = Store::open(dir.path(), small()).unwrap();
    assert!(again.open_report().damage.is_empty());
    for block in &kept {
        assert_eq!(again.get(block.cid()).unwrap().as_ref(), Some(block.data()));
    }
    // The guard of the store that is gone says nothing about this one.
    let report = again.delete_many(&[*kept[0].cid()]).unwrap();
    assert_eq!((report.removed, report.guarded), (1, 0));
    drop(guard);
}

/// STO-13 with the names a folder on a shared disk may have: near misses of pack names, other alphabets, bytes that are no text.
#[test]
#[cfg(unix)]
fn sto_13_names_that_are_no_packs_are_left_alone() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    let names: [&[u8]; 12] = [
        b"000000.pack",
        b"1.pack",
        b"0000001.pack",
        b"+00001.pack",
        b"-00001.pack",
        b"000001.PACK",
        b"000001.pack~",
        b" 000001.pack",
        b"99999999999999999999.pack",
        "\u{0661}\u{0662}\u{0663}\u{0664}\u{0665}\u{0666}.pack".as_bytes(),
        b"\xff\xfe.pack",
        b".pack",
    ];
    let at = |name: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(name));
    for name in names {
        std::fs::write(at(name), b"not ours").unwrap();
    }
    let kept = blocks(0, 30);
    let store = Store::open(dir.path(), small()).unwrap();
    store.put_many(&kept).unwrap();
    drop(store);
    let store = Store::open(dir.path(), small()).unwrap();
    assert!(store.open_report().damage.is_empty());
    assert_eq!(listed(&store).len(), kept.len());
    for name in names {
        assert_eq!(std::fs::read(at(name)).unwrap(), b"not ours", "{name:?}");
    }
}

/// Compaction, scrubs and collections from several threads at once, given up in the middle, over blocks that come and go: nobody
/// waits for ever, what is held stays whole, and counts are right in the end.
#[test]
fn owners_that_do_not_know_of_each_other_do_no_harm() {
    within_a_minute(|| {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), small().open_packs(1)).unwrap();
        let held = blocks(0, 60);
        let guard = store.guard();
        store.put_many(&held).unwrap();
        std::thread::scope(|scope| {
            for t in 0..3_u32 {
                let (store, held) = (&store, &held);
                scope.spawn(move || {
                    for i in 0..40 {
                        let passing = blocks(1000 * (t + 1) + i, 5);
                        store.put_many(&passing).unwrap();
                        let aim = Aim::default().budget(3000).below(90);
                        assert!(store.compact_step(&aim).unwrap().corrupt.is_empty());
                        let step = store.scrub(ScrubPoint::default()).step(2000).unwrap();
                        assert!(step.corrupt.is_empty(), "{step:?}");
                        match store.collect() {
                            Err(StoreError::Collecting) => {}
                            Ok(collection) if i % 3 == 0 => drop(collection),
                            Ok(collection) => {
                                let mut sweep = collection.sweep();
                                sweep.step(20).unwrap();
                            }
                            Err(other) => panic!("{other}"),
                        }
                        let gone: Vec<_> = passing.iter().map(|b| *b.cid()).collect();
                        store.delete_many(&gone).unwrap();
                        for block in held {
                            let read = store.get(block.cid()).unwrap();
                            assert_eq!(read.as_ref(), Some(block.data()));
                        }
                    }
                });
            }
        });
        drop(guard);
        let mut sweep = store.collect().unwrap().sweep();
        while !sweep.step(50).unwrap().done {}
        drop(sweep);
        assert_eq!((store.stat().blocks, store.stat().bytes), (0, 0));
        while !store.compact_step(&Aim::default()).unwrap().idle {}
        assert!(listed(&store).is_empty());
    });
}

/// A store that is only read counts garbage and scrubs, and changes nothing.
#[test]
fn a_reader_may_count_and_scrub_but_not_delete() {
    let dir = tempfile::tempdir().unwrap();
    let all = blocks(0, 20);
    Store::open(dir.path(), small())
        .unwrap()
        .put_many(&all)
        .unwrap();
    let store = Store::open_read_only(dir.path(), small()).unwrap();
    let collection = store.collect().unwrap();
    assert_eq!(collection.garbage().blocks, 20);
    let refused = collection.sweep().step(10);
    assert!(matches!(refused, Err(StoreError::ReadOnly)));
    let refused = store.compact_step(&Aim::default());
    assert!(matches!(refused, Err(StoreError::ReadOnly)));
    assert!(matches!(store.save_uses(), Err(StoreError::ReadOnly)));
    let step = store.scrub(ScrubPoint::default()).step(u64::MAX).unwrap();
    assert_eq!((step.blocks, step.corrupt.len()), (20, 0));
}

/// Row S6: somebody cuts packs short, sealed ones and the one that is written, while the store is open. Files are read with calls and
/// not mapped, so that this is an error of the block and never the end of the process; everything else is served, and a put repairs.
#[test]
fn s6_packs_that_are_cut_short_below_an_open_store_are_damage_and_not_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    // One store with all files open, one that opens them for each read.
    for (at, open_packs) in [("kept", 64), ("opened", 0)] {
        let dir = dir.path().join(at);
        let config = Config::default()
            .pack_bytes(64 << 10)
            .open_packs(open_packs);
        let store = Store::open(&dir, config.clone()).unwrap();
        let all: Vec<Block> = (0..200_u32)
            .map(|i| Block::raw(i.to_be_bytes().repeat(600)).unwrap())
            .collect();
        for batch in all.chunks(20) {
            store.put_many(batch).unwrap();
        }
        for block in &all {
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
        let mut packs: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "pack"))
            .collect();
        packs.sort();
        assert!(packs.len() > 4);
        // To nothing, below the header, in the middle of a page and of a frame; and the one that is written.
        let cuts = [(0, 0), (1, 10), (2, 4096 * 3 + 17), (packs.len() - 1, 5000)];
        for (pack, len) in cuts {
            let file = std::fs::OpenOptions::new().write(true).open(&packs[pack]);
            file.unwrap().set_len(len).unwrap();
        }
        let (mut whole, mut damaged) = (0, Vec::new());
        for block in &all {
            match store.get(block.cid()) {
                Ok(Some(data)) => {
                    assert_eq!(&data, block.data());
                    whole += 1;
                }
                Err(StoreError::Corrupt { .. } | StoreError::Io { .. }) | Ok(None) => {
                    damaged.push(block.clone());
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(whole > 20 && damaged.len() > 20, "{whole} whole");
        store.verify(|_| ControlFlow::Continue(())).unwrap();
        // What is fetched again is there again, now and after a restart; nothing that was whole was lost.
        store.put_many(&damaged).unwrap();
        for block in &all {
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
        drop(store);
        let store = Store::open(&dir, config).unwrap();
        for block in &all {
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
    }
}
