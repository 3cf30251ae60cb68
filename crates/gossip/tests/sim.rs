//! The scenarios of the simulator and their figures: a twentieth in every run, in full with `GEMBA_SIM=full`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Duration;

use gemba_gossip::TopicOptions;
use gemba_gossip::sim::{Break, Manner, Plan, Planted, Report, Rule, Topology, scenario};
use gemba_testkit::{check, sim_scale};

const SECOND: Duration = Duration::from_secs(1);

fn plan(name: &str) -> Plan {
    scenario(name).unwrap().plan()
}

/// A twentieth of the messages, but so many at least.
fn shorten(plan: &mut Plan, least: u32) {
    let messages = sim_scale(plan.publish.messages as usize) as u32;
    plan.publish.messages = messages.max(least);
}

/// Runs it; no rule may be broken.
fn run(plan: &Plan) -> Report {
    let report = plan.run();
    assert!(report.breaches.is_empty(), "{:#?}", report.breaches);
    report
}

fn percent(share: f64) -> f64 {
    share * 100.0
}

#[test]
fn s4_55_g5_s4_54_one_node_a_hundred_times_slower_delays_nobody_and_sends_nothing_old() {
    // Another mesh comes of the smallest difference, and has another p99: what counts is the mean of many.
    let (mut with, mut without, mut stale) = (0.0, 0.0, 0);
    let runs = sim_scale(60).min(10);
    check!(runs, |rng| {
        let mut plan = plan("slow-node");
        plan.seed = rng.next_u64();
        plan.publish.messages = (sim_scale(2000) as u32).max(300);
        let slow = run(&plan);
        plan.slow = 1;
        let fast = run(&plan);
        assert_eq!(fast.delivery, 1.0);
        assert_eq!(slow.delivery, 1.0, "everybody else gets everything");
        assert!(slow.stale > 50, "the slow one keeps up: {}", slow.stale);
        assert_eq!(slow.stale_forwards, 0);
        with += slow.latency.p99 / runs as f64;
        without += fast.latency.p99 / runs as f64;
        stale += slow.stale;
    });
    println!(
        "figure: g5 30 fast nodes and one 100 x slower: p99 {with:.1} ms, {without:.1} ms where all are fast, mean of {runs}; {stale} dropped as stale, 0 sent on"
    );
    assert!(
        with <= without * 1.1,
        "{with} ms, {without} ms without the slow one"
    );
}

#[test]
fn s0_30_s0_16_ten_nodes_with_five_percent_loss_and_churn_deliver_within_five_seconds() {
    for name in ["churn", "restarts", "power-cuts"] {
        let (mut due, mut in_time, mut longest) = (0, 0, 0.0_f64);
        check!(sim_scale(20), |rng| {
            let mut plan = plan(name);
            plan.seed = rng.next_u64();
            let report = run(&plan);
            due += report.due;
            in_time += report.in_time;
            longest = longest.max(report.latency.max);
        });
        let share = in_time as f64 / due as f64;
        println!(
            "figure: s0_30 {name}: {:.4} % of {due} within 5 s",
            percent(share)
        );
        assert!(
            share >= 0.999,
            "{name}: {in_time} of {due}, longest {longest} ms"
        );
    }
}

#[test]
fn s0_31_g8_a_line_delivers_everything_through_who_does_not_read_and_relays_end() {
    // With four there are two relays, which must not keep each other alive.
    for nodes in [3, 4, 6] {
        let mut plan = plan("line");
        plan.honest = nodes;
        let report = run(&plan);
        assert_eq!((report.published, report.in_time), (1000, 1000));
        assert_eq!(report.counters.relayed, 1000 * (nodes as u64 - 2));
        assert_eq!(report.checked_good, 1000 * (nodes as u64 - 1));
    }
}

