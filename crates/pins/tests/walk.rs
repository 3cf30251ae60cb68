//! The walk: against a model, in every order of answers, at every limit.
#![allow(clippy::unwrap_used)]

use gemba_pins::{Cid, Kind, MissingCause, State, Walk, WalkConfig, WalkError};
use gemba_testkit::{
    Dag, Rng, check,
    dag::{dag_cbor, fake_cid, raw},
    sim_scale,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Multicodec codes.
const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;
const DAG_CBOR: u64 = 0x71;

fn answer(walk: &mut Walk, dag: &Dag, cid: &Cid) -> Result<(), WalkError> {
    let bytes = dag.get(cid).unwrap().data().len() as u64;
    walk.on_block(cid, bytes, dag.links(cid).iter().copied())
}

/// What a walk should ask for next: a plain list of items in reading order, searched from its beginning.
struct Model<'a> {
    dag: &'a Dag,
    list: Vec<(Cid, bool)>,
    seen: BTreeSet<Cid>,
}

impl<'a> Model<'a> {
    fn new(dag: &'a Dag) -> Self {
        Self {
            dag,
            list: vec![(dag.root, false)],
            seen: BTreeSet::from([dag.root]),
        }
    }

    fn next(&mut self) -> Option<Cid> {
        let item = self.list.iter_mut().find(|(_, asked)| !*asked)?;
        item.1 = true;
        Some(item.0)
    }

    fn answered(&mut self, cid: &Cid) {
        let at = self.list.iter().position(|item| item.0 == *cid).unwrap();
        let new: Vec<_> = self
            .dag
            .links(cid)
            .iter()
            .filter(|link| self.seen.insert(**link))
            .map(|link| (*link, false))
            .collect();
        self.list.splice(at..=at, new);
    }

    fn asked_again(&mut self, cids: &BTreeSet<Cid>) {
        for item in self.list.iter_mut().filter(|item| cids.contains(&item.0)) {
            item.1 = false;
        }
    }
}

/// Random DAGs, windows and orders of answers, with doubles, strangers and misses: the walk asks for what the model asks for, at every step, and
/// ends with exactly the blocks of the DAG.
#[test]
fn whatever_the_order_of_answers_the_walk_agrees_with_the_model() {
    let (mut missed, mut ignored) = (0u64, 0u64);
    check!(sim_scale(2_000), |rng| {
        let size = 1 + rng.length(400) as usize;
        let dag = Dag::random(rng, size);
        let window = 1 + rng.length(40) as usize;
        let config = WalkConfig::default()
            .window(window)
            .max_depth(u32::MAX)
            .visited_key(rng.array());
        let mut walk = Walk::new(dag.root, config);
        let mut model = Model::new(&dag);
        let mut open = BTreeSet::new();
        let mut missing = BTreeSet::new();
        let mut done = BTreeSet::new();
        while !walk.is_done() {
            while open.len() < window {
                let next = walk.next_need();
                assert_eq!(next, model.next());
                let Some(cid) = next else { break };
                assert!(
                    !done.contains(&cid) && open.insert(cid),
                    "{cid} was asked for already"
                );
            }
            if open.len() == window {
                assert_eq!(walk.next_need(), None, "the window is full");
            }
            assert_eq!(walk.outstanding().copied().collect::<BTreeSet<_>>(), open);
            let Some(cid) = open.iter().nth(rng.index(open.len().max(1))).copied() else {
                assert_eq!(walk.state(), State::Missing);
                assert_eq!(walk.retry_missing(), missing.len());
                model.asked_again(&std::mem::take(&mut missing));
                continue;
            };
            if rng.chance(1, 10) {
                open.remove(&cid);
                missing.insert(cid);
                walk.on_missing(&cid, MissingCause::NotFound { asked: 3 });
                missed += 1;
                continue;
            }
            if rng.chance(1, 10) {
                // A double of an old answer, and a block nobody asked for.
                let old = *done.iter().next().unwrap_or(&fake_cid(RAW, 1));
                walk.on_block(&old, 10, [fake_cid(RAW, 2)]).unwrap();
                ignored += 1;
            }
            open.remove(&cid);
            done.insert(cid);
            answer(&mut walk, &dag, &cid).unwrap();
            model.answered(&cid);
        }
        assert_eq!(done, dag.blocks.iter().map(|block| *block.cid()).collect());
        assert_eq!(walk.state(), State::Whole);
        assert_eq!(walk.next_need(), None);
        let progress = walk.progress();
        assert_eq!(
            (progress.blocks_done, progress.bytes_done),
            (dag.blocks.len() as u64, dag.bytes())
        );
        assert_eq!(
            (progress.pending, progress.outstanding, progress.missing),
            (0, 0, 0)
        );
    });
    if std::env::var_os("GEMBA_SEED").is_none() {
        assert!(missed > 50 && ignored > 50, "{missed} {ignored}");
    }
}

