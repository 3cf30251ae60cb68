//! The tracker move by move, and what it must do in each situation.
#![allow(clippy::unwrap_used)]

mod world;

use gemba_pins::{
    DesiredSet, Input, Kind, Move, OpKind, Outlook, Output, Phase, Pin, Progress, Source, Status,
    Target, TrackError, Tracker, TrackerConfig, Union,
};
use gemba_testkit::{Rng, check, sim_scale};
use std::collections::BTreeSet;
use std::time::Duration;
use world::{Answer, World, cid, second};

fn wanted(n: u64, recent: bool) -> Input {
    let target = Target {
        cid: cid(n),
        id: n + 1,
        reach: Kind::Recursive,
    };
    Input::Wanted { target, recent }
}

fn outputs(tracker: &mut Tracker) -> Vec<Output> {
    std::iter::from_fn(|| tracker.poll()).collect()
}

/// A tracker that has drawn everything there is, which is nothing, and compares no more.
fn drawn(config: TrackerConfig) -> Tracker {
    let mut tracker = Tracker::new(config.compare(Duration::MAX));
    let targets = Vec::new();
    let more = false;
    tracker
        .handle(Input::Drawn { targets, more }, second(0))
        .unwrap();
    outputs(&mut tracker);
    tracker
}

#[test]
fn s1_6_the_moves_of_an_operation_are_one_table() {
    use Move as M;
    use Phase as P;
    let phases = [P::Queued, P::Running, P::Done, P::Failed];
    let moves = [M::Start, M::PutBack, M::Finish, M::Fail, M::Retry];
    let legal = [
        (P::Queued, M::Start, P::Running),
        (P::Queued, M::Fail, P::Failed),
        (P::Running, M::PutBack, P::Queued),
        (P::Running, M::Finish, P::Done),
        (P::Running, M::Fail, P::Failed),
        (P::Failed, M::Retry, P::Queued),
    ];
    for phase in phases {
        for step in moves {
            let expected = legal
                .iter()
                .find(|(from, by, _)| (*from, *by) == (phase, step));
            assert_eq!(
                phase.after(step),
                expected.map(|(_, _, to)| *to),
                "{phase:?} {step:?}"
            );
        }
    }
}

#[test]
fn s1_4_there_is_no_word_without_an_operation_or_a_record() {
    let mut set = DesiredSet::new();
    let add = gemba_pins::Add {
        cid: cid(1),
        kind: Kind::Recursive,
        name: None,
        now_ms: 0,
    };
    let change = set.add(add).unwrap().unwrap();
    set.apply(change).unwrap();
    let open: Pin = set.get(&cid(1)).unwrap().clone();
    let whole = Pin {
        complete: true,
        ..open.clone()
    };
    assert_eq!(Status::of(None, None), Status::Unpinned);
    assert_eq!(Status::of(Some(&open), None), Status::PinQueued);
    assert_eq!(Status::of(Some(&whole), None), Status::Pinned);
    // Every word of IPFS Cluster that is ours comes of some operation or record.
    let mut tracker = drawn(TrackerConfig::default());
    let mut seen = BTreeSet::from([Status::Unpinned, Status::PinQueued, Status::Pinned]);
    let mut word = |tracker: &Tracker| {
        seen.insert(Status::of(Some(&open), tracker.operation(&cid(1))));
    };
    tracker.handle(wanted(1, true), second(0)).unwrap();
    word(&tracker);
    let ticket = tracker.operation(&cid(1)).unwrap().ticket;
    let failed = Input::Failed {
        ticket,
        cause: "x".into(),
        lacks: None,
    };
    tracker.handle(failed, second(1)).unwrap();
    word(&tracker);
    tracker.handle(Input::Unpin(cid(1)), second(2)).unwrap();
    word(&tracker);
    let ticket = tracker.operation(&cid(1)).unwrap().ticket;
    let refused = Input::Recorded(ticket, Err("no space".into()));
    tracker.handle(refused, second(3)).unwrap();
    word(&tracker);
    let missing: Vec<_> = Status::ALL
        .iter()
        .filter(|status| !seen.contains(*status))
        .collect();
    // A removal never waits for its turn.
    assert_eq!(missing, [&Status::UnpinQueued]);
}

