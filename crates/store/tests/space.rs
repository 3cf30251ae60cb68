//! Space: what was deleted comes back in bounded steps, limits hold, and a full disk can still be made emptier.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gemba_block::{Block, Cid};
use gemba_segment::RealDisk;
use gemba_store::{Aim, Config, Store, StoreError};
use gemba_testkit::disk::errno::{EDQUOT, EIO, EMFILE, ENOSPC, EROFS};
use gemba_testkit::disk::{Call, SimDisk};
use gemba_testkit::{Rng, sim_scale};

fn open(sim: &SimDisk, config: Config) -> Store {
    Store::open_on(Arc::new(sim.clone()), common::DIR, config).unwrap()
}

fn blocks(seed: u64, count: usize, len: usize) -> Vec<Block> {
    let mut rng = Rng::new(seed);
    let block = |_| Block::raw(rng.bytes(len)).unwrap();
    (0..count).map(block).collect()
}

fn ids(blocks: &[Block]) -> Vec<Cid> {
    blocks.iter().map(|block| *block.cid()).collect()
}

fn assert_there(store: &Store, blocks: &[Block]) {
    for block in blocks {
        let read = store.get(block.cid()).unwrap();
        assert_eq!(read.as_ref(), Some(block.data()));
    }
}

fn assert_gone(store: &Store, blocks: &[Block]) {
    for block in blocks {
        assert!(!store.has(block.cid()));
        assert_eq!(store.get(block.cid()).unwrap(), None);
    }
}

/// Three of four blocks, so that every pack loses some.
fn most(all: &[Block]) -> (Vec<Block>, Vec<Block>) {
    let (gone, kept): (Vec<_>, Vec<_>) = (0..).zip(all).partition(|(i, _)| i % 4 > 0);
    let blocks = |part: Vec<(i32, &Block)>| part.into_iter().map(|(_, b)| b.clone()).collect();
    (blocks(gone), blocks(kept))
}

/// Compaction copies what is alive, takes packs away, and ends; what it wrote and freed is counted, and at most one byte is
/// written for each that is gained. What is there stays the same, before and after an opening.
#[test]
fn deleted_blocks_give_their_space_back() {
    let sim = SimDisk::new(1);
    let store = open(&sim, common::config());
    let all = blocks(1, 400, 500);
    for batch in all.chunks(20) {
        store.put_many(batch).unwrap();
    }
    let (gone, kept) = most(&all);
    store.delete_many(&ids(&gone)).unwrap();
    let before = store.stat();
    let done = common::compact(&store, Aim::default());
    let after = store.stat();
    assert_eq!((after.blocks, after.bytes), (before.blocks, before.bytes));
    assert_eq!((after.blocks, done.corrupt.len()), (100, 0));
    assert_eq!(after.moved_bytes, done.copied);
    assert_eq!(after.freed_bytes, done.removed);
    let gained = before.disk_bytes - after.disk_bytes;
    assert!(done.copied <= gained, "{done:?} for {gained}");
    // Half may be dead, besides footers and the pack that is written to.
    assert!(
        after.disk_bytes <= 2 * after.bytes + (40 << 10),
        "{after:?}"
    );
    assert!(store.compact_step(&Aim::default()).unwrap().idle);
    assert_there(&store, &kept);
    drop(store);
    for sim in [sim.kill(), sim] {
        let store = open(&sim, common::config());
        assert_there(&store, &kept);
        assert_gone(&store, &gone);
        assert_eq!(store.stat().bytes, after.bytes);
    }
}

/// A step does about what it was told to, and never more than that and one group.
#[test]
fn a_step_of_compaction_is_bounded() {
    let store = open(&SimDisk::new(1), Config::default().pack_bytes(4 << 20));
    let all = blocks(1, 3000, 4000);
    for batch in all.chunks(100) {
        store.put_many(batch).unwrap();
    }
    let (gone, kept) = most(&all);
    store.delete_many(&ids(&gone)).unwrap();
    for budget in [1, 50_000, 400_000] {
        let step = store.compact_step(&Aim::default().budget(budget)).unwrap();
        // One page of names and one group may go beyond it.
        assert!(
            step.read + step.copied <= 2 * budget + (400 << 10),
            "{step:?}"
        );
    }
    common::compact(&store, Aim::default());
    assert_there(&store, &kept);
}

