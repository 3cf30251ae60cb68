//! Collection: what is reachable or guarded stays, whatever else goes on; what goes is counted.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gemba_block::{Block, Cid};
use gemba_store::{Aim, Collection, Config, Guard, Mark, Store, StoreError, Sweep};
use gemba_testkit::disk::{Call, SimDisk};
use gemba_testkit::{Rng, rng, sim_scale};

fn open(sim: &SimDisk) -> Store {
    Store::open_on(Arc::new(sim.clone()), common::DIR, common::config()).unwrap()
}

fn blocks(seed: u64, count: usize, len: usize) -> Vec<Block> {
    let mut rng = Rng::new(seed);
    let block = |_| Block::raw(rng.bytes(len)).unwrap();
    (0..count).map(block).collect()
}

/// Sweeps to the end.
fn finish(mut sweep: Sweep, limit: usize) -> (u64, u64, u64) {
    let mut sum = (0, 0, 0);
    loop {
        let step = sweep.step(limit).unwrap();
        assert!(step.looked <= limit as u64);
        sum.0 += step.removed;
        sum.1 += step.bytes;
        sum.2 += step.guarded;
        if step.done {
            return sum;
        }
    }
}

/// S4.49: a dry run says exactly what the collection then does; what is marked stays, what went is counted and durable.
#[test]
fn s4_49_a_dry_run_tells_what_a_collection_removes() {
    let sim = SimDisk::new(1);
    let store = open(&sim);
    let all = blocks(1, 100, 300);
    store.put_many(&all).unwrap();
    let collection = store.collect().unwrap();
    assert_eq!(collection.garbage().blocks, 100);
    for block in &all[..40] {
        assert_eq!(collection.mark(block.cid()), Mark::Fresh);
        assert_eq!(collection.mark(block.cid()), Mark::Again);
    }
    let other = Block::raw("not there").unwrap();
    assert_eq!(collection.mark(other.cid()), Mark::Absent);
    let dry = collection.garbage();
    assert_eq!((dry.blocks, dry.bytes), (60, 60 * 300));
    assert_eq!((dry.marked_blocks, dry.marked_bytes), (40, 40 * 300));
    assert!(matches!(store.collect(), Err(StoreError::Collecting)));
    assert_eq!(finish(collection.sweep(), 7), (60, 60 * 300, 0));
    let stat = store.stat();
    assert_eq!((stat.blocks, stat.guards), (40, 0));
    assert_eq!((stat.collected_blocks, stat.collected_bytes), (60, 18_000));
    let store = open(&sim.kill());
    for (i, block) in all.iter().enumerate() {
        assert_eq!(store.has(block.cid()), i < 40);
    }
    // The marks of the last collection are no marks of the next one.
    let collection = store.collect().unwrap();
    assert_eq!(collection.garbage().blocks, 40);
    drop(collection);
    assert_eq!((store.stat().blocks, store.stat().guards), (40, 0));
    let _next = store.collect().unwrap();
}

/// S4.49: whatever is put, put again, read or touched while a collection runs stays; what is only asked for goes.
#[test]
fn s4_49_what_is_used_while_it_is_collected_stays() {
    let store = open(&SimDisk::new(1));
    let all = blocks(1, 6, 100);
    store.put_many(&all[..5]).unwrap();
    let collection = store.collect().unwrap();
    store.put_many(&all[..1]).unwrap();
    assert!(store.get(all[1].cid()).unwrap().is_some());
    assert!(store.touch(all[2].cid()));
    assert!(store.has(all[3].cid()));
    assert!(collection.read(all[4].cid()).unwrap().is_some());
    store.put_many(&all[5..]).unwrap();
    let dry = collection.garbage();
    assert_eq!((dry.blocks, dry.guarded_blocks), (2, 4));
    let mut sweep = collection.sweep();
    // In the last moment, too.
    assert_eq!(sweep.mark(all[4].cid()), Mark::Fresh);
    assert_eq!(sweep.step(100).unwrap().removed, 1);
    let left: Vec<_> = all.iter().map(|block| store.has(block.cid())).collect();
    assert_eq!(left, [true, true, true, false, true, true]);
}