#[test]
fn answered_one_by_one_the_needs_are_in_reading_order() {
    check!(50, |rng| {
        let size = 1 + rng.length(300) as usize;
        let dag = Dag::random(rng, size);
        let mut walk = Walk::new(dag.root, WalkConfig::default().max_depth(u32::MAX));
        let mut asked = Vec::new();
        while let Some(cid) = walk.next_need() {
            asked.push(cid);
            answer(&mut walk, &dag, &cid).unwrap();
        }
        assert_eq!(asked, dag.reading_order());
    });
}

/// A file of 8³ leaves, answers overtaken by at most three others, as from a few peers: a leaf is asked for, on average, within one window of its
/// place.
#[test]
fn a_file_arrives_roughly_from_its_beginning() {
    let dag = Dag::balanced(3, 8, 64);
    let leaves = dag
        .reading_order()
        .into_iter()
        .filter(|cid| cid.codec() == RAW);
    let place: BTreeMap<_, usize> = leaves.enumerate().map(|(i, cid)| (cid, i)).collect();
    check!(20, |rng| {
        let mut walk = Walk::new(dag.root, WalkConfig::default().window(16));
        let mut open = VecDeque::new();
        let mut asked = 0;
        let mut away = 0;
        while !walk.is_done() {
            while let Some(cid) = walk.next_need() {
                open.push_back(cid);
                if let Some(place) = place.get(&cid) {
                    away += place.abs_diff(asked);
                    asked += 1;
                }
            }
            let cid = open.remove(rng.index(open.len().min(4))).unwrap();
            answer(&mut walk, &dag, &cid).unwrap();
        }
        assert_eq!(asked, place.len());
        assert!(
            away / asked <= 16,
            "{} places away on average",
            away / asked
        );
    });
}

/// After a restart a new walk is told what is here; only the rest is fetched.
#[test]
fn p2_a_walk_after_a_crash_fetches_nothing_twice() {
    check!(100, |rng| {
        let size = 2 + rng.length(200) as usize;
        let dag = Dag::random(rng, size);
        let config = WalkConfig::default().max_depth(u32::MAX);
        let mut stored = BTreeSet::new();
        let mut fetched = 0;
        let mut crashes = 1 + rng.below(4);
        loop {
            let mut walk = Walk::new(dag.root, config.clone());
            while let Some(cid) = walk.next_need() {
                if stored.contains(&cid) {
                    let bytes = dag.get(&cid).unwrap().data().len() as u64;
                    walk.have(&cid, bytes, dag.links(&cid).iter().copied())
                        .unwrap();
                    continue;
                }
                if crashes > 0 && rng.chance(1, 20) {
                    break;
                }
                fetched += 1;
                stored.insert(cid);
                answer(&mut walk, &dag, &cid).unwrap();
            }
            if walk.is_done() {
                let progress = walk.progress();
                assert_eq!(
                    (progress.blocks_done, progress.bytes_done),
                    (dag.blocks.len() as u64, dag.bytes())
                );
                assert!(
                    progress.blocks_fetched <= progress.blocks_done
                        && progress.bytes_fetched <= progress.bytes_done
                );
                break;
            }
            assert!(!matches!(walk.state(), State::Whole));
            crashes -= 1;
        }
        assert_eq!(fetched, dag.blocks.len());
    });
}