/// Tombstones go when what they bury is nowhere any more, and not before: a block that was deleted stays so over compaction of
/// any pack in any order and an opening after each step.
#[test]
fn sto_24_a_deleted_block_never_comes_back_by_compaction() {
    for seed in 0..sim_scale(400) as u64 {
        let sim = SimDisk::new(seed);
        let mut rng = Rng::new(seed);
        let mut store = open(&sim, common::config());
        let all = blocks(seed, 40, 900);
        let mut there = vec![false; all.len()];
        for _ in 0..40 {
            let i = rng.below(40) as usize;
            match rng.below(5) {
                0 | 1 => {
                    store.put_many(&all[i..][..1]).unwrap();
                    there[i] = true;
                }
                2 => {
                    let part = &all[i..(i + 12).min(40)];
                    store.delete_many(&ids(part)).unwrap();
                    there[i..][..part.len()].fill(false);
                }
                3 => {
                    let aim = Aim::default().budget(1 + rng.below(20_000)).below(90);
                    store.compact_step(&aim).unwrap();
                }
                _ => {
                    drop(store);
                    store = open(&sim, common::config());
                }
            }
            for (block, there) in all.iter().zip(&there) {
                assert_eq!(store.has(block.cid()), *there, "seed {seed}");
            }
        }
        store.delete_many(&ids(&all)).unwrap();
        common::compact(&store, Aim::default().below(90));
        assert!(store.stat().disk_bytes < 20 << 10, "{:?}", store.stat());
        drop(store);
        assert_eq!(open(&sim, common::config()).stat().blocks, 0);
    }
}

/// Happened: compaction that was cut off and begun again left two tombstones of a block in one pack. Such a pack seemed worth
/// copying, and was copied with both, for ever.
#[test]
fn compaction_ends_where_tombstones_stand_twice() {
    for steps in 1..12 {
        let sim = SimDisk::new(1);
        let store = open(&sim, common::config());
        let small = blocks(1, 30, 20);
        store.put_many(&small).unwrap();
        // Keeps the first pack, so that what buries its small blocks is needed.
        store.put_many(&blocks(2, 1, 12_000)).unwrap();
        // Makes the second pack worth copying.
        let passing = blocks(3, 1, 8_000);
        store.put_many(&passing).unwrap();
        store.delete_many(&ids(&small)).unwrap();
        store.delete_many(&ids(&passing)).unwrap();
        for _ in 0..steps {
            // Copies some, and is forgotten then.
            let aim = Aim::default().budget(400).below(90);
            store.compact_step(&aim).unwrap();
        }
        drop(store);
        let store = open(&sim, common::config());
        let done = common::compact(&store, Aim::default().below(90));
        assert!(done.copied < 20_000, "{done:?}");
        assert_gone(&store, &small);
        drop(store);
        assert_gone(&open(&sim, common::config()), &small);
    }
}

/// Large dead blocks in a pack that is worth keeping are punched out where they stand: nothing is copied, and it counts.
#[test]
fn large_dead_blocks_are_punched_out() {
    let dir = tempfile::tempdir().unwrap();
    let real: Arc<dyn gemba_segment::Disk> = Arc::new(RealDisk);
    let sim: Arc<dyn gemba_segment::Disk> = Arc::new(SimDisk::new(1));
    for (disk, dir) in [(sim, std::path::Path::new(common::DIR)), (real, dir.path())] {
        let config = Config::default().pack_bytes(2 << 20);
        let store = Store::open_on(Arc::clone(&disk), dir, config.clone()).unwrap();
        let all = blocks(1, 20, 200_000);
        for block in &all {
            store.put_many(std::slice::from_ref(block)).unwrap();
        }
        let gone: Vec<_> = all[..10].iter().step_by(3).cloned().collect();
        let kept: Vec<_> = all.iter().filter(|b| !gone.contains(b)).cloned().collect();
        store.delete_many(&ids(&gone)).unwrap();
        let before = store.stat();
        let done = common::compact(&store, Aim::default().below(20));
        if done.punched == 0 && dir != std::path::Path::new(common::DIR) {
            // A file system without holes: nothing to be seen here.
            continue;
        }
        assert!(done.punched >= 4 * 190_000 && done.copied == 0, "{done:?}");
        let after = store.stat();
        assert!(before.disk_bytes - after.disk_bytes >= 4 * 190_000);
        assert_there(&store, &kept);
        drop(store);
        let store = Store::open_on(disk, dir, config).unwrap();
        // The end of the last session was written since.
        assert!(store.stat().disk_bytes <= after.disk_bytes + 28);
        assert_there(&store, &kept);
        assert_gone(&store, &gone);
        assert!(store.open_report().damage.is_empty());
    }
}