#[test]
fn s1_7_an_operation_is_cancelled_in_every_phase() {
    let mut rng = Rng::new(7);
    // How far the operation of root 1 is brought before it is cancelled.
    let bring: [fn(&mut World, &mut Rng); 5] = [
        // Queued: all turns are taken by others.
        |world, rng| {
            for n in 2..6 {
                world.pin(0, cid(n));
                world.persist(rng);
            }
            world.pin(0, cid(1));
            world.persist(rng);
            assert_eq!(world.status(&cid(1)), Status::PinQueued);
        },
        // Running.
        |world, rng| {
            world.pin(0, cid(1));
            world.persist(rng);
            world.advance(rng);
            assert_eq!(world.status(&cid(1)), Status::Pinning);
            assert_eq!(world.walks.len(), 1);
        },
        // Whole, and its record on the way to the disk.
        |world, rng| {
            world.pin(0, cid(1));
            world.persist(rng);
            for _ in 0..3 {
                world.advance(rng);
            }
            assert!(world.tracker.operation(&cid(1)).unwrap().recording);
        },
        // Failed.
        |world, rng| {
            world.missing.insert(cid(1));
            world.pin(0, cid(1));
            world.persist(rng);
            for _ in 0..3 {
                world.advance(rng);
            }
            world.pass(second(15));
            assert_eq!(world.status(&cid(1)), Status::PinError);
        },
        // Wanted, and the record of the wish still on its way.
        |world, rng| {
            world.pin(0, cid(1));
            world.pin(0, cid(1));
            world.persist(rng);
        },
    ];
    for bring in bring {
        let mut world = World::new(TrackerConfig::default());
        world.persist(&mut rng);
        bring(&mut world, &mut rng);
        let others = world
            .walks
            .keys()
            .filter(|ticket| ticket.cid != cid(1))
            .count();
        world
            .tracker
            .handle(Input::Cancel(cid(1)), world.now)
            .unwrap();
        world.pass(Duration::ZERO);
        // At once: nothing runs for it, before the disk was asked.
        assert_eq!(world.walks.len(), others);
        assert_eq!(world.status(&cid(1)), Status::Unpinning);
        assert!(world.settle(&mut rng, second(1000)));
        assert!(world.set.get(&cid(1)).is_none() && world.is_silent());
    }
    // What is whole has no operation, and a removal on its way to the disk is not called back.
    let mut world = World::new(TrackerConfig::default());
    let cancel = |world: &mut World| world.tracker.handle(Input::Cancel(cid(1)), world.now);
    world.pin(0, cid(1));
    assert!(world.settle(&mut rng, second(1000)));
    assert_eq!(cancel(&mut world), Err(TrackError::NoOperation(cid(1))));
    world.unpin(1, cid(1));
    assert_eq!(cancel(&mut world), Err(TrackError::TooLate(cid(1))));
    // One that the disk refused is.
    world.refused = 1000;
    world.persist(&mut rng);
    world.refused = 0;
    assert_eq!(world.status(&cid(1)), Status::UnpinError);
    assert_eq!(cancel(&mut world), Ok(()));
    world.pass(second(1));
    assert!(world.settle(&mut rng, second(1000)));
    assert_eq!(world.status(&cid(1)), Status::Pinned);
}

/// The disk refused the removal, and then the newer wish as well: what it held all along is wanted, and is begun again without a hand.
#[test]
fn p1_a_removal_and_a_newer_wish_that_are_both_refused_leave_the_pin_under_way() {
    let mut rng = Rng::new(1);
    let mut world = World::new(TrackerConfig::default());
    world.pin(0, cid(1));
    world.persist(&mut rng);
    world.persist(&mut rng);
    world.refused = 1000;
    for refused_first in [true, false] {
        world.unpin(1, cid(1));
        if refused_first {
            world.persist(&mut rng);
        }
        world.pin(2, cid(1));
        while world.backlog() > 0 {
            world.persist(&mut rng);
        }
        assert_eq!(world.tracker.operation(&cid(1)), None);
        assert!(world.set.get(&cid(1)).is_some());
    }
    world.refused = 0;
    assert!(world.settle(&mut rng, second(1000)));
    assert_eq!(world.status(&cid(1)), Status::Pinned);
    assert!(world.is_silent());
}

