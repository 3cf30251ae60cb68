//! Nodes that write, replicate and consume, in virtual time. A twentieth in `cargo test`, in full with `GEMBA_SIM=full`.
#![allow(clippy::unwrap_used)]

use gemba_log::{
    NewEvent, StreamName,
    consume::{LogSink, LogSource},
    core::consumer::Planted,
    sim::{Fault, Links, MemoryLog, Plan, Report, World},
};
use gemba_testkit::{Replay, sim_scale};
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
    let end = plan.writing.max(last) + 10 * MINUTE;
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