/// X9: a chain of 10^6 blocks. With the default limit it is refused by name; with a higher one it is walked on a stack of 64 KiB, and of what
/// it held to do so nothing but the visited set has grown.
#[test]
fn x9_a_chain_of_a_million_is_refused_or_walked_in_constant_stack() {
    const LINKS: u64 = 1_000_000;
    let run = |config: WalkConfig| {
        let mut walk = Walk::new(fake_cid(DAG_CBOR, 0), config);
        let mut widest = 0;
        let mut number = 0;
        while let Some(cid) = walk.next_need() {
            assert_eq!(cid, fake_cid(DAG_CBOR, number));
            number += 1;
            let next = (number <= LINKS).then(|| fake_cid(DAG_CBOR, number));
            if let Err(refused) = walk.on_block(&cid, 40, next) {
                assert_eq!(walk.state(), State::Refused(refused.clone()));
                return Err(refused);
            }
            widest = widest.max(walk.frontier_memory());
        }
        assert!(walk.is_done());
        Ok((walk.progress().blocks_done, widest))
    };
    std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || {
            let refused = run(WalkConfig::default());
            assert_eq!(
                refused,
                Err(WalkError::TooDeep {
                    cid: fake_cid(DAG_CBOR, 129),
                    limit: 128
                })
            );
            let (blocks, widest) = run(WalkConfig::default()
                .max_depth(u32::MAX)
                .max_blocks(u64::MAX))
            .unwrap();
            assert_eq!(blocks, LINKS + 1);
            assert!(widest < 1_000, "{widest} bytes");
        })
        .unwrap()
        .join()
        .unwrap();
}

/// X9: a graph that says it is cyclic (no hash can, an owner that is lied to could): every block is asked for once.
#[test]
fn x9_a_cycle_ends() {
    let (a, b, c) = (
        fake_cid(DAG_CBOR, 1),
        fake_cid(DAG_CBOR, 2),
        fake_cid(DAG_CBOR, 3),
    );
    let links = BTreeMap::from([(a, [b, a]), (b, [c, a]), (c, [a, b])]);
    let mut walk = Walk::new(a, WalkConfig::default());
    let mut asked = Vec::new();
    while let Some(cid) = walk.next_need() {
        asked.push(cid);
        walk.on_block(&cid, 1, links[&cid]).unwrap();
    }
    assert_eq!(asked, [a, b, c]);
    assert!(walk.is_done());
}

/// 2^300 paths, 602 blocks.
#[test]
fn x9_shared_children_are_walked_once() {
    let dag = Dag::diamonds(300);
    let mut walk = Walk::new(dag.root, WalkConfig::default().max_depth(301));
    let mut asked = 0;
    while let Some(cid) = walk.next_need() {
        asked += 1;
        answer(&mut walk, &dag, &cid).unwrap();
    }
    assert_eq!((asked, walk.is_done()), (dag.blocks.len(), true));
}

#[test]
fn depth_is_counted_in_links_from_the_root() {
    let dag = Dag::chain(10);
    for (limit, whole) in [(9, false), (10, true)] {
        let mut walk = Walk::new(dag.root, WalkConfig::default().max_depth(limit));
        let refused = loop {
            let Some(cid) = walk.next_need() else {
                break None;
            };
            if let Err(cause) = answer(&mut walk, &dag, &cid) {
                break Some(cause);
            }
        };
        let deepest = *dag.blocks[0].cid();
        assert_eq!(walk.is_done(), whole);
        assert_eq!(
            refused,
            (!whole).then_some(WalkError::TooDeep {
                cid: deepest,
                limit
            })
        );
    }
}

#[test]
fn p6_too_many_blocks_and_bytes_are_refused_exactly_at_the_limit() {
    let dag = Dag::wide(99, 100);
    let (blocks, bytes) = (dag.blocks.len() as u64, dag.bytes());
    let run = |config: WalkConfig| {
        let mut walk = Walk::new(dag.root, config);
        while let Some(cid) = walk.next_need() {
            answer(&mut walk, &dag, &cid)?;
        }
        assert!(walk.is_done());
        Ok(())
    };
    assert_eq!(run(WalkConfig::default().max_blocks(blocks)), Ok(()));
    assert_eq!(
        run(WalkConfig::default().max_blocks(blocks - 1)),
        Err(WalkError::TooManyBlocks { limit: blocks - 1 })
    );
    assert_eq!(run(WalkConfig::default().max_bytes(bytes)), Ok(()));
    assert_eq!(
        run(WalkConfig::default().max_bytes(bytes - 1)),
        Err(WalkError::TooManyBytes { limit: bytes - 1 })
    );
    // An owner's block of absurd size is no overflow.
    let mut walk = Walk::new(dag.root, WalkConfig::default().max_bytes(u64::MAX));
    let root = walk.next_need().unwrap();
    walk.on_block(&root, u64::MAX, dag.links(&root).iter().copied())
        .unwrap();
    let leaf = walk.next_need().unwrap();
    walk.on_block(&leaf, u64::MAX, []).unwrap();
    assert_eq!(walk.progress().bytes_done, u64::MAX);
}