#[test]
fn s1_8_storms_on_one_root_end_in_the_last_wish_and_what_was_queued_never_starts() {
    let mut rng = Rng::new(8);
    let mut world = World::new(TrackerConfig::default());
    for n in 2..6 {
        world.pin(0, cid(n));
    }
    while world.walks.len() < 4 {
        world.persist(&mut rng);
    }
    for _ in 0..1000 {
        world.pin(0, cid(1));
        world.persist(&mut rng);
        world.unpin(0, cid(1));
        world.persist(&mut rng);
    }
    assert_eq!(world.started.get(&cid(1)), None);
    assert_eq!(world.status(&cid(1)), Status::Unpinned);
    world.pin(0, cid(1));
    assert!(world.settle(&mut rng, second(1000)));
    assert_eq!(
        (world.status(&cid(1)), world.started[&cid(1)]),
        (Status::Pinned, 1)
    );
    // The same while it runs, without waiting for the disk in between.
    for n in 0..100 {
        world.pin(0, cid(1));
        if n % 7 == 0 {
            world.step(&mut rng);
        }
        world.unpin(0, cid(1));
        if n % 5 == 0 {
            world.step(&mut rng);
        }
    }
    assert!(world.settle(&mut rng, second(1000)));
    assert!(world.is_silent() && world.set.get(&cid(1)).is_none());
}

#[test]
fn a_walk_ends_for_standing_still_and_never_for_taking_long() {
    let mut tracker = drawn(TrackerConfig::default());
    tracker.handle(wanted(1, true), second(0)).unwrap();
    let ticket = tracker.operation(&cid(1)).unwrap().ticket;
    let mut now = second(0);
    // A block every 50 s for a week.
    for n in 1..=12_096 {
        now += second(50);
        let progress = Progress {
            blocks_done: n,
            ..Progress::default()
        };
        tracker
            .handle(Input::Progress(ticket, progress), now)
            .unwrap();
        tracker.expire(now);
        assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Running);
    }
    for (outlook, patience) in [
        (Outlook::Busy, 300),
        (Outlook::Silent, 60),
        (Outlook::Denied, 15),
    ] {
        let standing = Input::Standing {
            ticket,
            outlook,
            cause: "nobody has it".into(),
            lacks: Some(cid(9)),
        };
        tracker.handle(standing, now).unwrap();
        assert_eq!(tracker.deadline(), Some(now + second(patience)));
        tracker.expire(now + second(patience) - Duration::from_millis(1));
        assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Running);
    }
    tracker.expire(now + second(15));
    let op = tracker.operation(&cid(1)).unwrap();
    assert_eq!(
        (op.phase, op.cause.as_deref()),
        (Phase::Failed, Some("nobody has it"))
    );
    assert_eq!((op.lacks, op.attempts), (Some(cid(9)), 1));
    // Its block comes by another way: now, not after the pause.
    tracker
        .handle(Input::Here(vec![cid(8)]), now + second(16))
        .unwrap();
    assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Failed);
    tracker
        .handle(Input::Here(vec![cid(9)]), now + second(16))
        .unwrap();
    assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Running);
}

#[test]
fn pauses_grow_to_their_limit_and_what_is_refused_waits_for_a_hand() {
    let config = TrackerConfig::default()
        .first_pause(second(10))
        .longest_pause(second(100));
    let mut tracker = drawn(config);
    tracker.handle(wanted(1, true), second(0)).unwrap();
    let mut now = second(0);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let ticket = tracker.operation(&cid(1)).unwrap().ticket;
        let failed = Input::Failed {
            ticket,
            cause: "x".into(),
            lacks: None,
        };
        tracker.handle(failed, now).unwrap();
        let next = tracker.deadline().unwrap();
        pauses.push((next - now).as_secs());
        now = next;
        tracker.expire(now);
    }
    assert_eq!(pauses, [10, 20, 40, 80, 100, 100]);
    let ticket = tracker.operation(&cid(1)).unwrap().ticket;
    tracker
        .handle(Input::Refused(ticket, "too deep".into()), now)
        .unwrap();
    assert_eq!(tracker.deadline(), None);
    tracker.handle(Input::Nudge, now).unwrap();
    tracker.expire(now + second(1_000_000));
    assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Failed);
    tracker.handle(Input::Recover(Some(cid(1))), now).unwrap();
    assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Running);
    assert_eq!(
        tracker.handle(Input::Recover(Some(cid(2))), now),
        Err(TrackError::NoOperation(cid(2)))
    );
}

