//! One peer gone mad, a storm of many, disks and readers that are slower than the network: the others and the budgets stay as they were.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashMap;
use std::time::Duration;

use gemba_block::Block;
use gemba_exchange::wire::{Entry, Message, WantKind};
use gemba_exchange::{Answer, Config, Lane, Load, Time, WaitingFor};
use gemba_testkit::{Rng, check, sim_scale};
use world::{HOUR, MS, Manner, Taking, World, blocks};

const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;

/// Three honest devices fetch from each other and from an origin; `mad` peers are joined to all of them.
fn honest_work(rng: &mut Rng, content: &[Block], mad: usize) -> World {
    let mut manners = vec![Manner::Honest; 4];
    manners.extend(vec![Manner::Chaos; mad]);
    let mut world = World::new(rng, &manners);
    world.give(3, content);
    for a in 0..manners.len() {
        for b in a + 1..manners.len() {
            world.join(a, b);
        }
    }
    for mad in 4..manners.len() {
        let some: Vec<Block> = content.iter().filter(|_| rng.coin()).cloned().collect();
        world.give(mad, &some);
    }
    for device in 0..3 {
        world.want(device, content);
    }
    world
}

/// S4.56: whatever one peer does, what the others get is the same, and it takes them about as long as without it.
#[test]
fn s4_56_one_mad_peer_changes_no_result_of_the_others() {
    check!(sim_scale(1_000), |rng| {
        let size = *rng.pick(&[300, 8_000, 60_000]);
        let how_many = if size < 10_000 { 150 } else { 60 };
        let content = blocks(rng, how_many, size);
        let seed = rng.next_u64();
        let run = |mad| {
            let mut world = honest_work(&mut Rng::new(seed), &content, mad);
            let done = world.run(HOUR, |w| (0..3).all(|device| w.has_all(device)));
            assert!(done, "hangs with {mad} mad peers");
            world
        };
        let (without, with) = (run(0), run(1));
        for device in 0..3 {
            // Each block once and with the right bytes: the world looks at every one that is found.
            assert_eq!(with.nodes[device].found, content.len());
            assert_eq!(without.nodes[device].found, content.len());
            let (quiet, beside) = (without.nodes[device].done, with.nodes[device].done);
            let stall = with.config.stall();
            assert!(
                beside <= 2 * quiet + 3 * stall,
                "{beside:?} beside a mad peer, {quiet:?} without"
            );
        }
    });
}

fn asks(block: &Block, kind: WantKind, cancel: bool) -> Entry {
    Entry {
        cid: *block.cid(),
        priority: 1,
        cancel,
        kind,
        send_dont_have: true,
    }
}

