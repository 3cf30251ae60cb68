//! Nodes that write, replicate and consume, in virtual time. A twentieth in `cargo test`, in full with `GEMBA_SIM=full`.
#![allow(clippy::unwrap_used)]

use gemba_log::{
    NewEvent, Pattern, StreamName,
    consume::{LogSink, LogSource},
    core::{
        consumer::Planted,
        dead::{Letters, Record},
    },
    sim::{Fault, Links, MemoryLog, Plan, Report, World},
};
use gemba_testkit::{Replay, Rng, sim_scale};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Runs a plan until everybody agrees, and checks what must hold at the end of each run.
fn run(plan: Plan) -> (World, Report) {
    let last = plan
        .faults
        .iter()
        .map(|(at, _)| *at)
        .max()
        .unwrap_or_default();
    // Who is a hundred times slower needs more than the others.
    let more = plan.slow.map_or(10, |_| 60) * MINUTE;
    let end = plan.writing.max(last) + more;
    let mut world = World::new(plan);
    let converged = world.run_until_converged(end, Duration::from_secs(1));
    let report = world.report();
    assert!(
        converged,
        "no agreement: nodes {:?} differ, {report:#?}",
        world.disagreements()
    );
    assert_eq!(report.errors, Vec::<String>::new());
    let order = world.log(0).order();
    for node in 1..report.counts.len() {
        assert_eq!(
            world.log(node).order(),
            order,
            "node {node} has another total order"
        );
    }
    (world, report)
}

/// The light barrier counts pieces: services crash, nodes lose power, messages are lost, doubled and overtake each other, the swarm falls
/// apart. Every node counts every piece once.
#[test]
fn s3_21_the_count_is_exact_on_every_node_after_500_crashes() {
    let replay = Replay::new(env!("CARGO_PKG_NAME"), 0x521);
    let plan = Plan::light_barrier(replay.rng().seed(), sim_scale(100_000), sim_scale(500));
    let all = (plan.events * plan.writers) as u64;
    let is_kill = |fault: &Fault| matches!(fault, Fault::KillConsumer(..) | Fault::KillNode(..));
    let kills = plan
        .faults
        .iter()
        .filter(|(_, fault)| is_kill(fault))
        .count() as u64;
    let (_, report) = run(plan);
    assert_eq!(report.counts, vec![all; 8]);
    assert_eq!(report.breaches, 0);
    assert!(
        report.kills * 2 > kills,
        "{} of {kills} deaths happened",
        report.kills
    );
    let (sent, lost, doubled) = report.messages;
    assert!(
        lost * 20 > sent && doubled * 20 > sent,
        "a tenth of {sent}: {lost} lost, {doubled} doubled"
    );
}

/// Most messages come twice, and events are given again after each crash: each is counted once.
#[test]
fn l7_s3_18_duplicates_have_no_effect() {
    let mut plan = Plan::light_barrier(7, sim_scale(20_000), sim_scale(200));
    plan.links.doubled = 600;
    let all = (plan.events * plan.writers) as u64;
    let (_, report) = run(plan);
    assert_eq!((report.counts, report.breaches), (vec![all; 8], 0));
    let (sent, _, doubled) = report.messages;
    assert!(doubled * 2 > sent);
}

#[test]
fn a_seed_is_a_run() {
    let once = || format!("{:?}", run(Plan::light_barrier(99, 800, 8)).1);
    assert_eq!(once(), once());
}

/// Wall clocks show any time of two centuries: nothing is lost, and the order is the same on all nodes.
#[test]
fn l12_clocks_have_no_part_in_order_and_lose_nothing() {
    let mut plan = Plan::light_barrier(12, sim_scale(20_000), sim_scale(100));
    plan.clock_chaos = true;
    let all = (plan.events * plan.writers) as u64;
    let (_, report) = run(plan);
    assert_eq!((report.counts, report.breaches), (vec![all; 8], 0));
}