#[test]
fn what_somebody_waits_for_goes_first_but_the_others_do_not_starve() {
    let mut tracker = drawn(TrackerConfig::default().walks(1).walks_standing(1));
    for n in 100..200 {
        tracker.handle(wanted(n, false), second(0)).unwrap();
    }
    for n in 0..100 {
        tracker.handle(wanted(n, true), second(0)).unwrap();
    }
    let mut order = Vec::new();
    let running = |tracker: &Tracker| {
        let mut ops = tracker.operations();
        ops.find(|op| op.phase == Phase::Running)
            .map(|op| op.ticket)
    };
    while let Some(ticket) = running(&tracker) {
        order.push(ticket.cid);
        tracker
            .handle(Input::Whole(ticket, Progress::default()), second(0))
            .unwrap();
        tracker
            .handle(Input::Recorded(ticket, Ok(())), second(0))
            .unwrap();
    }
    assert_eq!(order.len(), 200);
    let recent: BTreeSet<_> = (0..100).map(cid).collect();
    let first = order[1..101]
        .iter()
        .filter(|root| recent.contains(*root))
        .count();
    assert!((70..=80).contains(&first), "{first} of the first hundred");
}

#[test]
fn walks_are_bounded_and_one_that_stands_still_gives_its_turn_to_another() {
    let mut tracker = drawn(TrackerConfig::default());
    for n in 0..100 {
        tracker.handle(wanted(n, true), second(0)).unwrap();
    }
    let running = |tracker: &Tracker| {
        let running = tracker.operations().filter(|op| op.phase == Phase::Running);
        running.count()
    };
    assert_eq!(running(&tracker), 4);
    for n in 1..10 {
        tracker.expire(second(3 * n));
        assert_eq!(running(&tracker), (4 + 4 * n as usize).min(16));
    }
}

#[test]
fn a_disk_that_takes_nothing_costs_no_attempt() {
    let mut tracker = drawn(TrackerConfig::default());
    tracker.handle(wanted(1, true), second(0)).unwrap();
    tracker
        .handle(Input::Rest("the disk is full".into()), second(1))
        .unwrap();
    let told = outputs(&mut tracker);
    assert!(told.iter().any(|output| matches!(output, Output::Stop(_))));
    let op = tracker.operation(&cid(1)).unwrap();
    assert_eq!((op.phase, op.attempts), (Phase::Failed, 0));
    for n in 2..10 {
        tracker.expire(second(n));
        let ticket = tracker.operation(&cid(1)).unwrap().ticket;
        let cause = Some("the disk is full".to_owned());
        tracker
            .handle(Input::NotNow(ticket, cause), second(n))
            .unwrap();
        let op = tracker.operation(&cid(1)).unwrap();
        assert_eq!((op.phase, op.attempts), (Phase::Failed, 0));
    }
    // Without a cause it stays in the queue, and nobody is asked again before the rest is over.
    tracker.expire(second(20));
    let ticket = tracker.operation(&cid(1)).unwrap().ticket;
    tracker
        .handle(Input::NotNow(ticket, None), second(20))
        .unwrap();
    assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Queued);
    assert_eq!(tracker.deadline(), Some(second(21)));
    tracker.expire(second(21));
    assert_eq!(tracker.operation(&cid(1)).unwrap().phase, Phase::Running);
}