/// What a guard protected when the collection began stays, although the guard is dropped before it ends: the pin that took
/// over from it may be one that the collection has not seen.
#[test]
fn s1_27_a_guard_that_is_dropped_in_the_middle_of_a_collection_still_counts() {
    let store = open(&SimDisk::new(1));
    let all = blocks(1, 2, 100);
    store.put_many(&all[..1]).unwrap();
    let guard = store.guard();
    store.put_many(&all[1..]).unwrap();
    let collection = store.collect().unwrap();
    drop(guard);
    assert_eq!(finish(collection.sweep(), 10).0, 1);
    assert!(store.has(all[1].cid()));
    assert_eq!(finish(store.collect().unwrap().sweep(), 10).0, 1);
}

/// Eviction: the unpinned that was used least recently goes first, and no more than is wanted. Marks of last use survive an
/// orderly end.
#[test]
fn what_was_used_least_recently_goes_first() {
    let sim = SimDisk::new(1);
    let store = open(&sim);
    let all = blocks(1, 60, 1000);
    for batch in all.chunks(10) {
        store.put_many(batch).unwrap();
        store.tick();
    }
    // The first ten are read again, the second ten are pinned.
    for block in &all[..10] {
        store.get(block.cid()).unwrap();
    }
    drop(store);
    let store = open(&sim);
    let collection = store.collect().unwrap();
    for block in &all[10..20] {
        collection.mark(block.cid());
        collection.read(block.cid()).unwrap();
    }
    let (removed, bytes, _) = finish(collection.sweep_bytes(25_000), 8);
    assert_eq!((removed, bytes), (25, 25_000));
    let left: Vec<_> = (0..60).filter(|i| store.has(all[*i].cid())).collect();
    let expected: Vec<_> = (0..20).chain(45..60).collect();
    assert_eq!(left, expected);
    // More than there is: all that may go.
    let collection = store.collect().unwrap();
    assert_eq!(finish(collection.sweep_bytes(1 << 40), 8).0, 35);
}

/// Marks of last use are worth little, so no damage to their file may cost more than marks: the store opens with every block.
#[test]
fn damaged_marks_of_last_use_cost_nothing_but_marks() {
    let sim = SimDisk::new(1);
    let store = open(&sim);
    let all = blocks(1, 40, 300);
    for batch in all.chunks(4) {
        store.put_many(batch).unwrap();
        store.tick();
    }
    drop(store);
    let path = std::path::Path::new(common::DIR).join("uses");
    let whole = sim.bytes(&path).unwrap();
    let mut with_marks = 0;
    for at in 0..whole.len() * 2 {
        let mut bytes = whole.clone();
        if at < whole.len() {
            bytes[at] ^= 0x41;
        } else {
            bytes.truncate(at - whole.len());
        }
        let sim = sim.reopen();
        sim.install(&path, bytes);
        let store = open(&sim);
        assert_eq!(store.stat().blocks, 40);
        let marked = store.uses()[1..]
            .iter()
            .map(|(blocks, _)| blocks)
            .sum::<u64>();
        with_marks += usize::from(marked > 0);
        store.tick();
        store.save_uses().unwrap();
    }
    assert!(with_marks > 20, "{with_marks}");
}

/// A sweep that the disk refuses removes nothing that it does not tell, and another one goes on.
#[test]
fn s5_a_collection_that_fails_can_be_begun_again() {
    for nth in 1..=6 {
        let sim = SimDisk::new(nth);
        let store = open(&sim);
        let all = blocks(1, 40, 200);
        store.put_many(&all).unwrap();
        let mut sweep = store.collect().unwrap().sweep();
        sim.fail(Call::Write, nth, 1);
        let mut removed = 0;
        let mut failed = 0;
        loop {
            match sweep.step(4) {
                Ok(step) if step.done => break,
                Ok(step) => removed += step.removed,
                Err(_) => failed += 1,
            }
        }
        assert_eq!(failed, 1);
        assert_eq!(store.stat().blocks, 40 - removed);
        drop(sweep);
        assert_eq!(finish(store.collect().unwrap().sweep(), 9).0, 40 - removed);
    }
}

