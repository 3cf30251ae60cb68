//! What a stranger's DAG, a damaged table and a forgetful owner can do, by somebody who did not write the crate.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use gemba_pins::{
    Add, Cid, DesiredSet, Kind, MissingCause, Name, Pin, PinError, Size, State, Walk, WalkConfig,
    WalkError, decode_key, decode_record, encode_key, encode_record,
};
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::{Dag, check, dag::fake_cid};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;

/// Every limit at nothing, at one and at the end of its type: the walk ends, whole or refused, and says the same when asked again.
#[test]
fn a_walk_ends_at_every_combination_of_limits() {
    let node = |n| fake_cid(DAG_PB, n);
    // 0 → 1..=8, each of those → 9..=12 and back to the root.
    let links = |cid: &Cid| -> Vec<Cid> {
        if *cid == node(0) {
            (1..=8).map(node).collect()
        } else if (1..=8).any(|n| *cid == node(n)) {
            (9..=12).map(node).chain([node(0)]).collect()
        } else {
            Vec::new()
        }
    };
    let ends = [0, 1, 2, u64::MAX];
    for window in ends {
        for depth in [0, 1, u32::MAX] {
            for blocks in ends {
                for bytes in ends {
                    for room in [0, 1, 40, 200, usize::MAX] {
                        let config = WalkConfig::default()
                            .window(usize::try_from(window).unwrap())
                            .max_depth(depth)
                            .max_blocks(blocks)
                            .max_bytes(bytes)
                            .max_frontier_bytes(room)
                            .max_missing(usize::try_from(window).unwrap());
                        let mut walk = Walk::new(node(0), config);
                        let mut asked = 0;
                        while let Some(cid) = walk.next_need() {
                            asked += 1;
                            assert!(asked < 1_000, "no end");
                            let _ = walk.on_block(&cid, bytes, links(&cid));
                        }
                        let end = walk.state();
                        assert!(matches!(end, State::Whole | State::Refused(_)), "{end:?}");
                        assert_eq!(walk.is_done(), end == State::Whole);
                        assert_eq!(walk.on_block(&node(0), 1, []), Ok(()));
                        assert_eq!(walk.state(), end);
                        let progress = walk.progress();
                        assert_eq!(progress.outstanding, 0);
                        assert!(
                            end != State::Whole
                                || (progress.pending, progress.blocks_done) == (0, 13)
                        );
                    }
                }
            }
        }
    }
}

/// The owner answers the same block with other links each time it is asked, as a store does that rots between two reads; misses,
/// repeats itself and retries. The counts hold at every step and the walk ends.
#[test]
fn an_owner_that_contradicts_itself_confuses_no_count() {
    check!(60, |rng| {
        let size = 1 + rng.below(120) as usize;
        let dag = Dag::random(rng, size);
        let config = WalkConfig::default()
            .window(1 + rng.below(9) as usize)
            .max_depth(u32::MAX)
            .max_frontier_bytes(40 * (2 + rng.below(60) as usize))
            .max_missing(1 + rng.below(4) as usize);
        let mut walk = Walk::new(dag.root, config);
        let mut open = Vec::new();
        for _ in 0..5_000 {
            open.extend(walk.next_need());
            if open.is_empty() {
                if walk.retry_missing() > 0 {
                    continue;
                }
                break;
            }
            let at = rng.below(open.len() as u64) as usize;
            let cid = open.swap_remove(at);
            if rng.chance(1, 8) {
                walk.on_missing(&cid, MissingCause::NoPeers);
                continue;
            }
            let mut links = dag.links(&cid).to_vec();
            links.truncate(links.len() - rng.below(1 + links.len() as u64 / 2) as usize);
            let _ = walk.on_block(&cid, u64::MAX / 3, links.iter().copied());
            if rng.coin() {
                let _ = walk.have(&cid, 1, links);
                walk.on_missing(&cid, MissingCause::NoPeers);
            }
            let progress = walk.progress();
            assert!(progress.pending >= progress.outstanding + progress.missing || refused(&walk));
        }
        assert!(!matches!(walk.state(), State::Walking), "no end");
    });
}

fn refused(walk: &Walk) -> bool {
    matches!(walk.state(), State::Refused(_))
}