#[test]
fn answers_for_an_operation_that_is_no_more_change_nothing() {
    let mut tracker = drawn(TrackerConfig::default());
    tracker.handle(wanted(1, true), second(0)).unwrap();
    let old = tracker.operation(&cid(1)).unwrap().ticket;
    tracker.handle(Input::Unpin(cid(1)), second(0)).unwrap();
    let removal = tracker.operation(&cid(1)).unwrap().ticket;
    outputs(&mut tracker);
    for input in [
        Input::Progress(old, Progress::default()),
        Input::Whole(old, Progress::default()),
        Input::Refused(old, "x".into()),
        Input::NotNow(old, None),
        Input::Recorded(old, Ok(())),
        Input::Recorded(old, Err("x".into())),
    ] {
        tracker.handle(input, second(1)).unwrap();
        assert!(outputs(&mut tracker).is_empty());
    }
    assert_eq!(tracker.counts().late, 6);
    assert_eq!(tracker.operation(&cid(1)).unwrap().ticket, removal);
    assert_eq!(tracker.operation(&cid(1)).unwrap().kind, OpKind::Unpin);
}

#[test]
fn s1_12_more_pins_than_operations_are_drawn_from_the_set_and_all_become_whole() {
    let mut rng = Rng::new(12);
    let config = TrackerConfig::default().in_flight(64).batch(16);
    let mut world = World::new(config);
    world.left_behind((0..20_000).map(cid));
    let mut most = 0;
    while !world.tracker.is_idle() {
        world.persist(&mut rng);
        world.advance(&mut rng);
        most = most.max(world.tracker.len());
    }
    assert!(most <= 64, "{most} operations");
    assert!(world.set.incomplete_pins().next().is_none() && world.is_silent());
}

#[test]
fn s1_11_recover_answers_at_once_and_everything_is_tried_in_its_turn() {
    let mut rng = Rng::new(11);
    let config = TrackerConfig::default()
        .longest_pause(second(1_000_000))
        .first_pause(second(1_000_000));
    let mut world = World::new(config);
    world.missing = (0..10_000).map(cid).collect();
    world.left_behind((0..10_000).map(cid));
    // Each is tried; as many as fit in memory are in error, the others were put back.
    assert!(!world.settle(&mut rng, second(12_000)));
    let failed = |world: &World| {
        let ops = world.tracker.operations();
        ops.filter(|op| op.phase == Phase::Failed).count()
    };
    assert_eq!(world.started.len(), 10_000);
    assert!(failed(&world) > 2_000 && world.tracker.len() <= 4_096);
    world.missing.clear();
    // Nothing is done within the call but to put them in the queue, and to begin what may run.
    world.tell(Input::Recover(None));
    assert!(failed(&world) == 0 && (1..=16).contains(&world.walks.len()));
    assert!(world.settle(&mut rng, second(200_000)));
    assert!(world.is_silent() && world.set.incomplete_pins().next().is_none());
}

#[test]
fn s1_26_pins_of_which_a_tenth_fails_at_first_become_whole_without_a_hand() {
    let mut rng = Rng::new(26);
    let mut world = World::new(TrackerConfig::default());
    for n in 0..2_000 {
        world.pin(n as usize, cid(n));
        if n % 10 == 0 {
            world.missing.insert(cid(n));
        }
    }
    assert!(!world.settle(&mut rng, second(3_600)));
    let open = world.set.incomplete_pins().count();
    assert_eq!(open, 200, "those that can be whole are");
    // Whoever has the rest comes back, and nobody says so.
    world.missing.clear();
    assert!(world.settle(&mut rng, second(2 * 3_600)));
    assert!(world.is_silent() && world.set.incomplete_pins().next().is_none());
    assert_eq!(world.answers.len(), 2_000);
    assert!(
        world
            .answers
            .iter()
            .all(|(_, answer)| *answer == Answer::Done)
    );
}

#[test]
fn s1_28_what_a_restarted_store_interrupted_goes_on_by_itself_and_by_recover() {
    for by_hand in [false, true] {
        let mut rng = Rng::new(28);
        let mut world = World::new(TrackerConfig::default());
        for n in 0..40 {
            world.pin(0, cid(n));
        }
        for _ in 0..100 {
            world.step(&mut rng);
        }
        // The store goes away: whatever runs ends with that cause, and nothing begins.
        world.tell(Input::Rest("the store is away".into()));
        for _ in 0..300 {
            let running: Vec<_> = world.walks.keys().copied().collect();
            for ticket in running {
                world.tell(Input::NotNow(ticket, Some("the store is away".into())));
            }
            world.pass(Duration::from_millis(100));
        }
        assert!(world.set.incomplete_pins().count() > 0);
        if by_hand {
            world.tell(Input::Recover(None));
            assert!(!world.walks.is_empty());
        }
        assert!(world.settle(&mut rng, second(100)));
        assert!(world.set.incomplete_pins().next().is_none());
    }
}