/// A DAG that only the test knows: a block links to some of those behind it.
struct Dag {
    blocks: Vec<Block>,
    links: Vec<Vec<usize>>,
    numbers: BTreeMap<Cid, usize>,
}

impl Dag {
    fn new(rng: &mut Rng, count: usize) -> Self {
        let blocks: Vec<_> = (0..count)
            .map(|i| {
                let len = if i % 5 == 4 { 6_000 } else { 40 };
                Block::raw(rng.bytes(len)).unwrap()
            })
            .collect();
        let links = (0..count)
            .map(|i| {
                let behind = (i + 1..count).filter(|_| rng.chance(1, 3));
                behind.take(3).collect()
            })
            .collect();
        let numbers = (0..).zip(&blocks).map(|(i, b)| (*b.cid(), i)).collect();
        Self {
            blocks,
            links,
            numbers,
        }
    }

    fn reachable(&self, roots: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        let mut ahead: Vec<_> = roots.iter().copied().collect();
        while let Some(i) = ahead.pop() {
            if seen.insert(i) {
                ahead.extend(&self.links[i]);
            }
        }
        seen
    }
}

/// Somebody who pins a root: everything is read, or put if it is not there, under a guard, and then the pin is recorded.
struct Pinner {
    root: usize,
    ahead: Vec<usize>,
    seen: BTreeSet<usize>,
    _guard: Guard,
}

impl Pinner {
    fn begin(store: &Store, root: usize) -> Self {
        Self {
            root,
            ahead: vec![root],
            seen: BTreeSet::new(),
            _guard: store.guard(),
        }
    }

    /// One block; whether the DAG is whole.
    fn step(&mut self, store: &Store, dag: &Dag, rng: &mut Rng) -> bool {
        let Some(i) = self.ahead.pop() else {
            return true;
        };
        if self.seen.insert(i) {
            let block = &dag.blocks[i];
            if rng.coin() || store.get(block.cid()).unwrap().is_none() {
                store.put_many(std::slice::from_ref(block)).unwrap();
            }
            self.ahead.extend(&dag.links[i]);
        }
        false
    }
}

/// The collector, between two steps.
enum Collector {
    Idle,
    Marking(Collection, Vec<Cid>),
    Sweeping(Sweep),
}

impl Collector {
    fn step(self, store: &Store, dag: &Dag, pins: &BTreeSet<usize>, rng: &mut Rng) -> Self {
        match self {
            Self::Idle => {
                let collection = store.collect().unwrap();
                let roots = pins.iter().map(|i| *dag.blocks[*i].cid());
                Self::Marking(collection, roots.collect())
            }
            Self::Marking(collection, mut ahead) => {
                let Some(cid) = ahead.pop() else {
                    let sweep = match rng.below(3) {
                        0 => collection.sweep_bytes(rng.below(9_000)),
                        _ => collection.sweep(),
                    };
                    return Self::Sweeping(sweep);
                };
                match collection.mark(&cid) {
                    Mark::Fresh => {
                        assert!(collection.read(&cid).unwrap().is_some());
                        let links = dag.links[dag.numbers[&cid]].iter();
                        ahead.extend(links.map(|i| *dag.blocks[*i].cid()));
                    }
                    Mark::Again => {}
                    other => panic!("a pinned block is {other:?}"),
                }
                Self::Marking(collection, ahead)
            }
            Self::Sweeping(mut sweep) => {
                let step = sweep.step(1 + rng.below(6) as usize).unwrap();
                if step.done {
                    Self::Idle
                } else {
                    Self::Sweeping(sweep)
                }
            }
        }
    }
}