/// Reads and puts on other threads while everything is moved again and again.
#[test]
fn reads_and_puts_go_on_while_packs_are_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::default().pack_bytes(64 << 10).open_packs(2);
    let store = Store::open(dir.path(), config).unwrap();
    let all = blocks(1, 180, 1500);
    store.put_many(&all).unwrap();
    let (kept, passing) = all.split_at(60);
    store.delete_many(&ids(passing)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        assert_there(&store, kept);
                    }
                })
            })
            .collect();
        for seed in 2..40 {
            let passing = blocks(seed, 40, 1500);
            store.put_many(&passing).unwrap();
            store.delete_many(&ids(&passing)).unwrap();
            for _ in 0..3 {
                let aim = Aim::default().budget(64 << 10).below(90);
                store.compact_step(&aim).unwrap();
            }
        }
        over.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    common::compact(&store, Aim::default());
    assert!(store.stat().moved_bytes > 0 && store.stat().freed_bytes > 0);
    assert_there(&store, kept);
}

/// A damaged block that compaction meets is told, with its name; the pack stays until it is repaired, and goes then.
#[test]
fn s3_a_damaged_block_keeps_its_pack_until_it_is_put_again() {
    let sim = SimDisk::new(1);
    let store = open(&sim, common::config());
    let all = blocks(1, 60, 900);
    for batch in all.chunks(5) {
        store.put_many(batch).unwrap();
    }
    store.delete_many(&ids(&all[1..12])).unwrap();
    sim.edit(&common::pack(1), |bytes| {
        let at = bytes.windows(900).position(|w| w == &all[0].data()[..]);
        bytes[at.unwrap() + 450] ^= 1;
    });
    let done = common::compact(&store, Aim::default());
    let found: Vec<_> = done.corrupt.iter().map(|c| (c.cid, c.pack)).collect();
    assert_eq!(found, [(Some(*all[0].cid()), 1)]);
    assert!(sim.bytes(&common::pack(1)).is_some() && !store.has(all[0].cid()));
    assert_eq!(store.put_many(&all[..1]).unwrap().new, 1);
    assert_eq!(common::compact(&store, Aim::default()).corrupt, []);
    assert!(sim.bytes(&common::pack(1)).is_none());
    assert_there(&store, &all[..1]);
}

/// Row S5 for what makes room: every kind of failing call, at every index, in deletion, collection and compaction. Nothing is lost,
/// nothing comes back, and the work is done to the end once the disk obeys again.
#[test]
fn s5_compaction_survives_every_failing_call_at_every_index() {
    for (call, errno) in [
        (Call::Read, EIO),
        (Call::Write, EIO),
        (Call::Write, EROFS),
        (Call::WriteFull, ENOSPC),
        (Call::WriteFull, EDQUOT),
        (Call::Sync, EIO),
        (Call::SyncLanded, EIO),
        (Call::SyncDir, EIO),
        (Call::Create, ENOSPC),
        (Call::Create, EMFILE),
        (Call::Open, EMFILE),
        (Call::SetLen, EIO),
        (Call::Unlink, EIO),
        (Call::Unlink, EROFS),
        (Call::Punch, EIO),
    ] {
        let mut fired = 0;
        for nth in 1..=sim_scale(200) as u64 {
            let sim = SimDisk::new(nth);
            let store = open(&sim, common::config());
            let mut all = blocks(nth, 60, 700);
            // Worth a hole each.
            all.extend(blocks(nth + 1000, 12, 9_000));
            for batch in all.chunks(6) {
                store.put_many(batch).unwrap();
            }
            let (gone, mut kept) = most(&all);
            kept.extend(gone[50..].iter().step_by(2).cloned());
            let gone: Vec<_> = gone.into_iter().filter(|b| !kept.contains(b)).collect();
            store.delete_many(&ids(&gone)).unwrap();
            sim.fail_with(call, nth, 2, errno);
            for _ in 0..400 {
                let aim = Aim::default().budget(3_000).below(90);
                match store.compact_step(&aim) {
                    // What cannot be read is no error, but told.
                    Ok(step) => {
                        fired += step.corrupt.len();
                        if step.idle {
                            break;
                        }
                    }
                    Err(_) => fired += 1,
                }
            }
            sim.heal();
            common::compact(&store, Aim::default().below(90));
            for store in [store, open(&sim.kill(), common::config())] {
                for block in &kept {
                    // A read that failed once may have been taken for damage of the block; putting it again repairs it.
                    if call == Call::Read && !store.has(block.cid()) {
                        store.put_many(std::slice::from_ref(block)).unwrap();
                    }
                }
                assert_there(&store, &kept);
                assert_gone(&store, &gone);
            }
        }
        let harmless = call == Call::SetLen;
        assert!(fired > 0 || harmless, "{call:?} {errno} never failed");
    }
}