/// PIN-9: with memory for hardly more than the widest block, any DAG is still made whole, in whatever order answers come. What is asked for twice was
/// stored before.
#[test]
fn pin_9_what_does_not_fit_is_forgotten_and_asked_for_again() {
    let mut forgotten = 0;
    check!(sim_scale(2_000), |rng| {
        let size = 1 + rng.length(400) as usize;
        let dag = match rng.below(3) {
            0 => Dag::balanced(3, 6, 16),
            _ => Dag::random(rng, size),
        };
        let widest = dag
            .blocks
            .iter()
            .map(|block| dag.links(block.cid()).len() + 1);
        // What the links of one block take, and the entries of a few others.
        let room = widest.max().unwrap() * 36 + 400 + rng.below(3_000) as usize;
        let window = 1 + rng.index(40);
        let slack = 400 * (window + 400);
        let config = WalkConfig::default()
            .window(window)
            .max_depth(u32::MAX)
            .max_frontier_bytes(room);
        let mut walk = Walk::new(dag.root, config);
        let mut open = Vec::new();
        let mut done = BTreeSet::new();
        let mut steps = 0;
        while !walk.is_done() {
            open.extend(std::iter::from_fn(|| walk.next_need()));
            assert!(!open.is_empty(), "{:?} {:?}", walk.state(), walk.progress());
            let cid: Cid = open.swap_remove(rng.index(open.len()));
            let first = done.insert(cid);
            let before = walk.progress().blocks_done;
            if let Err(refused) = answer(&mut walk, &dag, &cid) {
                // Only where many blocks with a link or two each are under way at once is there nothing to give way.
                assert!(matches!(refused, WalkError::TooWide { .. }));
                assert!(window > 1 || room < 4_000, "{refused}");
                return;
            }
            assert_eq!(walk.progress().blocks_done, before + u64::from(first));
            assert!(walk.frontier_memory() <= room + slack);
            steps += 1;
            assert!(steps <= 200 * dag.blocks.len(), "no end in sight");
        }
        let progress = walk.progress();
        assert_eq!(done, dag.blocks.iter().map(|block| *block.cid()).collect());
        assert_eq!(
            (progress.blocks_done, progress.bytes_done, progress.pending),
            (dag.blocks.len() as u64, dag.bytes(), 0)
        );
        forgotten += progress.asked_again;
    });
    if std::env::var_os("GEMBA_SEED").is_none() {
        assert!(forgotten > 100, "{forgotten}");
    }
}

/// An honest folder of 100 files of 1,000 chunks, asked for 64 at a time, with room for the links of 30: nothing is refused. (At a tenth of the
/// defaults, which would be a folder of 1,000 such files.)
#[test]
fn pin_9_a_folder_of_large_files_is_never_refused_for_its_width() {
    let (files, chunks) = (100, 1_000);
    let mut walk = Walk::new(
        fake_cid(DAG_CBOR, 0),
        WalkConfig::default().window(64).max_frontier_bytes(1 << 20),
    );
    let mut open = VecDeque::new();
    let mut answers = 0;
    loop {
        open.extend(std::iter::from_fn(|| walk.next_need()));
        let Some(cid) = open.pop_front() else { break };
        let number = u64::from_be_bytes(cid.hash().digest()[..8].try_into().unwrap());
        let (codec, links) = match number {
            0 => (DAG_PB, 1..files + 1),
            n if n <= files => (RAW, 10_000 + n * chunks..10_000 + (n + 1) * chunks),
            _ => (RAW, 0..0),
        };
        let links = links.map(|n| fake_cid(codec, n));
        walk.on_block(&cid, 1_000_000, links).unwrap();
        assert!(walk.frontier_memory() <= (1 << 20) + 64 * 400);
        answers += 1;
    }
    assert!(walk.is_done());
    let progress = walk.progress();
    assert_eq!(progress.blocks_done, 1 + files + files * chunks);
    assert_eq!(answers, progress.blocks_done + progress.asked_again);
    assert!(
        progress.asked_again > 0 && progress.asked_again < files,
        "{progress:?}"
    );
}

