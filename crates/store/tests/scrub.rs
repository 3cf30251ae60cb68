//! Scrubbing: every block is read and hashed in steps; what is damaged is told with its name and place, and can be put again.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gemba_block::{Block, Cid};
use gemba_store::{Aim, Config, Pace, ScrubPoint, Store, StoreError, VerifyOnRead};
use gemba_testkit::Rng;
use gemba_testkit::disk::{Call, SimDisk};

fn open(sim: &SimDisk, config: Config) -> Store {
    Store::open_on(Arc::new(sim.clone()), common::DIR, config).unwrap()
}

/// A store of ten packs and more, and its blocks.
fn filled(sim: &SimDisk) -> (Store, Vec<Block>) {
    let store = open(sim, common::config());
    let mut rng = Rng::new(3);
    let block = |_| Block::raw(rng.bytes(900)).unwrap();
    let all: Vec<_> = (0..200).map(block).collect();
    for batch in all.chunks(10) {
        store.put_many(batch).unwrap();
    }
    (store, all)
}

/// Flips one bit in the payload of a block, wherever it stands.
fn damage(sim: &SimDisk, packs: u64, block: &Block) {
    for number in 1..=packs as u32 {
        let path = common::pack(number);
        let Some(bytes) = sim.bytes(&path) else {
            continue;
        };
        let payload = block.data();
        if let Some(at) = bytes.windows(payload.len()).position(|w| w == &payload[..]) {
            sim.flip_bit(&path, (at as u64 + 100) * 8);
            return;
        }
    }
    panic!("{block:?} stands nowhere");
}

/// Rows S3 and P9: each damaged block is told once, with its name and its place; from then on it counts as absent, a put repairs it, and
/// the next scrub finds nothing. Steps are as long as they were told to be, and go on after a restart where the last one ended.
#[test]
fn p9_s3_a_scrub_in_steps_finds_every_damaged_block_and_a_put_repairs_it() {
    let sim = SimDisk::new(1);
    let (mut store, all) = filled(&sim);
    let packs = store.stat().packs;
    assert!(packs >= 10);
    let bad: Vec<_> = all.iter().step_by(23).cloned().collect();
    for block in &bad {
        damage(&sim, packs, block);
    }
    let mut found = BTreeSet::new();
    let (mut checked, mut point) = (0, ScrubPoint::default());
    loop {
        let mut scrub = store.scrub(point);
        let step = scrub.step(5_000).unwrap();
        assert!(step.bytes < 5_000 + 900, "{step:?}");
        checked += step.blocks;
        for place in step.corrupt {
            assert!(found.insert(place.cid.unwrap()), "told twice");
            assert!(place.pack > 0 && place.offset >= 32);
        }
        point = scrub.point().to_string().parse().unwrap();
        if step.done {
            break;
        }
        if checked % 3 == 0 {
            drop((scrub, store));
            store = open(&sim, common::config());
        }
    }
    assert_eq!(found, bad.iter().map(|block| *block.cid()).collect());
    assert_eq!(checked, 200);
    // What it found before a restart, reads find too.
    for block in &bad {
        assert!(matches!(
            store.get(block.cid()),
            Err(StoreError::Corrupt { .. })
        ));
        assert!(!store.has(block.cid()));
    }
    assert_eq!(store.put_many(&all).unwrap().new, bad.len() as u64);
    let step = store.scrub(ScrubPoint::default()).step(u64::MAX).unwrap();
    assert!(step.done && step.corrupt.is_empty() && step.blocks == 200);
}

/// What anybody finds damaged is told once to whoever repairs: reads, a scrub, compaction.
#[test]
fn s3_damage_waits_for_whoever_repairs_it() {
    let sim = SimDisk::new(1);
    let (store, all) = filled(&sim);
    let packs = store.stat().packs;
    for block in [&all[0], &all[100], &all[150]] {
        damage(&sim, packs, block);
    }
    for _ in 0..3 {
        assert!(store.get(all[100].cid()).is_err());
    }
    let gone: Vec<_> = all[1..12].iter().map(|block| *block.cid()).collect();
    store.delete_many(&gone).unwrap();
    common::compact(&store, Aim::default());
    while !store
        .scrub(ScrubPoint::default())
        .step(u64::MAX)
        .unwrap()
        .done
    {}
    let found = store.take_damaged();
    let found: Vec<_> = found.iter().map(|block| block.cid.unwrap()).collect();
    let expected = [100, 0, 150].map(|i: usize| *all[i].cid());
    assert_eq!(found, expected);
    assert!(store.take_damaged().is_empty());
    let again: Vec<_> = [100, 0, 150].map(|i: usize| all[i].clone()).into();
    assert_eq!(store.put_many(&again).unwrap().new, 3);
    assert!(expected.iter().all(|cid| store.has(cid)));
}

