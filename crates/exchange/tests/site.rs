//! Devices of one site share what they fetch (specs/site.md), in virtual time: what leaves the origin, whatever happens to whose turn it is.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod world;

use std::time::Duration;

use gemba_block::Block;
use gemba_exchange::wire::SiteMessage;
use gemba_exchange::{Config, Input, SiteFact, Time, WaitingFor};
use gemba_testkit::{Rng, check, sim_scale};
use world::{HOUR, MS, Manner, World, blocks};

/// 20 Mbit/s.
const LINE: u64 = 2_500_000;

/// A site of `devices`, all connected, and an origin outside, the last node, that has everything. Its line is shared out among them.
fn site(rng: &mut Rng, manners: &[Manner], content: &[Block]) -> World {
    let origin = manners.len();
    let mut all = manners.to_vec();
    all.push(Manner::Honest);
    let sites = vec![Some(None); origin];
    let mut world = World::of_sites(rng, &all, Config::default(), &sites);
    world.give(origin, content);
    for a in 0..origin {
        for b in a + 1..origin {
            world.join(a, b);
        }
        world.join_with(a, origin, 20 * MS, LINE / origin as u64);
    }
    world.root = Some(*content[0].cid());
    world
}

/// The root, and then everything below it.
fn want_all(world: &mut World, devices: impl Iterator<Item = usize> + Clone, content: &[Block]) {
    for device in devices.clone() {
        world.want(device, &content[..1]);
    }
    let wanted = devices.clone();
    assert!(world.run(HOUR, |w| wanted.clone().all(|d| w.has_all(d))));
    for device in devices {
        world.want(device, &content[1..]);
    }
}

/// Bytes out of the origin for each byte of the content.
fn ratio(world: &World, content: &[Block]) -> f64 {
    let bytes: usize = content.iter().map(Block::len).sum();
    let out = world.counters(world.nodes.len() - 1).block_bytes_out;
    out as f64 / bytes as f64
}

fn whole(world: &mut World, devices: usize, until: Time) {
    let done = world.run(until, |w| (0..devices).all(|d| w.has_all(d)));
    let counters: Vec<_> = (0..devices)
        .filter(|d| !world.has_all(*d))
        .map(|d| world.counters(d))
        .collect();
    assert!(done, "{:?}: {counters:?}", world.now);
}

/// S0.11: once over the slow line, however many devices want it.
fn s0_11_once(rng: &mut Rng, devices: usize, count: usize, size: usize, most: f64) -> f64 {
    let content = blocks(rng, count, size);
    let mut world = site(rng, &vec![Manner::Honest; devices], &content);
    want_all(&mut world, 0..devices, &content);
    whole(&mut world, devices, HOUR);
    let ratio = ratio(&world, &content);
    assert!(ratio <= most, "{ratio:.3}: {:?}", world.counters(0));
    // No want either, but of those whose turn it was: whether the origin has it, for the block, and at most once again.
    let asked = world.counters(devices).wants_in as usize;
    assert!(
        asked <= content.len() * 3 + 16,
        "{asked} wants at the origin"
    );
    let taken: u64 = (0..devices).map(|d| world.counters(d).site_taken).sum();
    assert!(
        taken as usize <= content.len() * 11 / 10 + 1,
        "{taken} blocks of {} were taken",
        content.len()
    );
    ratio
}

#[test]
fn s0_11_the_origin_sends_one_copy_to_eight() {
    let mut worst = 0.0_f64;
    check!(sim_scale(100), |rng| {
        let (count, size) = *rng.pick(&[(200, 100_000), (1500, 2_000), (40, 250_000)]);
        worst = worst.max(s0_11_once(rng, 8, count, size, 1.10));
    });
    println!("figure: s0_11 the origin sent {worst:.3} copies to 8 devices, at most");
}

#[test]
fn s0_11_the_origin_sends_one_copy_to_a_hundred() {
    let mut worst = 0.0_f64;
    check!(sim_scale(20), |rng| {
        worst = worst.max(s0_11_once(rng, 100, 100, 10_000, 1.15));
    });
    println!("figure: s0_11 the origin sent {worst:.3} copies to 100 devices, at most");
}