/// After a refusal nothing is asked for, nothing is accepted, nothing is held.
#[test]
fn a_refused_walk_is_over() {
    let root = fake_cid(DAG_CBOR, 0);
    let mut walk = Walk::new(root, WalkConfig::default().max_frontier_bytes(1_000));
    assert_eq!(walk.next_need(), Some(root));
    // An endless iterator of links is read only as far as the limit.
    let refused = walk.on_block(&root, 10, (1..).map(|n| fake_cid(RAW, n)));
    assert_eq!(
        refused,
        Err(WalkError::TooWide {
            cid: root,
            limit: 1_000
        })
    );
    assert_eq!(walk.state(), State::Refused(refused.unwrap_err()));
    assert_eq!(
        (walk.next_need(), walk.is_done(), walk.frontier_memory()),
        (None, false, 0)
    );
    walk.on_block(&fake_cid(RAW, 1), 10, []).unwrap();
    assert_eq!(walk.progress().ignored, 1);
    assert_eq!(walk.retry_missing(), 0);
}

#[test]
fn an_unreadable_block_ends_the_walk_by_name() {
    let dag = Dag::wide(3, 8);
    let mut walk = Walk::new(dag.root, WalkConfig::default());
    let root = walk.next_need().unwrap();
    walk.on_unreadable(&fake_cid(RAW, 9), "not ours").unwrap();
    let cause = walk
        .on_unreadable(&root, "unexpected end of a field")
        .unwrap_err();
    assert_eq!(
        cause.to_string(),
        format!("{root} cannot be read: unexpected end of a field")
    );
    assert_eq!(walk.state(), State::Refused(cause));
}

#[test]
fn missing_blocks_are_named_with_their_causes_and_asked_for_again_in_place() {
    let dag = Dag::wide(6, 8);
    let leaves = dag.links(&dag.root).to_vec();
    let mut walk = Walk::new(dag.root, WalkConfig::default());
    let root = walk.next_need().unwrap();
    answer(&mut walk, &dag, &root).unwrap();
    let asked: Vec<_> = std::iter::from_fn(|| walk.next_need()).collect();
    assert_eq!(asked, leaves);
    for (i, leaf) in leaves.iter().enumerate() {
        match i {
            1 => walk.on_missing(leaf, MissingCause::NotFound { asked: 2 }),
            4 => walk.on_missing(leaf, MissingCause::Stalled),
            _ => answer(&mut walk, &dag, leaf).unwrap(),
        }
    }
    assert_eq!(walk.state(), State::Missing);
    let causes: BTreeMap<_, _> = walk
        .missing()
        .map(|(cid, cause)| (*cid, cause.to_string()))
        .collect();
    assert_eq!(causes[&leaves[1]], "none of 2 peers has it");
    assert_eq!(causes[&leaves[4]], "no byte arrived in time");
    assert_eq!((walk.progress().missing, walk.progress().pending), (2, 2));
    // One comes by itself, late; the other is asked for again.
    answer(&mut walk, &dag, &leaves[4]).unwrap();
    assert_eq!(walk.retry_missing(), 1);
    assert_eq!(walk.state(), State::Walking);
    assert_eq!(walk.next_need(), Some(leaves[1]));
    answer(&mut walk, &dag, &leaves[1]).unwrap();
    assert_eq!(walk.state(), State::Whole);
}

#[test]
fn missing_blocks_are_bounded_and_then_nothing_more_is_asked_for() {
    let dag = Dag::wide(100, 8);
    let mut walk = Walk::new(dag.root, WalkConfig::default().max_missing(10).window(4));
    let root = walk.next_need().unwrap();
    answer(&mut walk, &dag, &root).unwrap();
    let mut asked = 0;
    while let Some(cid) = walk.next_need() {
        asked += 1;
        walk.on_missing(&cid, MissingCause::NoPeers);
    }
    assert_eq!((asked, walk.state()), (10, State::Missing));
    assert_eq!(walk.retry_missing(), 10);
    assert_eq!(walk.next_need(), Some(dag.links(&dag.root)[0]));
}