/// S4.49, S1.27, row P3: collection, adding, pinning, unpinning and compaction in a million random interleavings in full (of about 50
/// steps each; a share of them as of all simulations, but 5,000 in the smallest): no block that a pin reaches is ever missing, and in the end nothing but those is left.
#[test]
fn p3_s4_49_s1_27_no_interleaving_loses_a_reachable_block() {
    let (mut removed, mut steps) = (0, 0);
    let schedules = match sim_scale(20) {
        1 => 5_000,
        _ => sim_scale(1_000_000),
    };
    for schedule in rng::seeds(schedules) {
        let mut rng = Rng::new(schedule);
        let store = open(&SimDisk::new(schedule));
        let dag = Dag::new(&mut rng, 12);
        let mut pins = BTreeSet::new();
        let mut pinners: Vec<Pinner> = Vec::new();
        let mut collector = Collector::Idle;
        for _ in 0..25 + rng.below(50) {
            steps += 1;
            match rng.below(16) {
                0 if pinners.len() < 3 => {
                    pinners.push(Pinner::begin(&store, rng.below(12) as usize));
                }
                0..=5 if !pinners.is_empty() => {
                    let n = rng.below(pinners.len() as u64) as usize;
                    if pinners[n].step(&store, &dag, &mut rng) {
                        // Recorded first, unguarded then.
                        pins.insert(pinners[n].root);
                        pinners.swap_remove(n);
                    }
                }
                6 => {
                    let some = pins.iter().nth(rng.below(4) as usize).copied();
                    some.map(|root| pins.remove(&root));
                }
                7 => {
                    let block = rng.pick(&dag.blocks).clone();
                    store.put_many(&[block]).unwrap();
                }
                8 => {
                    let aim = Aim::default().budget(1 + rng.below(8_000)).below(90);
                    store.compact_step(&aim).unwrap();
                }
                9 => store.tick(),
                _ => collector = collector.step(&store, &dag, &pins, &mut rng),
            }
            for i in dag.reachable(&pins) {
                let there = store.has(dag.blocks[i].cid());
                assert!(there, "seed {schedule:#x}: block {i} is lost");
            }
        }
        drop((pinners, collector));
        removed += store.stat().collected_blocks;
        let keep = dag.reachable(&pins);
        let collection = store.collect().unwrap();
        for i in &keep {
            collection.mark(dag.blocks[*i].cid());
        }
        finish(collection.sweep(), 5);
        assert_eq!(store.stat().blocks, keep.len() as u64);
    }
    assert!(removed > steps / 100, "{removed} blocks in {steps} steps");
}

/// The same with threads: pins, adds and a collection that never ends.
#[test]
fn s4_49_adding_and_pinning_beside_a_collection_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Config::default().pack_bytes(256 << 10)).unwrap();
    let over = AtomicBool::new(false);
    let pinned = std::sync::Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::SeqCst) || rounds < 2 {
                rounds += 1;
                let collection = store.collect().unwrap();
                let roots: Vec<Cid> = pinned.lock().unwrap().iter().copied().collect();
                roots.iter().for_each(|cid| {
                    assert_eq!(collection.mark(cid), Mark::Fresh);
                });
                finish(collection.sweep(), 16);
                store.compact_step(&Aim::default()).unwrap();
            }
        });
        let adders: Vec<_> = (0..2)
            .map(|seed| {
                let (store, pinned) = (&store, &pinned);
                scope.spawn(move || {
                    // Both bring the same blocks now and then.
                    for round in 0..60_u64 {
                        let guard = store.guard();
                        let batch = blocks(round / 2 + seed, 6, 700);
                        store.put_many(&batch).unwrap();
                        let keep = batch.iter().take(3).map(|block| *block.cid());
                        pinned.lock().unwrap().extend(keep);
                        drop(guard);
                    }
                })
            })
            .collect();
        for adder in adders {
            adder.join().unwrap();
        }
        over.store(true, Ordering::SeqCst);
        collector.join().unwrap();
    });
    let pinned = pinned.into_inner().unwrap();
    let collection = store.collect().unwrap();
    for cid in &pinned {
        assert_eq!(collection.mark(cid), Mark::Fresh);
    }
    finish(collection.sweep(), 1000);
    for cid in &pinned {
        assert!(store.get(cid).unwrap().is_some());
    }
    assert_eq!(store.stat().blocks, pinned.len() as u64);
}