/// Links that never end, of one block, of two that alternate, and always new ones: memory within the room, and an answer.
#[test]
fn p6_a_list_of_links_without_end_is_read_no_further_than_the_limits() {
    let room = 1 << 20;
    let config = || {
        WalkConfig::default()
            .max_frontier_bytes(room)
            .max_blocks(20_000)
    };
    let mut number = 0_u64;
    let (refused, used) = measure(|| {
        let mut walk = Walk::new(fake_cid(DAG_PB, 0), config());
        let root = walk.next_need().unwrap();
        let endless = std::iter::from_fn(|| {
            number += 1;
            Some(fake_cid(RAW, number))
        });
        walk.on_block(&root, 1, endless)
    });
    assert!(matches!(
        refused,
        Err(WalkError::TooWide { .. } | WalkError::TooManyBlocks { .. })
    ));
    assert!(
        number <= 20_001 && used.peak < 12 << 20,
        "{number} {used:?}"
    );
    // The same two links, a million times: not even remembered twice.
    let mut walk = Walk::new(fake_cid(DAG_PB, 0), config());
    let root = walk.next_need().unwrap();
    let pair = [1, 2].map(|n| fake_cid(RAW, n));
    let two = (0..1_000_000).map(|i: usize| pair[i % 2]);
    walk.on_block(&root, 1, two).unwrap();
    assert!(walk.frontier_memory() < 1_000 && walk.progress().pending == 2);
}

/// Records with every byte changed to every value, and tables whose keys are long, short, doubled or of another version: read as what
/// they say and written back the same, or refused.
#[test]
fn a_record_with_any_byte_changed_is_refused_or_written_back_as_it_is() {
    let pin = Pin {
        cid: fake_cid(DAG_PB, 1),
        kind: Kind::Direct,
        name: Some(Name::new("n\u{e9}").unwrap()),
        complete: true,
        lacks: false,
        id: u64::MAX,
        since_ms: 1 << 63,
        size: Some(Size {
            blocks: 300,
            bytes: u64::MAX,
        }),
    };
    let (key, record) = (encode_key(&pin.cid), encode_record(&pin));
    assert_eq!(decode_record(pin.cid, &record), Ok(pin.clone()));
    for at in 0..record.len() {
        for byte in 0..=u8::MAX {
            let mut odd = record.clone();
            odd[at] = byte;
            if let Ok(read) = decode_record(pin.cid, &odd) {
                assert_eq!(encode_record(&read), odd, "byte {at} is {byte}");
            }
        }
    }
    for at in 0..key.len() {
        for byte in 0..=u8::MAX {
            let mut odd = key.clone();
            odd[at] = byte;
            if let Ok(read) = decode_key(&odd) {
                assert_eq!(encode_key(&read), odd);
            }
        }
    }
    for odd in [[&key[..], &[0]].concat(), key[1..].to_vec(), Vec::new()] {
        assert!(DesiredSet::load([(odd, record.clone())]).is_err());
    }
}

/// A record with the last id there is: nothing is pinned under an id that was given before, everything else goes on.
#[test]
fn a_set_whose_ids_are_used_up_gives_none_twice() {
    let pin = |n, id| Pin {
        cid: fake_cid(RAW, n),
        kind: Kind::Direct,
        name: None,
        complete: false,
        lacks: false,
        id,
        since_ms: u64::MAX,
        size: None,
    };
    let add = |n| Add {
        cid: fake_cid(RAW, n),
        kind: Kind::Recursive,
        name: None,
        now_ms: 0,
    };
    let pins = [pin(1, 1), pin(2, u64::MAX - 1)];
    let table: BTreeMap<_, _> = pins
        .iter()
        .map(|p| (encode_key(&p.cid), encode_record(p)))
        .collect();
    let mut set = DesiredSet::load(&table).unwrap();
    let last = set.add(add(3)).unwrap().unwrap();
    set.apply(last).unwrap();
    // A new pin, and one that would be widened under a new id.
    for n in [4, 1, 2] {
        assert_eq!(set.add(add(n)), Err(PinError::IdsUsedUp));
    }
    let whole = set.complete(&fake_cid(RAW, 3), u64::MAX).unwrap().unwrap();
    set.apply(whole).unwrap();
    let gone = set.remove(&fake_cid(RAW, 2)).unwrap();
    set.apply(gone).unwrap();
    let left: Vec<_> = set.iter().map(|pin| (pin.id, pin.complete)).collect();
    assert!(left.contains(&(1, false)) && left.contains(&(u64::MAX, true)) && left.len() == 2);
}