/// A store at its limit refuses puts with what it has and may have, and takes deletions; compaction works in the reserve, and then
/// there is room again. The limit itself is never passed.
#[test]
fn a_limit_refuses_puts_and_leaves_room_to_make_room() {
    let sim = SimDisk::new(1);
    let max = 4 << 20;
    let store = open(&sim, Config::default().max_bytes(max));
    let mut rng = Rng::new(5);
    let mut there: Vec<Block> = Vec::new();
    let mut refusals = 0;
    for seed in 0..60 {
        let batch = blocks(seed, 40, 3000);
        match store.put_many(&batch) {
            Ok(_) => there.extend(batch),
            Err(StoreError::NoSpace {
                needed,
                used,
                limit,
            }) => {
                refusals += 1;
                assert!(used + needed > limit && limit == max - (1 << 20));
                let victims: Vec<_> = (0..300)
                    .map(|_| there.swap_remove(rng.below(there.len() as u64) as usize))
                    .collect();
                store.delete_many(&ids(&victims)).unwrap();
                common::compact(&store, Aim::default().below(80));
            }
            Err(other) => panic!("{other}"),
        }
        let stat = store.stat();
        assert!(
            stat.disk_bytes <= max && sim.used() <= max + 4096,
            "{stat:?}"
        );
        assert_eq!(stat.max_bytes, Some(max));
    }
    assert!(refusals > 3, "{refusals}");
    assert_there(&store, &there);
    assert_eq!(store.stat().blocks, there.len() as u64);
}

/// Row S5: something else has filled the disk to the last byte. With a ballast the store deletes, compacts and closes all the same;
/// puts are refused until the ballast has its space again.
#[test]
fn s5_a_ballast_lets_a_full_disk_be_made_emptier() {
    let sim = SimDisk::new(1);
    let config = common::config().ballast(64 << 10);
    let store = open(&sim, config.clone());
    let all = blocks(1, 300, 700);
    for batch in all.chunks(10) {
        store.put_many(batch).unwrap();
    }
    sim.set_capacity(sim.used());
    let new = blocks(2, 1, 700);
    assert!(matches!(store.put_many(&new), Err(StoreError::Full(_))));
    store.delete_many(&ids(&all[..200])).unwrap();
    assert!(matches!(store.put_many(&new), Err(StoreError::Full(_))));
    common::compact(&store, Aim::default());
    assert_eq!(store.put_many(&new).unwrap().new, 1);
    assert_gone(&store, &all[..200]);
    assert_there(&store, &all[200..]);
    drop(store);
    let store = open(&sim, config);
    assert!(store.open_report().cut.is_empty());
    assert_there(&store, &new);
    assert_eq!(store.stat().blocks, 101);
}

/// Without a ballast a full disk takes no deletions, which says so, and everything else works on.
#[test]
fn s5_without_a_ballast_a_full_disk_says_so() {
    let sim = SimDisk::new(1);
    let store = open(&sim, common::config());
    let all = blocks(1, 20, 700);
    store.put_many(&all).unwrap();
    sim.set_capacity(sim.used());
    let refused = store.delete_many(&ids(&all));
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert_there(&store, &all);
    let _ = store.compact_step(&Aim::default());
    drop(store);
    assert_there(&open(&sim, common::config()), &all);
}
