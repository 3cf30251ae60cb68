//! Random interleavings: histories of wishes are those of a plain set, whatever is slow, fails or crashes.
#![allow(clippy::unwrap_used)]

mod world;

use gemba_pins::{Cid, Input, Phase, Status, TrackerConfig};
use gemba_testkit::{Rng, check, sim_scale};
use std::collections::{BTreeMap, BTreeSet};
use world::{Answer, World, cid, second};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Pin,
    Unpin,
    /// Whether it was there.
    Read(bool),
}

/// One call: when it began, when it was answered, and how.
#[derive(Debug, Clone, Copy)]
struct Call {
    root: Cid,
    what: What,
    begun: usize,
    answered: Option<(usize, Answer)>,
}

/// Whether some order of the calls, each at one moment between its beginning and its answer, is a history of a set. Calls without a good answer may have
/// happened at any time after they began, or never.
fn is_linearisable(calls: &[Call]) -> bool {
    fn search(calls: &[Call], done: u64, is_in: bool, failed: &mut BTreeSet<(u64, bool)>) -> bool {
        let open = || {
            calls
                .iter()
                .enumerate()
                .filter(move |(n, _)| done & (1_u64 << n) == 0)
        };
        let is_sure = |call: &Call| {
            call.answered
                .is_some_and(|(_, answer)| answer != Answer::Unknown)
        };
        if open().all(|(_, call)| !is_sure(call)) {
            return true;
        }
        if !failed.insert((done, is_in)) {
            return false;
        }
        let sure = open().filter(|(_, call)| is_sure(call));
        let first = sure
            .filter_map(|(_, call)| call.answered)
            .map(|(at, _)| at)
            .min();
        open().any(|(n, call)| {
            if first.is_some_and(|first| call.begun > first) {
                return false;
            }
            let answer = call.answered.map_or(Answer::Unknown, |(_, answer)| answer);
            let next = match (call.what, answer) {
                (What::Pin, _) => Some(true),
                (What::Unpin, Answer::Done) => is_in.then_some(false),
                (What::Unpin, Answer::NotPinned) => (!is_in).then_some(false),
                (What::Unpin, _) => Some(false),
                (What::Read(told), _) => (told == is_in).then_some(is_in),
            };
            next.is_some_and(|next| search(calls, done | (1_u64 << n), next, failed))
        })
    }
    search(calls, 0, false, &mut BTreeSet::new())
}

/// The check itself finds what is wrong.
#[test]
fn a_history_that_is_none_is_found() {
    let call = |what, begun, answered, answer| Call {
        root: cid(0),
        what,
        begun,
        answered: Some((answered, answer)),
    };
    let pin = call(What::Pin, 0, 1, Answer::Done);
    let unpin = call(What::Unpin, 2, 3, Answer::Done);
    assert!(is_linearisable(&[
        pin,
        unpin,
        call(What::Read(false), 4, 5, Answer::Done)
    ]));
    assert!(!is_linearisable(&[
        pin,
        unpin,
        call(What::Read(true), 4, 5, Answer::Done)
    ]));
    // At the same time both may be.
    for told in [true, false] {
        assert!(is_linearisable(&[
            pin,
            unpin,
            call(What::Read(told), 2, 5, Answer::Done)
        ]));
    }
    assert!(!is_linearisable(&[
        pin,
        call(What::Unpin, 2, 3, Answer::NotPinned)
    ]));
    assert!(!is_linearisable(&[unpin]));
    let maybe = call(What::Unpin, 2, 3, Answer::Unknown);
    for told in [true, false] {
        assert!(is_linearisable(&[
            pin,
            maybe,
            call(What::Read(told), 9, 10, Answer::Done)
        ]));
    }
}

struct History {
    calls: Vec<Call>,
    clock: usize,
}

impl History {
    fn tick(&mut self) -> usize {
        self.clock += 1;
        self.clock
    }

    fn begin(&mut self, root: Cid, what: What) -> usize {
        let begun = self.tick();
        self.calls.push(Call {
            root,
            what,
            begun,
            answered: None,
        });
        self.calls.len() - 1
    }

    fn take(&mut self, world: &mut World) {
        for (caller, answer) in std::mem::take(&mut world.answers) {
            let at = self.tick();
            self.calls[caller].answered = Some((at, answer));
        }
    }

    fn check(&self) {
        let mut by_root = BTreeMap::<Cid, Vec<Call>>::new();
        for call in &self.calls {
            by_root.entry(call.root).or_default().push(*call);
        }
        for calls in by_root.values() {
            assert!(is_linearisable(calls), "{calls:#?}");
        }
    }
}

fn history(rng: &mut Rng, refused: u64, crashes: bool) {
    let mut world = World::new(TrackerConfig::default().walks(2).in_flight(16).batch(2));
    world.refused = refused;
    let roots = 1 + rng.below(4);
    let mut history = History {
        calls: Vec::new(),
        clock: 0,
    };
    for _ in 0..10 * roots {
        let root = cid(rng.below(roots));
        match rng.below(5) {
            0 | 1 => {
                let caller = history.begin(root, What::Pin);
                world.pin(caller, root);
            }
            2 | 3 => {
                let caller = history.begin(root, What::Unpin);
                world.unpin(caller, root);
            }
            _ => {
                let told = world.set.get(&root).is_some();
                let caller = history.begin(root, What::Read(told));
                world.answers.push((caller, Answer::Done));
            }
        }
        history.take(&mut world);
        for _ in 0..rng.below(6) {
            world.step(rng);
            history.take(&mut world);
        }
        if crashes && rng.chance(1, 12) {
            world.crash();
        }
    }
    world.refused = 0;
    assert!(world.settle(rng, second(100_000)));
    history.take(&mut world);
    for n in 0..roots {
        let told = world.set.get(&cid(n)).is_some();
        let caller = history.begin(cid(n), What::Read(told));
        world.answers.push((caller, Answer::Done));
        let expected = if told {
            Status::Pinned
        } else {
            Status::Unpinned
        };
        assert_eq!(world.status(&cid(n)), expected);
    }
    history.take(&mut world);
    history.check();
    assert!(world.is_silent() && world.early == 0);
}

