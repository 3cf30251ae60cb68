//! P6: what a stranger's DAG can make a walk hold.
#![allow(clippy::unwrap_used)]

use gemba_pins::{Cid, Walk, WalkConfig, WalkError};
use gemba_testkit::{
    alloc::{CountingAlloc, measure},
    dag::fake_cid,
};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// The bound the threat table gives.
const BOUND: u64 = 32 << 20;
const DAG_CBOR: u64 = 0x71;

/// Walks a DAG that is invented on the way: every block has `fan_out` links, without end. Answers come last asked, first answered, which is the
/// worst order for what is held.
fn walk_endless(config: WalkConfig, fan_out: u64) -> (WalkError, u64) {
    let mut open: Vec<Cid> = Vec::with_capacity(1_024);
    let (result, used) = measure(|| {
        let mut walk = Walk::new(fake_cid(DAG_CBOR, 0), config);
        loop {
            open.extend(std::iter::from_fn(|| walk.next_need()));
            let cid = open.pop().expect("it has no end");
            // Different numbers below different blocks; that they wrap around does not matter.
            let below = number(&cid).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let links = (0..fan_out).map(|n| fake_cid(DAG_CBOR, below.wrapping_add(n * 2)));
            if let Err(refused) = walk.on_block(&cid, 2 << 20, links) {
                return refused;
            }
        }
    });
    (result, used.peak)
}

fn number(cid: &Cid) -> u64 {
    u64::from_be_bytes(cid.hash().digest()[..8].try_into().unwrap())
}

/// 55,000 links are what fits into a block of 2 MiB. The fifth such block on one path is more than is kept in mind at once: what lies
/// furthest gives way, and the limit of depth decides.
#[test]
fn p6_blocks_of_nothing_but_links_are_refused_within_the_bound() {
    let (refused, peak) = walk_endless(WalkConfig::default().max_depth(8), 55_000);
    assert!(matches!(refused, WalkError::TooDeep { .. }), "{refused}");
    assert!(peak <= BOUND, "{peak}");
}

/// 10^9 links: each block links to 30 others, without end; or to one, without end.
#[test]
fn p6_endless_dags_are_refused_within_the_bound() {
    let (refused, peak) = walk_endless(WalkConfig::default(), 30);
    assert!(matches!(refused, WalkError::TooDeep { .. }), "{refused}");
    assert!(peak <= BOUND, "{peak}");

    let any_depth = WalkConfig::default().max_depth(u32::MAX);
    let (refused, peak) = walk_endless(any_depth.clone().max_frontier_bytes(2 << 20), 30);
    assert!(matches!(refused, WalkError::TooWide { .. }), "{refused}");
    assert!(peak <= BOUND, "{peak}");

    let (refused, peak) = walk_endless(any_depth.max_blocks(200_000), 1);
    assert_eq!(refused, WalkError::TooManyBlocks { limit: 200_000 });
    assert!(peak <= BOUND, "{peak}");
}

/// The claim of petabytes: every block says it is 2 MiB, and 2^40 bytes are the limit.
#[test]
fn p6_petabytes_are_refused_at_the_limit() {
    let config = WalkConfig::default()
        .max_depth(u32::MAX)
        .max_bytes(50 << 30);
    let (refused, _) = walk_endless(config, 1);
    assert_eq!(refused, WalkError::TooManyBytes { limit: 50 << 30 });
}

/// The largest DAG that is not refused: 899,999 links in files of 1,000, and the bound still holds.
#[test]
fn p6_the_largest_dag_within_the_limits_is_walked_within_the_bound() {
    let (files, chunks) = (899, 1_000);
    // Block 0 links to the files 1..=899, file n to 1,000 leaves of its own.
    let mut walk = Walk::new(fake_cid(DAG_CBOR, 0), WalkConfig::default());
    let ((), used) = measure(|| {
        while let Some(cid) = walk.next_need() {
            let links = match number(&cid) {
                0 => 1..files + 1,
                n if n <= files => 10_000 + n * chunks..10_000 + (n + 1) * chunks,
                _ => 0..0,
            };
            walk.on_block(&cid, 1_000_000, links.map(|n| fake_cid(DAG_CBOR, n)))
                .unwrap();
        }
    });
    assert!(walk.is_done());
    assert_eq!(walk.progress().blocks_done, 1 + files + files * chunks);
    assert!(used.peak <= BOUND, "{}", used.peak);
    let told = walk.memory() as u64;
    assert!(
        told <= used.peak && used.peak < told * 3 / 2,
        "told {told}, held {}",
        used.peak
    );
}