/// What the medium does not give back at all is damage too, and the scrub goes on behind it.
#[test]
fn s3_a_scrub_goes_on_behind_what_cannot_be_read() {
    let sim = SimDisk::new(1);
    let (store, all) = filled(&sim);
    let mut scrub = store.scrub(ScrubPoint::default());
    let first = scrub.step(1).unwrap();
    assert_eq!((first.blocks, first.corrupt.len()), (1, 0));
    let (mut blocks, mut lists) = (0, 0);
    for nth in 1..60 {
        sim.fail(Call::Read, nth, 1);
        let mut scrub = store.scrub(scrub.point());
        let rest = scrub.step(u64::MAX).unwrap();
        sim.heal();
        assert_eq!((rest.done, rest.corrupt.len()), (true, 1), "{nth}");
        let bad = &rest.corrupt[0];
        if let Some(cid) = bad.cid {
            blocks += 1;
            assert!(rest.blocks == 199 && !store.has(&cid));
            assert_eq!(store.put_many(&all).unwrap().new, 1);
        } else {
            // A whole pack goes unchecked, and the next scrub finds nothing wrong with it.
            lists += 1;
            assert!((180..199).contains(&rest.blocks), "{rest:?}");
        }
    }
    assert!(blocks > 3 && lists > 3, "{blocks} {lists}");
}

/// A pack whose list cannot be read does not keep others from being compacted.
#[test]
fn s5_compaction_goes_on_beside_a_pack_that_cannot_be_read() {
    let sim = SimDisk::new(1);
    let (store, all) = filled(&sim);
    let (gone, kept) = all.split_at(150);
    let gone: Vec<_> = gone.iter().map(|block| *block.cid()).collect();
    store.delete_many(&gone).unwrap();
    let before = store.stat().disk_bytes;
    sim.fail(Call::Read, 1, 1);
    let done = common::compact(&store, Aim::default());
    sim.heal();
    assert_eq!(done.corrupt.len(), 1, "{done:?}");
    assert!(store.stat().disk_bytes < before / 2);
    for block in kept {
        assert!(store.get(block.cid()).unwrap().is_some());
    }
}

/// Compaction, deletion and puts between the steps of a scrub: nothing that is whole is called damaged.
#[test]
fn a_scrub_beside_everything_else_finds_no_damage_where_there_is_none() {
    let sim = SimDisk::new(1);
    let (store, all) = filled(&sim);
    let mut scrub = store.scrub(ScrubPoint::default());
    for round in 0..500 {
        let step = scrub.step(2_000).unwrap();
        assert_eq!(step.corrupt, []);
        if step.done {
            assert!(round > 20);
            return;
        }
        let part: Vec<Cid> = all[round % 180..][..7].iter().map(|b| *b.cid()).collect();
        store.delete_many(&part).unwrap();
        store.put_many(&all[round % 100..][..3]).unwrap();
        let aim = Aim::default().budget(6_000).below(90);
        assert_eq!(store.compact_step(&aim).unwrap().corrupt, []);
    }
    panic!("the scrub never ends");
}

/// What a pace allows: a scrub of so many bytes takes as long as the rate says, in a clock of the caller's.
#[test]
fn a_scrub_keeps_its_rate() {
    let (store, _) = filled(&SimDisk::new(1));
    let mut scrub = store.scrub(ScrubPoint::default());
    let mut pace = Pace::new(10_000);
    let mut now = Duration::from_secs(100);
    loop {
        now = now.max(pace.due());
        let step = scrub.step(4_000).unwrap();
        pace.spend(step.bytes, now);
        if step.done {
            break;
        }
    }
    assert_eq!(pace.due(), Duration::from_secs(100 + 18));
}

/// Row S3, each setting: a bit that a disk turned is found by checksum and hash; bytes that somebody changed together with their
/// checksums are found by hash; a scrub finds both whatever reads are told to do.
#[test]
fn s3_a_scrub_hashes_whatever_reads_check() {
    for verify in [VerifyOnRead::Off, VerifyOnRead::Crc, VerifyOnRead::Hash] {
        let sim = SimDisk::new(1);
        let config = common::config().verify_on_read(verify);
        let store = open(&sim, config);
        let block = Block::raw(vec![7; 900]).unwrap();
        let forged = Block::danger_unchecked(*Block::raw("truth").unwrap().cid(), vec![1; 20]);
        store.put_many(&[block.clone(), forged.clone()]).unwrap();
        damage(&sim, 1, &block);
        let step = store.scrub(ScrubPoint::default()).step(u64::MAX).unwrap();
        assert_eq!(step.corrupt.len(), 2, "{verify:?}: {step:?}");
    }
}