/// SI-7: a want-have for a small block is answered with the block (EX-10), so nobody may ask whose turn it is not.
#[test]
fn si_7_small_blocks_come_once_as_well() {
    check!(sim_scale(40), |rng| {
        s0_11_once(rng, 8, 300, 500, 1.10);
    });
}

/// S0.11: a device that fetches for the others is switched off in the middle.
#[test]
fn s0_11_one_that_fetches_is_killed() {
    let mut worst = 0.0_f64;
    check!(sim_scale(100), |rng| {
        let content = blocks(rng, 200, 100_000);
        let mut world = site(rng, &[Manner::Honest; 8], &content);
        want_all(&mut world, 0..8, &content);
        let at = world.now + MS * rng.range(50..6_000) as u32;
        world.run(at, |_| false);
        for other in 0..9 {
            if other != 7 {
                world.part(7, other);
            }
        }
        whole(&mut world, 7, HOUR);
        let ratio = ratio(&world, &content);
        assert!(ratio <= 1.25, "{ratio:.3}");
        worst = worst.max(ratio);
    });
    println!(
        "figure: s0_11 the origin sent {worst:.3} copies to 8 devices of which one was killed, at most"
    );
}

/// SI-10: a device that fetches for the others is frozen: its connections stand, and nothing comes. After two seconds it is the next one's turn.
#[test]
fn si_10_one_that_fetches_freezes() {
    let mut worst = 0.0_f64;
    check!(sim_scale(100), |rng| {
        let content = blocks(rng, 200, 100_000);
        let mut world = site(rng, &[Manner::Honest; 8], &content);
        want_all(&mut world, 0..8, &content);
        let at = world.now + MS * rng.range(50..4_000) as u32;
        world.run(at, |_| false);
        for other in 0..9 {
            if other != 7 {
                world.stall(7, other, HOUR);
                world.stall(other, 7, HOUR);
            }
        }
        let begun = world.now;
        whole(&mut world, 7, HOUR / 2);
        let ratio = ratio(&world, &content);
        assert!(ratio <= 1.25, "{ratio:.3}");
        // Eight seconds for all of it over the whole line, of which it leaves an eighth unused; two turns of two seconds.
        let took = world.now.saturating_sub(begun);
        assert!(took <= Duration::from_secs(20), "{took:?}");
        worst = worst.max(ratio);
    });
    println!(
        "figure: si_10 the origin sent {worst:.3} copies to 8 devices of which one froze, at most"
    );
}

/// SI-10: a mate that takes its share, says so, gets it, and gives it to nobody. The others wait for it, but not for ever, and not twice.
#[test]
fn si_10_a_mate_that_claims_and_never_delivers_costs_bounded_time() {
    check!(sim_scale(40), |rng| {
        let content = blocks(rng, 200, 100_000);
        let mut manners = [Manner::Honest; 8];
        manners[7] = Manner::Mute;
        let mut world = site(rng, &manners, &content);
        want_all(&mut world, 0..7, &content);
        world.want(7, &content);
        let begun = world.now;
        whole(&mut world, 7, HOUR);
        let took = world.now.saturating_sub(begun);
        assert!(took <= Duration::from_secs(60), "{took:?}");
        let ratio = ratio(&world, &content);
        assert!(ratio <= 2.2, "{ratio:.3}: at most what it took for itself");
    });
}

/// SI-7: who comes later gets what the others have from them, and the origin hears nothing of it.
#[test]
fn si_7_a_late_device_costs_the_origin_nothing() {
    check!(sim_scale(40), |rng| {
        let content = blocks(rng, 100, 50_000);
        let mut world = site(rng, &[Manner::Honest; 8], &content);
        want_all(&mut world, 0..6, &content);
        whole(&mut world, 6, HOUR);
        let before = (
            world.counters(8).block_bytes_out,
            world.counters(8).wants_in,
        );
        want_all(&mut world, 6..8, &content);
        whole(&mut world, 8, HOUR);
        let after = (
            world.counters(8).block_bytes_out,
            world.counters(8).wants_in,
        );
        assert_eq!(before, after);
    });
}