/// S4.52: too many peers with too many wants, then calm. Who asks then is served at once, and nothing of the storm is held.
#[test]
fn s4_52_after_a_storm_the_next_want_is_served_at_once_and_all_budgets_are_zero() {
    check!(sim_scale(80), |rng| {
        const STORM: usize = 60;
        let mut manners = vec![Manner::Honest; 2];
        manners.extend(vec![Manner::Mute; STORM]);
        let mut world = World::new(rng, &manners);
        let content = blocks(rng, 120, 40_000);
        let other = blocks(rng, 20, 40_000);
        world.give(0, &content);
        world.join(0, 1);
        let strangers: Vec<Block> = blocks(rng, 2_000, 8);
        for peer in 2..2 + STORM {
            // Some of them do not take what they asked for.
            world.join(0, peer);
            let rate = *rng.pick(&[100, 20_000, 10_000_000]);
            world.links.get_mut(&(0, peer)).unwrap().rate = rate;
        }
        // Our own wish for what nobody has is part of the storm.
        world.want(0, &strangers[..500]);
        for round in 0..12 {
            for peer in 2..2 + STORM {
                let entries = (0..rng.index(300))
                    .map(|_| {
                        let block = match rng.coin() {
                            true => rng.pick(&content),
                            false => rng.pick(&strangers),
                        };
                        let kind = *rng.pick(&[WantKind::Have, WantKind::Block]);
                        asks(block, kind, rng.chance(1, 5))
                    })
                    .collect();
                let message = Message {
                    entries,
                    full: rng.chance(1, 10),
                    ..Message::default()
                };
                world.transmit(peer, 0, Lane::Request, message);
            }
            world.run(100 * MS * (round + 1), |_| false);
        }
        // In the middle of it an honest peer asks, and is served.
        world.want(1, &content);
        let asked = world.now;
        assert!(world.run(asked + 60 * SECOND, |w| w.has_all(1)), "starved");

        // Calm: they cancel, or they go.
        for peer in 2..2 + STORM {
            if rng.coin() || world.links[&(0, peer)].rate == 100 {
                world.part(0, peer);
                continue;
            }
            let nothing = Message {
                full: true,
                ..Message::default()
            };
            world.transmit(peer, 0, Lane::Request, nothing);
        }
        let session = world.nodes[0].session.take().unwrap();
        world.nodes[0].core.close_session(session, world.now);
        world.nodes[0].wanted.clear();
        world.settle(0);
        let calm = world.now;
        world.give(0, &other);
        world.want(1, &other);
        assert!(world.run(calm + 3 * SECOND, |w| w.has_all(1)), "not well");
        world.run(calm + 30 * SECOND, |_| false);
        let peers = world.nodes[0].core.load().peers;
        let held = world.nodes[0].core.load();
        let mut nothing = Load::default();
        nothing.peers = peers;
        assert_eq!(held, nothing);
        for peer in 1..2 + STORM {
            world.part(0, peer);
        }
        assert_eq!(world.nodes[0].core.load(), Load::default());
        assert_eq!(world.nodes[0].core.deadline(), None);
    });
}

/// Since when nothing was done for a want: asked, answered, or reported.
fn silent_since(world: &World, block: &Block) -> Option<(Time, WaitingFor)> {
    let why = world.nodes[0].core.why(block.cid())?;
    let asked = why.asked.iter().map(|asked| {
        // Of a peer that is silent, only the question counts; one whose bytes arrive is at work.
        let peer = world.index[&asked.peer];
        let link = &world.links[&(peer, 0)];
        let last = asked.answered_at.unwrap_or(asked.at).max(asked.at);
        match asked.answer {
            Answer::BlockPending if link.up && link.arrives(world.now) => world.now,
            _ => last,
        }
    });
    let last = asked.max().unwrap_or(why.since).max(why.since);
    Some((last, why.waiting_for))
}

/// S4.13, S4.33: no want rests without progress for longer than a bound, unless it waits for somebody who has it, which was reported
/// with who was asked and what was answered, and is tried again at a known time.
#[test]
fn s4_13_s4_33_no_want_is_silent_for_long_without_being_asked_elsewhere_or_reported() {
    check!(sim_scale(300), |rng| {
        let count = 3 + rng.index(5);
        let mut manners = vec![Manner::Honest, Manner::Honest];
        for _ in 2..count {
            manners.push(*rng.pick(&[
                Manner::Honest,
                Manner::Liar,
                Manner::Corrupter,
                Manner::Mute,
                Manner::Chaos,
            ]));
        }
        let mut world = World::new(rng, &manners);
        let content = blocks(rng, 40, 20_000);
        // A part of it nobody has.
        let (there, absent) = content.split_at(30);
        world.give(1, there);
        for node in 1..count {
            let latency = MS * rng.range(0..100) as u32;
            world.join_with(0, node, latency, 2_000_000);
        }
        let begun = world.now;
        world.want(0, &content);
        let most = 2 * world.config.stall() + 2 * SECOND;
        // When a want was last seen in the hands of the owner's patience.
        let mut rested = HashMap::new();
        while world.now < begun + 90 * SECOND {
            let until = world.now + 250 * MS;
            world.run(until, |_| false);
            for block in &content {
                let Some((last, waiting_for)) = silent_since(&world, block) else {
                    continue;
                };
                let last = last.max(rested.get(block.cid()).copied().unwrap_or(last));
                let silent = world.now.saturating_sub(last);
                match waiting_for {
                    WaitingFor::Holder => {
                        rested.insert(*block.cid(), world.now);
                        let why = world.nodes[0].core.why(block.cid()).unwrap();
                        let pending =
                            |a: Answer| matches!(a, Answer::HavePending | Answer::BlockPending);
                        assert!(
                            why.asked.iter().all(|asked| !pending(asked.answer)),
                            "{why:#?}"
                        );
                        assert!(world.nodes[0].unavailable > 0);
                        let again = why.retry_at.expect("tried again at a known time");
                        assert!(again <= world.now + world.config.retry_last() + SECOND);
                    }
                    // Its turn comes when another want moves on, and all of those do.
                    WaitingFor::Room => assert!(world.now - world.nodes[0].alive <= most),
                    _ => assert!(
                        silent <= most,
                        "{silent:?} at {:?}: {:?}, {manners:?}",
                        world.now,
                        world.nodes[0].core.why(block.cid())
                    ),
                }
            }
        }
        assert!(
            there
                .iter()
                .all(|b| world.nodes[0].blocks.contains_key(b.cid()))
        );
        for block in absent {
            let why = world.nodes[0].core.why(block.cid()).unwrap();
            assert!(!why.asked.is_empty() || !why.gone.is_empty(), "{why:#?}");
        }
    });
}