/// Any two nodes at rest have the same last batches and the same order, whatever happened between them.
#[test]
fn s3_50_s4_7_s3_41_any_schedule_converges() {
    for seed in 0..sim_scale(100) as u64 {
        let mut plan = Plan::light_barrier(seed, 400, 6);
        plan.nodes = 3 + (seed % 6) as usize;
        plan.writers = plan.nodes.min(5);
        plan.neighbours = 2 + (seed % 3) as usize;
        plan.links.lost = 200;
        let nodes = plan.nodes;
        plan.faults.retain(|(_, fault)| match fault {
            Fault::KillConsumer(node, _) | Fault::KillNode(node, _) => *node < nodes,
            _ => true,
        });
        let all = (plan.events * plan.writers) as u64;
        let (_, report) = run(plan);
        assert_eq!(report.counts, vec![all; nodes], "seed {seed}");
    }
}

/// 500 nodes whose two halves do not meet for 30 days: after that they agree within ten round trips and what their links need for the bytes.
#[test]
fn l10_s3_10_s3_13_after_thirty_days_apart_everybody_agrees_soon() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let nodes = sim_scale(500);
    let links = Links {
        latency: Duration::from_millis(50),
        rate: 1_000_000,
        ..Links::good()
    };
    let plan = Plan {
        nodes,
        writers: nodes,
        events: 8,
        batch: 6,
        writing: 29 * DAY,
        neighbours: 8,
        links: links.clone(),
        consume: false,
        sync_interval: 5 * DAY,
        ..Plan::new(10)
    };
    let mut world = World::new(plan);
    world.run_until(Duration::from_secs(10));
    world.fault(Fault::Partition(
        (0..nodes as u32).map(|node| node % 2).collect(),
    ));
    world.run_until(30 * DAY);
    assert!(!world.disagreements().is_empty(), "they were apart");
    let before = world.report().bytes;
    world.fault(Fault::Heal);
    let converged = world.run_until_converged(30 * DAY + MINUTE, Duration::from_millis(10));
    assert!(converged, "{} nodes differ", world.disagreements().len());
    let report = world.report();
    let bytes = (report.bytes - before) / nodes as u64;
    let rtt = 2 * links.latency;
    let limit = 10 * rtt + Duration::from_secs_f64(bytes as f64 / links.rate as f64);
    let took = report.converged.unwrap() - 30 * DAY;
    assert!(
        took <= limit,
        "{took:?} for {bytes} bytes a node, more than {limit:?}"
    );
}

fn secret_of_node_0() -> [u8; 32] {
    let mut secret = [0x5a; 32];
    secret[..8].fill(0);
    secret
}

/// A device is cloned: both copies write on in the same feed. Everybody keeps both histories, tells of it, and agrees on the order.
#[test]
fn l5_forks_are_kept_told_and_agreed_on() {
    for seed in 0..sim_scale(200) as u64 {
        let plan = Plan {
            nodes: 6,
            writers: 0,
            consume: false,
            neighbours: 2,
            links: Links::bad(),
            ..Plan::new(seed)
        };
        let mut world = World::new(plan);
        let stream: StreamName = "line/0/pieces".parse().unwrap();
        let piece = |n: usize| vec![NewEvent::new(0, vec![n as u8])];
        for n in 0..3 {
            world.append(0, &stream, piece(n));
        }
        world.run_until(MINUTE);
        // Node 5 gets a copy of node 0's disk, key and all, while both are out of reach of each other.
        world.fault(Fault::Partition(vec![0, 0, 0, 1, 1, 1]));
        let clone: MemoryLog = world.log(0).cloned(secret_of_node_0());
        world.replace_log(5, clone);
        for n in 0..2 + seed as usize % 3 {
            world.append(0, &stream, piece(10 + n));
        }
        for n in 0..2 {
            world.append(5, &stream, piece(20 + n));
        }
        world.run_until(2 * MINUTE);
        world.fault(Fault::Heal);
        let converged = world.run_until_converged(20 * MINUTE, Duration::from_secs(1));
        assert!(converged, "seed {seed}: {:?}", world.disagreements());
        let feed = world.log(0).own_feed(&stream);
        let main = |node: usize| world.log(node).read(&feed, 0, 100, 1 << 20).unwrap();
        for node in 0..6 {
            assert_eq!(
                world.log(node).tips(&feed).len(),
                2,
                "node {node} keeps both branches"
            );
            assert_eq!(world.log(node).order(), world.log(0).order());
            assert_eq!(main(node), main(0), "and reads the same one");
        }
        assert_eq!(world.report().forks, 6, "each node tells of it once");
    }
}