/// SI-5, SI-8: who begins in the middle hears what is under way.
#[test]
fn si_8_who_begins_in_the_middle_does_not_ask_for_what_is_under_way() {
    let mut worst = 0.0_f64;
    check!(sim_scale(100), |rng| {
        let content = blocks(rng, 60, 50_000);
        let mut world = site(rng, &[Manner::Honest; 4], &content);
        want_all(&mut world, 0..1, &content);
        for device in 1..4 {
            let at = world.now + MS * rng.range(1..600) as u32;
            world.run(at, |_| false);
            world.want(device, &content);
        }
        whole(&mut world, 4, HOUR);
        let ratio = ratio(&world, &content);
        assert!(ratio <= 1.10, "{ratio:.3}");
        worst = worst.max(ratio);
    });
    println!(
        "figure: si_8 the origin sent {worst:.3} copies to 4 devices that began one after the other, at most"
    );
}

/// SI-7: only one device of the site is connected to the origin, and fetches for all.
#[test]
fn si_7_who_reaches_nobody_outside_is_no_candidate() {
    check!(sim_scale(40), |rng| {
        let content = blocks(rng, 100, 50_000);
        let mut world = site(rng, &[Manner::Honest; 5], &content);
        for device in 1..5 {
            world.part(device, 5);
        }
        want_all(&mut world, 0..5, &content);
        whole(&mut world, 5, HOUR);
        let ratio = ratio(&world, &content);
        assert!(ratio <= 1.001, "{ratio:.3}");
    });
}

/// SI-9: each device reaches an origin of its own, and one of these has what is wanted: the turn goes round until it is found, and a block that
/// comes to that origin later is found as well.
#[test]
fn si_9_the_turn_goes_on_until_somebody_outside_has_it() {
    check!(sim_scale(100), |rng| {
        let content = blocks(rng, 30, 50_000);
        let sites = [Some(None), Some(None), Some(None)];
        let mut world = World::of_sites(rng, &[Manner::Honest; 6], Config::default(), &sites);
        for (a, b) in [(0, 1), (0, 2), (1, 2), (0, 3), (1, 4), (2, 5)] {
            world.join(a, b);
        }
        let holder = 3 + rng.index(3);
        world.give(holder, &content[..20]);
        world.root = Some(*content[0].cid());
        for device in 0..3 {
            world.want(device, &content);
        }
        let later = world.now + Duration::from_secs(5);
        world.run(later, |_| false);
        let has = |w: &World| {
            (0..3).all(|d| {
                content[..20]
                    .iter()
                    .all(|b| w.nodes[d].blocks.contains_key(b.cid()))
            })
        };
        assert!(has(&world));
        world.give(holder, &content[20..]);
        whole(&mut world, 3, later + Duration::from_secs(130));
        let out: u64 = world.counters(holder).block_bytes_out;
        assert!(out <= 30 * 50_000 * 11 / 10, "{out}");
    });
}

/// SI-2: another label is another site, and who has none shares with nobody.
#[test]
fn si_2_labels_part_sites() {
    check!(sim_scale(20), |rng| {
        let content = blocks(rng, 40, 50_000);
        let sites = [
            Some(Some("hall-1")),
            Some(Some("hall-1")),
            Some(Some("hall-2")),
            Some(None),
            None,
        ];
        let mut world = World::of_sites(rng, &[Manner::Honest; 6], Config::default(), &sites);
        for a in 0..6 {
            for b in a + 1..6 {
                world.join(a, b);
            }
        }
        world.run(MS * 100, |_| false);
        let mates: Vec<usize> = (0..5).map(|n| world.nodes[n].core.mates().len()).collect();
        assert_eq!(mates, [1, 1, 0, 0, 0]);
        world.give(5, &content);
        world.root = Some(*content[0].cid());
        for device in 0..5 {
            world.want(device, &content);
        }
        whole(&mut world, 5, HOUR);
    });
}