/// Ten times the budget flows from two holders to one node; returns the world after the last byte was taken.
fn flow(rng: &mut Rng, rate: u64, taking: Taking) -> World {
    let config = Config::default()
        .with_node_bytes(2 * MIB)
        .with_peer_bytes(MIB)
        .with_served_peer_bytes(MIB / 2);
    let mut world = World::with(rng, &[Manner::Honest; 3], config);
    let content = blocks(rng, 200, 100_000);
    for holder in 1..3 {
        world.give(holder, &content);
        world.join_with(0, holder, MS * rng.range(1..50) as u32, rate);
    }
    world.nodes[0].taking = taking;
    world.want(0, &content);
    assert!(world.run(HOUR, |w| w.has_all(0)), "stands still");
    assert_eq!(world.nodes[0].found, content.len());
    // By the count of the world, not of the core: what lies in memory or is on its way here. A block of each holder may pass the limit.
    let most = world.nodes[0].most;
    let budget = world.config.node_bytes() + 2 * 100_000;
    assert!(most <= budget, "{most} of {budget} bytes");
    for holder in 1..3 {
        let served = world.nodes[holder].most_served;
        let budget = world.config.served_peer_bytes() + 100_000;
        assert!(served <= budget, "{served} of {budget} bytes");
    }
    world.run(world.now + 60 * SECOND, |_| false);
    for node in &world.nodes {
        let load = node.core.load();
        assert_eq!(
            (load.wants, load.expected_bytes, load.found_bytes),
            (0, 0, 0)
        );
        assert_eq!(
            (load.served_wants, load.served_bytes, load.loads),
            (0, 0, 0)
        );
    }
    world
}

/// How long 20 MB take at `rate`, and at most a fifth more.
fn about(world: &World, rate: u64) {
    let least = Duration::from_secs(20_000_000 / rate);
    let took = world.nodes[0].done;
    assert!(
        took >= least * 95 / 100 && took <= least * 6 / 5 + SECOND,
        "{took:?}, not {least:?}"
    );
}

#[test]
fn backpressure_a_disk_slower_than_the_network_slows_the_peers_and_fills_no_memory() {
    check!(sim_scale(60), |rng| {
        let disk = 500_000;
        let taking = Taking { disk, reader: 0 };
        let world = flow(rng, 10_000_000, taking);
        about(&world, disk);
        assert!(world.nodes[0].most >= MIB, "the budget was used");
    });
}

#[test]
fn backpressure_a_network_slower_than_the_disk_is_used_in_full() {
    check!(sim_scale(60), |rng| {
        let taking = Taking {
            disk: 50_000_000,
            reader: 0,
        };
        // Two lines of 250 kB/s.
        let world = flow(rng, 250_000, taking);
        about(&world, 500_000);
    });
}

#[test]
fn backpressure_a_reader_slower_than_disk_and_network_holds_both_back() {
    check!(sim_scale(60), |rng| {
        let taking = Taking {
            disk: 2_000_000,
            reader: 250_000,
        };
        let world = flow(rng, 10_000_000, taking);
        about(&world, 250_000);
    });
}