/// A device that was restored goes on in a new epoch: nothing is overwritten, and nobody takes it for a fork.
#[test]
fn l5_a_restored_device_that_goes_on_in_a_new_epoch_forks_nothing() {
    let plan = Plan {
        nodes: 4,
        writers: 0,
        consume: false,
        ..Plan::new(4)
    };
    let mut world = World::new(plan);
    let stream: StreamName = "line/0/pieces".parse().unwrap();
    for n in 0..4u8 {
        world.append(0, &stream, vec![NewEvent::new(0, vec![n])]);
    }
    world.run_until(MINUTE);
    let restored = world.log(0).cloned(secret_of_node_0());
    let old = restored.own_feed(&stream);
    restored.shorten(&old, 2);
    restored.set_epoch(1);
    world.replace_log(0, restored);
    world.append(0, &stream, vec![NewEvent::new(0, &b"after"[..])]);
    assert!(world.run_until_converged(5 * MINUTE, Duration::from_secs(1)));
    assert_eq!(world.report().forks, 0);
    assert_eq!(
        world.log(0).tips(&old)[0].0,
        4,
        "what others still had came back"
    );
    assert_eq!(world.log(3).tips(&world.log(0).own_feed(&stream)).len(), 1);
}

/// Dead letters that a node wrote, each event once.
fn letters(world: &World, node: usize) -> Letters {
    let pattern = Pattern::new(&format!("$dead/counter-{node}/#")).unwrap();
    let log = world.log(node);
    let mut letters = Letters::new(100_000);
    for span in log.spans().unwrap() {
        if pattern.matches(&span.feed.stream) && span.feed.author == log.author() {
            let portion = log.read(&span.feed, 0, usize::MAX, usize::MAX).unwrap();
            for event in portion.unwrap().events {
                letters.apply(Record::decode(&event.payload).unwrap());
            }
        }
    }
    letters
}

/// All of it at once: services and nodes die, the swarm falls apart, messages are lost, come twice and overtake each other, clocks show anything, one event in
/// a hundred is poison, one service is a hundred times slower than the others, and one takes, processes and puts back. Every node counts every good piece
/// once, what was put back is there once for each, and the dead letters are exactly the poison.
#[test]
fn s3_20_s3_39_everything_at_the_same_time_loses_and_doubles_nothing() {
    let replay = Replay::new(env!("CARGO_PKG_NAME"), 0x320);
    let mut plan = Plan::light_barrier(replay.rng().seed(), sim_scale(100_000), sim_scale(500));
    plan.links.doubled = 300;
    plan.clock_chaos = true;
    plan.poison = true;
    plan.emits = true;
    plan.slow = Some(7);
    let all = (plan.events * plan.writers) as u64;
    // Numbers 50, 150, … of each writer.
    let poison = plan.writers * ((plan.events + 49) / 100);
    let (mut world, _) = run(plan);
    // What was refused comes again for some time; then everybody agrees once more.
    let later = world.now() + 2 * MINUTE;
    world.run_until(later);
    assert!(world.run_until_converged(later + 10 * MINUTE, Duration::from_secs(1)));
    let report = world.report();
    assert_eq!(report.counts, vec![all - poison as u64; 8]);
    assert_eq!((report.breaches, report.errors.len()), (0, 0));
    for node in 0..8 {
        let letters = letters(&world, node);
        let letters = letters.list(None, usize::MAX);
        assert_eq!(letters.len(), poison, "letters of node {node}");
        for letter in letters {
            assert_eq!(letter.payload.as_deref(), Some(&b"poison"[..]));
        }
        let counted = world.log(0).own_feed(&"counted".parse().unwrap());
        let (next, _) = world.log(node).tips(&counted)[0];
        assert_eq!(next, all - poison as u64, "put back, as node {node} has it");
    }
}