/// A want that waits says for whom.
#[test]
fn si_11_why_names_the_mate_that_fetches() {
    check!(4, |rng| {
        let content = blocks(rng, 60, 100_000);
        let mut world = site(rng, &[Manner::Honest; 3], &content);
        want_all(&mut world, 0..3, &content);
        world.run(world.now + 100 * MS, |_| false);
        let whys: Vec<_> = content
            .iter()
            .filter_map(|b| world.nodes[0].core.why(b.cid()))
            .filter(|why| why.waiting_for == WaitingFor::Mate)
            .collect();
        assert!(!whys.is_empty());
        let mates = [world.nodes[1].id, world.nodes[2].id];
        assert!(whys.iter().all(|why| mates.contains(&why.mate.unwrap())));
        whole(&mut world, 3, HOUR);
    });
}

/// The line to the origin stands still for everybody, for longer than the patience of mates.
#[test]
fn si_10_a_line_that_stalls_for_all_does_not_multiply_copies() {
    let mut worst = 0.0_f64;
    check!(sim_scale(60), |rng| {
        let content = blocks(rng, 200, 100_000);
        let mut world = site(rng, &[Manner::Honest; 8], &content);
        want_all(&mut world, 0..8, &content);
        for _ in 0..3 {
            let at = world.now + MS * rng.range(200..2_000) as u32;
            world.run(at, |_| false);
            let pause = MS * rng.range(500..6_000) as u32;
            for device in 0..8 {
                world.stall(device, 8, pause);
                world.stall(8, device, pause);
            }
        }
        whole(&mut world, 8, HOUR);
        let ratio = ratio(&world, &content);
        assert!(ratio <= 2.0, "{ratio:.3}");
        worst = worst.max(ratio);
    });
    println!(
        "figure: si_10 the origin sent {worst:.3} copies to 8 devices while its line stood still for up to 6 s three times, at most"
    );
}

/// SI-8: a mate says again and again that it takes everything. What that costs others is bounded: they do not answer each time, all of them to all.
#[test]
fn si_8_a_mate_that_takes_everything_for_ever_gets_few_words() {
    check!(sim_scale(20), |rng| {
        let content = blocks(rng, 100, 100_000);
        let mut world = site(rng, &[Manner::Honest; 4], &content);
        want_all(&mut world, 0..4, &content);
        let liar = world.nodes[3].id;
        let takes: Vec<_> = content.iter().map(|block| *block.cid()).collect();
        for _ in 0..400 {
            world.run(world.now + 10 * MS, |_| false);
            let fact = SiteFact::Said(SiteMessage {
                takes: takes.clone(),
                ..SiteMessage::default()
            });
            let (peer, now) = (liar, world.now);
            world.nodes[0].core.handle(Input::Site { peer, fact }, now);
        }
        let said = world.takes_said.get(&0).copied().unwrap_or_default();
        // Each block once, and four times again, to three mates.
        assert!(said <= content.len() * 5 * 3, "{said} words");
        whole(&mut world, 4, HOUR);
    });
}

/// SI-10: on a full line a connection now and then gets nothing for a few seconds, while others do. Nobody takes over what it fetches, for that
/// would cross the line twice.
#[test]
fn s0_11_si_10_connections_that_starve_on_a_full_line_do_not_multiply_copies() {
    let mut worst = 0.0_f64;
    check!(sim_scale(60), |rng| {
        let content = blocks(rng, 50, 1 << 20);
        let mut world = site(rng, &[Manner::Honest; 8], &content);
        want_all(&mut world, 0..8, &content);
        while !(0..8).all(|d| world.has_all(d)) {
            let device = rng.index(8);
            let pause = MS * rng.range(500..4_000) as u32;
            world.stall(device, 8, pause);
            world.stall(8, device, pause);
            let at = world.now + MS * rng.range(500..2_000) as u32;
            world.run(at, |w| (0..8).all(|d| w.has_all(d)));
            assert!(world.now < HOUR);
        }
        // SI-8: no block goes to and fro between two that gave each other up.
        let yields: u64 = (0..8).map(|d| world.counters(d).site_yielded).sum();
        assert!(yields as usize <= content.len(), "{yields} times yielded");
        let ratio = ratio(&world, &content);
        assert!(ratio <= 1.10, "{ratio:.3}");
        worst = worst.max(ratio);
    });
    println!(
        "figure: si_10 the origin sent {worst:.3} copies to 8 devices whose connections starved in turn, at most"
    );
}