#[test]
fn s0_32_twenty_nodes_in_full_mesh_need_four_tenths_of_the_bytes_of_flooding() {
    for name in ["quick", "small-messages"] {
        let (mut shares, runs) = (0.0, sim_scale(40).min(5));
        check!(runs, |rng| {
            let mut plan = plan(name);
            plan.seed = rng.next_u64();
            shorten(&mut plan, 200);
            let report = run(&plan);
            let share = report.bytes.of_flooding.unwrap();
            println!(
                "figure: s0_32 {name}: {:.2} copies a message, mesh {:.2}, {:.1} % of the bytes of flooding, {:.1} % of ours control",
                report.copies,
                report.mesh,
                percent(share),
                percent(report.bytes.control)
            );
            assert_eq!(report.delivery, 1.0);
            assert!(
                report.copies <= report.mesh,
                "{} {}",
                report.copies,
                report.mesh
            );
            shares += share / runs as f64;
        });
        assert!(shares <= 0.4, "{name}: {shares}");
    }
}

#[test]
fn g7_s4_57_two_hundred_honest_among_eight_hundred_hostile_deliver_in_five_seconds() {
    let mut plan = plan("siege");
    plan.set_peers(sim_scale(1000).max(100));
    shorten(&mut plan, 200);
    let report = run(&plan);
    println!(
        "figure: g7 {} honest and {} hostile: {:.3} % in 5 s, p99 {:.0} ms, {} bad signatures checked, {} bans",
        report.honest,
        report.hostile,
        percent(report.delivery),
        report.latency.p99,
        report.checked_bad,
        report.counters.bans
    );
    assert!(report.delivery >= 0.995, "{}", report.delivery);
    assert_eq!((report.invented, report.redelivered), (0, 0));
}

#[test]
fn s4_57_a_spammer_is_cut_off_in_five_seconds_and_the_others_hear_each_other() {
    check!(sim_scale(20), |rng| {
        // The application rejects what it says.
        let mut plan = plan("spam");
        plan.seed = rng.next_u64();
        shorten(&mut plan, 100);
        let report = run(&plan);
        assert!(report.delivery >= 0.99, "{}", report.delivery);
        assert_eq!(report.invented, 0);
        assert_eq!(report.banned, 10, "all of its neighbours");
        assert!(report.banned_within_s.unwrap() <= 5.0);
        // Or the topic has a list of authors: then it is not even verified.
        plan.topics = vec![("t".into(), TopicOptions::default())];
        plan.allow_list = true;
        let report = run(&plan);
        assert!(report.delivery >= 0.99, "{}", report.delivery);
        assert_eq!(report.invented, 0);
        assert_eq!(report.checked_good, report.counters.delivered);
        assert!(report.counters.refused_author > 1000);
    });
}

#[test]
fn g9_s4_17_s4_19_a_thousand_broken_streams_are_found_in_30_s_and_healed_in_60_s() {
    let mut plan = plan("breaks");
    let breaks = plan.breaks.as_mut().unwrap();
    breaks.count = sim_scale(1000).max(50) as u32;
    shorten(&mut plan, 30);
    let report = run(&plan);
    let mut count = 0;
    for (how, figures) in &report.breaks {
        println!(
            "figure: g9 {how:?}: {} found in {:.1} s and healed in {:.1} s at most",
            figures.count, figures.found_max, figures.healed_max
        );
        assert_eq!(
            (figures.found, figures.healed),
            (figures.count, figures.count),
            "{how:?}"
        );
        assert!(
            figures.found_max <= 30.0 && figures.healed_max <= 60.0,
            "{how:?}"
        );
        count += figures.count;
    }
    assert_eq!(count as usize, sim_scale(1000).max(50));
    assert!(report.breaks.contains_key(&Break::HalfOpen));
    assert!(report.delivery >= 0.999, "{}", report.delivery);
}

#[test]
fn s0_34_g10_publishing_is_a_matter_of_no_time_while_neighbours_are_dead() {
    let mut plan = plan("breaks");
    plan.breaks.as_mut().unwrap().count = 40;
    plan.publish.messages = 400;
    plan.publish.every = SECOND / 10;
    let report = run(&plan);
    assert_eq!(report.published, 400);
    assert!(report.receipts.max < 1.0, "{:?}", report.receipts);
    let overhead = report.bytes.messages * report.bytes.per_node * 50.0
        / report.counters.messages_out as f64
        - 200.0;
    assert!(overhead < 200.0, "{overhead} bytes a message");
}