#[test]
fn p1_histories_of_pin_and_unpin_are_those_of_a_set() {
    check!(sim_scale(60_000), |rng| history(rng, 0, false));
}

#[test]
fn p1_also_where_the_disk_refuses_and_the_process_is_killed() {
    check!(sim_scale(40_000), |rng| history(rng, 100, true));
}

/// Killed at a random step, and again: what was accepted is there, nothing is called whole too early, and all becomes whole.
#[test]
fn p2_no_crash_makes_a_pin_whole_too_early_or_loses_one() {
    check!(sim_scale(10_000), |rng| {
        let mut world = World::new(TrackerConfig::default().in_flight(16).batch(3));
        let mut accepted = BTreeSet::new();
        let count = 1 + rng.below(20);
        let mut asked = 0;
        for _ in 0..rng.below(200) {
            if asked < count && rng.coin() {
                world.pin(asked as usize, cid(asked));
                asked += 1;
            }
            world.step(rng);
            accepted.extend(
                world
                    .answers
                    .drain(..)
                    .map(|(caller, _)| cid(caller as u64)),
            );
            if rng.chance(1, 40) {
                world.crash();
            }
        }
        world.crash();
        assert!(world.settle(rng, second(10_000)));
        for root in &accepted {
            assert_eq!(world.status(root), Status::Pinned);
        }
        assert!(world.early == 0 && world.is_silent());
    });
}

/// Without any periodic comparison: after random wishes and restarts what is told is what is.
#[test]
fn s1_10_ten_thousand_random_wishes_and_restarts_leave_no_drift() {
    let mut rng = Rng::new(10);
    let mut world = World::new(TrackerConfig::default().in_flight(32).batch(8));
    for n in 0..sim_scale(10_000).max(2_000) {
        let root = cid(rng.below(100));
        match rng.below(3) {
            0 => world.unpin(n, root),
            _ => world.pin(n, root),
        }
        for _ in 0..rng.below(8) {
            world.step(&mut rng);
        }
        if rng.chance(1, 500) {
            world.crash();
        }
    }
    assert!(world.settle(&mut rng, second(10_000)));
    for n in 0..100 {
        let expected = match world.set.get(&cid(n)) {
            Some(pin) => {
                assert!(pin.complete && world.blocks[&cid(n)] == world.size);
                Status::Pinned
            }
            None => Status::Unpinned,
        };
        assert_eq!(world.status(&cid(n)), expected);
    }
    assert!(world.is_silent());
}

/// In memory is what is not over, and nothing else.
#[test]
fn s1_5_operations_are_in_memory_until_they_are_over() {
    check!(sim_scale(400), |rng| {
        let mut world = World::new(TrackerConfig::default());
        for n in 0..50 {
            world.pin(n, cid(rng.below(20)));
            for _ in 0..rng.below(10) {
                world.step(rng);
                let mut ops = world.tracker.operations();
                assert!(ops.all(|op| op.phase != Phase::Done));
            }
        }
        assert!(world.settle(rng, second(10_000)));
        assert!(world.tracker.is_empty() && world.is_silent());
    });
}

#[test]
fn p8_a_hundred_thousand_cancels_leave_nothing() {
    let mut rng = Rng::new(8);
    let mut world = World::new(TrackerConfig::default());
    let (mut cancelled, cancels) = (0, sim_scale(100_000).max(10_000));
    while cancelled < cancels {
        let root = cid(rng.below(50));
        world.pin(0, root);
        for _ in 0..rng.below(5) {
            world.step(&mut rng);
        }
        while world.backlog() > 20 {
            world.persist(&mut rng);
        }
        if world.tracker.handle(Input::Cancel(root), world.now).is_ok() {
            cancelled += 1;
            world.pass(std::time::Duration::ZERO);
            assert!(world.walks.keys().all(|ticket| ticket.cid != root));
        }
        // What became whole meanwhile is given up, so that there is always something to cancel.
        if world.status(&root) == Status::Pinned {
            world.unpin(0, root);
        }
        world.answers.clear();
        world.ended.clear();
    }
    assert!(world.settle(&mut rng, second(10_000)));
    assert!(world.is_silent());
}

/// The corpus of the fuzz target, and mutations of it.
#[test]
fn pins_script_corpus() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/pins_script");
    let mut seeds = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        seeds += 1;
        gemba_pins::fuzz::script(&seed);
        check!(sim_scale(4_000), |rng| {
            let mut bytes = seed.clone();
            for _ in 0..=rng.below(40) {
                let at = rng.index(bytes.len() + 1);
                let byte = rng.next_u64() as u8;
                match rng.below(3) {
                    0 if at < bytes.len() => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes.extend([byte, rng.next_u64() as u8]),
                }
            }
            gemba_pins::fuzz::script(&bytes);
        });
    }
    assert!(seeds >= 3);
}