/// There is no broker whose death stops the others: whichever node dies for good, those that are left give each other all that they write and all that the dead
/// one had told anybody; when it comes back, it has what it missed.
#[test]
fn s3_9_any_node_may_die_and_the_others_go_on() {
    for dead in 0..5 {
        let plan = Plan {
            nodes: 5,
            writers: 5,
            events: 400,
            writing: MINUTE,
            // A ring: each is somebody's way to others.
            neighbours: 2,
            faults: vec![(MINUTE / 3, Fault::KillNode(dead, 60 * MINUTE))],
            ..Plan::new(9 + dead as u64)
        };
        let mut world = World::new(plan);
        world.run_until(10 * MINUTE);
        let living: Vec<usize> = (0..5).filter(|node| *node != dead).collect();
        let counts = world.report().counts;
        for node in &living {
            assert_eq!(world.log(*node).all_tips(), world.log(living[0]).all_tips());
            assert_eq!(counts[*node], counts[living[0]]);
        }
        assert!(
            counts[living[0]] >= 4 * 400,
            "node {dead} is dead: {counts:?}"
        );
        assert!(counts[dead] < counts[living[0]]);
        assert!(world.run_until_converged(90 * MINUTE, MINUTE));
        assert_eq!(world.report().counts, [5 * 400; 5]);
    }
}

/// With hundreds of devices what is rare happens daily: 300 devices write a million events, and for each thousandth one a device loses power, the service
/// of the collector dies, or a message is lost or comes twice. None is missing at the collector.
#[test]
fn s3_23_faults_that_are_rare_lose_nothing_of_300_devices() {
    let replay = Replay::new(env!("CARGO_PKG_NAME"), 0x323);
    let mut rng = Rng::new(replay.rng().seed());
    let events = sim_scale(1_000_000);
    let mut plan = Plan {
        nodes: 300,
        writers: 300,
        events: events.div_ceil(300),
        collects: true,
        links: Links {
            lost: 1,
            doubled: 1,
            ..Links::good()
        },
        writing: Duration::from_millis(events as u64 / 10).max(MINUTE),
        ..Plan::new(replay.rng().seed())
    };
    let whole = plan.writing.as_millis() as u64;
    for n in 0..events / 1_000 {
        let fault = match n % 2 {
            0 => Fault::KillConsumer(0, 1 + rng.below(24)),
            _ => Fault::KillNode(1 + rng.index(299), Duration::from_millis(rng.below(5_000))),
        };
        plan.faults
            .push((Duration::from_millis(rng.below(whole)), fault));
    }
    let all = (plan.events * plan.writers) as u64;
    let (writing, faults) = (plan.writing, plan.faults.len() as u64);
    let mut world = World::new(plan);
    while world.report().counts[0] < all && world.now() < writing + 10 * MINUTE {
        let next = world.now() + Duration::from_secs(1);
        world.run_until(next);
    }
    // Nothing more comes of it, either.
    world.run_until(world.now() + MINUTE);
    let report = world.report();
    assert_eq!((report.counts[0], report.breaches), (all, 0));
    assert_eq!(report.errors, Vec::<String>::new());
    assert!(report.kills * 2 > faults, "{} of {faults}", report.kills);
    let (sent, lost, doubled) = report.messages;
    assert!(lost > 0 && doubled > 0, "of {sent}: {lost}, {doubled}");
}

/// Bugs that consumers really had are found by these very scenarios.
#[test]
fn planted_bugs_are_found() {
    for planted in [Planted::OffsetBeforeEffect, Planted::EffectBeforeOffset] {
        let found = (0..8).any(|seed| {
            let mut plan = Plan::light_barrier(seed, 4_000, 60);
            plan.planted = Some(planted);
            let all = (plan.events * plan.writers) as u64;
            let mut world = World::new(plan);
            world.run_until_converged(2 * MINUTE, Duration::from_secs(1));
            let report = world.report();
            report.breaches > 0 || report.counts.iter().any(|count| *count != all)
        });
        assert!(found, "{planted:?} was not found");
    }
}

#[test]
fn the_model_appends_a_producers_event_once() {
    let log = MemoryLog::new([1; 32]);
    let stream: StreamName = "a".parse().unwrap();
    let headers = || gemba_log::Headers::default().produced_by("p", 1);
    let event = || NewEvent::new(0, &b"x"[..]).with(headers());
    log.append(&stream, vec![event()]).unwrap();
    log.append(&stream, vec![event()]).unwrap();
    assert_eq!(log.spans().unwrap()[0].next, 1);
}