#[test]
fn g2_s4_35_an_echo_storm_of_24_hours_redelivers_nothing() {
    let mut plan = plan("echo");
    shorten(&mut plan, 60);
    let report = run(&plan);
    assert_eq!(report.delivery, 1.0);
    assert_eq!(report.redelivered, 0);
    // One topic of two is signed.
    assert_eq!(report.checked_good * 2, report.counters.delivered);
    assert!(report.copies > 20.0, "{} copies a message", report.copies);
    println!(
        "figure: g2 {:.1} h of echoes: {:.0} copies a message, 0 redelivered",
        report.seconds / 3600.0,
        report.copies
    );
}

#[test]
fn s4_17_a_swarm_that_was_cut_in_two_is_whole_again() {
    let (mut due, mut in_time) = (0, 0);
    check!(sim_scale(20), |rng| {
        let mut plan = plan("partition");
        plan.seed = rng.next_u64();
        plan.publish.messages = 700;
        let report = run(&plan);
        assert!(report.delivery >= 0.995, "{}", report.delivery);
        due += report.due;
        in_time += report.in_time;
    });
    let share = in_time as f64 / due as f64;
    println!(
        "figure: s4_17 a cut of 30 s: {:.4} % of {due} in 5 s",
        percent(share)
    );
    assert!(share >= 0.999, "{in_time} of {due}");
}

#[test]
fn s0_30_a_thousand_nodes_deliver_everything() {
    let mut plan = plan("large");
    plan.set_peers(sim_scale(1000).max(60));
    shorten(&mut plan, 50);
    let report = run(&plan);
    println!(
        "figure: {} nodes: {:.4} % in 5 s, p50 {:.0} ms, p99 {:.0} ms, {:.2} copies a message",
        report.honest,
        percent(report.delivery),
        report.latency.p50,
        report.latency.p99,
        report.copies
    );
    assert_eq!(report.in_time, report.due);
    assert!(report.latency.p99 <= 500.0);
    assert!(report.copies <= report.mesh);
}

#[test]
fn one_seed_is_one_run() {
    let report = |seed| {
        let mut plan = plan("siege");
        plan.set_peers(60);
        plan.publish.messages = 30;
        plan.seed = seed;
        serde_json::to_string(&plan.run()).unwrap()
    };
    assert_eq!(report(4), report(4));
    assert_ne!(report(4), report(5));
}

// --- the simulator bites

/// The same plan with a bug planted breaks a rule, and without it none.
fn bites(bug: Planted, rule: Rule, mut plan: Plan) {
    run(&plan);
    plan.planted = Some(bug);
    let report = plan.run();
    assert!(
        report.breaches.iter().any(|breach| breach.rule == rule),
        "{bug:?} was not found: {:?}",
        report.breaches
    );
}

#[test]
fn planted_first_seen_is_found() {
    let mut plan = plan("echo");
    plan.publish.messages = 40;
    bites(Planted::FirstSeen, Rule::DeliveredOnce, plan);
}

#[test]
fn planted_insert_before_verify_is_found() {
    let mut plan = Plan::new("forged", 12);
    plan.hostile = vec![(Manner::Forger, 3)];
    plan.quiet = 25 * SECOND;
    bites(Planted::InsertBeforeVerify, Rule::NotSilenced, plan);
}

#[test]
fn planted_forward_late_is_found() {
    let mut plan = plan("slow-node");
    plan.publish.messages = 600;
    bites(Planted::ForwardLate, Rule::SentOnInTime, plan);
}

#[test]
fn planted_promise_forever_is_found() {
    let mut plan = Plan::new("promises", 20);
    plan.hostile = vec![(Manner::PromiseBreaker, 10)];
    plan.topology = Topology::Random { dials: 8 };
    plan.quiet = 40 * SECOND;
    bites(Planted::PromiseForever, Rule::Settled, plan);
}

#[test]
fn planted_never_reopens_is_found() {
    let mut plan = plan("breaks");
    plan.honest = 20;
    plan.breaks.as_mut().unwrap().count = 20;
    plan.publish.messages = 20;
    plan.quiet = 150 * SECOND;
    bites(Planted::NeverReopens, Rule::Reopened, plan);
}