#[test]
fn a_direct_pin_is_whole_with_its_root() {
    let dag = Dag::wide(10, 8);
    let mut walk = Walk::of_kind(dag.root, Kind::Direct, WalkConfig::default());
    assert_eq!(walk.next_need(), Some(dag.root));
    assert!(!walk.is_done());
    answer(&mut walk, &dag, &dag.root).unwrap();
    assert!(walk.is_done());
    assert_eq!((walk.next_need(), walk.progress().blocks_done), (None, 1));
}

/// The same block named by a CIDv0 and a CIDv1 is one block; the same bytes under two codecs are two.
#[test]
fn versions_of_a_cid_are_one_block_and_codecs_are_two() {
    let v1 = fake_cid(DAG_PB, 5);
    let v0 = Cid::new_v0(*v1.hash()).unwrap();
    let root = dag_cbor(&[v0, v1, fake_cid(RAW, 5), v0], b"");
    let mut walk = Walk::new(*root.cid(), WalkConfig::default());
    let asked = walk.next_need().unwrap();
    walk.on_block(&asked, 1, [v0, v1, fake_cid(RAW, 5), v0])
        .unwrap();
    assert_eq!(
        (walk.next_need(), walk.next_need(), walk.next_need()),
        (Some(v0), Some(fake_cid(RAW, 5)), None)
    );
}

#[test]
fn a_root_without_links_is_a_dag_of_one() {
    let block = raw(b"alone".to_vec());
    let mut walk = Walk::new(*block.cid(), WalkConfig::default());
    assert_eq!(walk.root(), block.cid());
    assert_eq!(walk.state(), State::Walking);
    let cid = walk.next_need().unwrap();
    walk.have(&cid, 5, []).unwrap();
    assert_eq!(walk.state(), State::Whole);
    assert_eq!(walk.progress().blocks_fetched, 0);
}

/// The order of answers does not change what is refused, when every path is beyond the limit or none is.
#[test]
fn limits_do_not_depend_on_the_order_of_answers() {
    check!(sim_scale(2_000), |rng| {
        let dag = Dag::balanced(3, 4, 16);
        let (blocks, depth) = (dag.blocks.len() as u64, 3);
        let limit_blocks = blocks - 2 + rng.below(4);
        let limit_depth = 2 + rng.below(3) as u32;
        let config = WalkConfig::default()
            .max_blocks(limit_blocks)
            .max_depth(limit_depth)
            .window(1 + rng.index(30));
        let mut walk = Walk::new(dag.root, config);
        let mut open = Vec::new();
        let refused = loop {
            open.extend(std::iter::from_fn(|| walk.next_need()));
            if open.is_empty() {
                break false;
            }
            let cid = open.swap_remove(rng.index(open.len()));
            if answer(&mut walk, &dag, &cid).is_err() {
                break true;
            }
        };
        assert_eq!(refused, blocks > limit_blocks || depth > limit_depth);
        assert_eq!(walk.is_done(), !refused);
    });
}

/// One seed, one walk: with another key of the visited set as well.
#[test]
fn the_key_of_the_visited_set_changes_nothing_that_is_seen() {
    let dag = Dag::random(&mut Rng::new(11), 300);
    let run = |key: [u8; 16]| {
        let mut walk = Walk::new(
            dag.root,
            WalkConfig::default().max_depth(u32::MAX).visited_key(key),
        );
        std::iter::from_fn(|| {
            let cid = walk.next_need()?;
            answer(&mut walk, &dag, &cid).unwrap();
            Some(cid)
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(run([0; 16]), run([7; 16]));
}

/// A window can be opened while the walk is under way; what was asked for stays.
#[test]
fn the_window_opens_under_way() {
    let dag = Dag::balanced(1, 8, 64);
    let mut walk = Walk::new(dag.root, WalkConfig::default().window(1));
    let root = walk.next_need().unwrap();
    assert_eq!(walk.next_need(), None);
    answer(&mut walk, &dag, &root).unwrap();
    let first = walk.next_need().unwrap();
    assert_eq!(walk.next_need(), None);
    walk.set_window(4);
    let more: Vec<_> = std::iter::from_fn(|| walk.next_need()).collect();
    assert_eq!(more.len(), 3);
    assert!(!more.contains(&first));
}