/// Whatever ought to be and whatever is: what is becomes what ought to be.
#[test]
fn s1_1_any_desired_set_becomes_true_from_any_beginning() {
    check!(sim_scale(2_000), |rng| {
        let mut world = World::new(TrackerConfig::default().in_flight(16).batch(4));
        let count = rng.below(60);
        world.left_behind((0..count).map(cid));
        for n in 0..count {
            if rng.coin() {
                let id = world.set.get(&cid(n)).unwrap().id;
                world.blocks.insert(cid(n), world.size);
                let change = world.set.complete(&cid(n), id).unwrap().unwrap();
                world.set.apply(change).unwrap();
            }
        }
        world.crash();
        assert!(world.settle(rng, second(10_000)));
        assert!(world.set.incomplete_pins().next().is_none() && world.early == 0);
    });
}

/// Whatever changes in the set behind the tracker's back, it is done within a minute, and nobody commands it: a record that is struck out and is not
/// told, a wish that is written and is not told, while other pins come and go.
#[test]
fn s2_34_what_drifts_apart_heals_by_itself_within_a_minute() {
    check!(sim_scale(1_000), |rng| {
        let mut world = World::new(TrackerConfig::default());
        for n in 0..20 {
            world.pin(0, cid(n));
        }
        assert!(world.settle(rng, second(100)));
        // At rest it looks now and then, and finds nothing to do.
        let begun = world.tracker.counts().begun;
        for _ in 0..rng.below(200) {
            world.pass(second(1));
            world.persist(rng);
        }
        assert!(world.tracker.is_empty() && world.tracker.counts().begun == begun);
        let drifted: Vec<_> = (0..25).filter(|_| rng.coin()).map(cid).collect();
        for root in &drifted {
            match world.set.incomplete(root) {
                // A block of it is gone.
                Ok(Some(change)) => {
                    world.set.apply(change).unwrap();
                    world.blocks.remove(root);
                }
                // Not pinned so far: its record appears.
                _ => world.left_behind([*root]),
            }
        }
        if rng.coin() {
            world.pin(1, cid(30));
        }
        let mut healed_after = None;
        for passed in 0..60 {
            if world.set.incomplete_pins().next().is_none() {
                healed_after.get_or_insert(passed);
            }
            while world.backlog() > 0 || !world.walks.is_empty() {
                world.persist(rng);
                world.advance(rng);
            }
            world.pass(second(1));
        }
        let open: Vec<_> = world.set.incomplete_pins().map(|pin| pin.cid).collect();
        assert!(open.is_empty(), "{open:?} after {healed_after:?}");
        assert_eq!(world.early, 0);
        for root in drifted {
            assert_eq!(world.status(&root), Status::Pinned);
        }
    });
}

/// A second source of wishes needs nothing of the tracker.
#[test]
fn wishes_of_two_sources_are_drawn_as_one() {
    let set = |roots: std::ops::Range<u64>| {
        let mut world = World::new(TrackerConfig::default());
        world.left_behind(roots.map(cid));
        world.set
    };
    let (own, shared) = (set(0..30), set(20..50));
    let both = Union(&own, &shared);
    let (mut roots, mut after) = (Vec::new(), None);
    loop {
        let page = both.open_after(after.as_ref(), 7);
        let Some(last) = page.last() else { break };
        after = Some(last.cid);
        roots.extend(page.iter().map(|target| target.cid));
    }
    let mut expected: Vec<_> = (0..50).map(cid).collect();
    expected.sort();
    assert_eq!(roots, expected);
    let of_own = both.open_after(None, 100);
    let shared_root = of_own.iter().find(|target| target.cid == cid(25)).unwrap();
    assert_eq!(shared_root.id, own.get(&cid(25)).unwrap().id);
}
