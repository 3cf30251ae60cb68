//! The cache of seen messages against a model that forgets nothing wrongly, and its bounds.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{millis, peer_id, secs};
use gemba_gossip::{Class, Mark, Refusal, Seen, SeenConfig, Sight, Source, State, Time};
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::{Rng, check, sim_scale};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

fn seen(entries: usize, ttl: u64) -> Seen {
    let config = SeenConfig {
        entries,
        ttl: secs(ttl),
        hold: secs(1),
    };
    Seen::new(config, [3; 32])
}

fn look(seen: &mut Seen, n: u64, from: Source, now: Time) -> Sight {
    let digest = seen.digester().digest(&n.to_le_bytes());
    seen.sight(digest, from, now)
}

fn mark(sight: Sight) -> Mark {
    match sight {
        Sight::New(mark) => mark,
        other => panic!("{other:?}"),
    }
}

/// A model entry.
struct Known {
    state: State,
    ttl: Time,
    last: Time,
}

#[test]
fn s4_36_s4_37_the_cache_is_what_a_map_with_clocks_is() {
    check!(sim_scale(400), |rng| {
        let mut seen = seen(1 << 12, 20);
        let ttls = [1, 3, 20, 60, 3600];
        let classes: Vec<Class> = ttls.iter().map(|t| seen.class(secs(*t)).unwrap()).collect();
        let sources: Vec<Source> = (1..5).map(|n| seen.join(peer_id(n))).collect();
        let mut model: BTreeMap<u64, Known> = BTreeMap::new();
        let mut now = Time::from_millis(rng.below(1 << 33));
        for _ in 0..600 {
            now += match rng.below(12) {
                0 => secs(rng.below(70)),
                1 => secs(rng.below(4000)),
                _ => millis(rng.below(700)),
            };
            let n = rng.below(64);
            let alive = model.get(&n).is_some_and(|k| now < k.last + k.ttl);
            let got = look(&mut seen, n, *rng.pick(&sources), now);
            if alive {
                let known = model.get_mut(&n).unwrap();
                assert_eq!(got, Sight::Known(known.state), "{n} at {now:?}");
                known.last = now;
            } else {
                let mark = mark(got);
                let (mut state, mut ttl) = (State::Pending, secs(20));
                match rng.below(5) {
                    0 => {}
                    1 => {
                        seen.forget(mark);
                        model.remove(&n);
                        continue;
                    }
                    verdict => {
                        let at = rng.index(ttls.len());
                        ttl = secs(ttls[at]);
                        state =
                            [State::Accepted, State::Ignored, State::Invalid][verdict as usize - 2];
                        let id = n.to_be_bytes();
                        seen.settle(mark, state, Some(&id), classes[at], now);
                    }
                }
                model.insert(
                    n,
                    Known {
                        state,
                        ttl,
                        last: now,
                    },
                );
            }
            if rng.chance(1, 4) {
                seen.expire(now);
            }
            let other = rng.below(64);
            let accepted = model
                .get(&other)
                .is_some_and(|k| k.state == State::Accepted && now < k.last + k.ttl);
            assert_eq!(seen.knows(&other.to_be_bytes(), now), accepted);
        }
        seen.expire(now);
        let alive = model.values().filter(|k| now < k.last + k.ttl).count();
        assert_eq!(seen.len(), alive);
        let pending = |k: &&Known| k.state == State::Pending && now < k.last + k.ttl;
        assert_eq!(seen.pending(), model.values().filter(pending).count());
        let end = model
            .values()
            .map(|k| k.last + k.ttl)
            .filter(|end| *end > now)
            .min();
        assert_eq!(seen.deadline(), end);
        seen.expire(now + secs(3601));
        assert!(seen.is_empty());
        assert_eq!(seen.deadline(), None);
    });
}

/// A million repeats, and 2^17 entries with names, sources and copies: all of it within 8 MiB.
#[test]
fn g3_two_to_the_seventeen_entries_take_eight_mebibytes_at_most() {
    let entries = 1 << 17;
    let (kept, used) = measure(|| {
        let mut seen = seen(entries, 120);
        let sources: Vec<Source> = (0..500).map(|n| seen.join(peer_id(n))).collect();
        for n in 0..entries as u64 + 5000 {
            let from = sources[n as usize % sources.len()];
            let now = millis(n / 10);
            let mark = mark(look(&mut seen, n, from, now));
            if n % 7 != 0 {
                seen.settle(
                    mark,
                    State::Accepted,
                    Some(&n.to_be_bytes()),
                    Class::DEFAULT,
                    now,
                );
            } else {
                // A copy from somebody else while it waits.
                look(&mut seen, n, sources[0], now);
                look(&mut seen, n, sources[1], now);
                if n % 49 != 0 {
                    seen.settle(mark, State::Ignored, None, Class::DEFAULT, now);
                }
            }
        }
        seen
    });
    assert_eq!(kept.len(), entries);
    assert!(used.peak <= 8 << 20, "{} bytes at the peak", used.peak);
    assert!(kept.memory() <= 8 << 20, "{} bytes", kept.memory());
    let mut kept = kept;
    let from = kept.join(peer_id(1));
    let rounds = sim_scale(1_000_000) as u64;
    let (seen, used) = measure(|| {
        let mut seen = kept;
        for n in 0..rounds {
            let sight = look(&mut seen, 5100 + n % 1000, from, secs(14));
            assert!(matches!(sight, Sight::Known(_)));
        }
        seen
    });
    assert_eq!(used.calls, 0, "a copy allocates nothing");
    assert_eq!(seen.len(), entries);
}

#[test]
fn g2_what_goes_round_is_not_forgotten_and_the_oldest_goes_first() {
    let mut seen = seen(1 << 10, 120);
    let from = seen.join(peer_id(1));
    let first = mark(look(&mut seen, 0, from, secs(1)));
    seen.settle(first, State::Accepted, None, Class::DEFAULT, secs(1));
    for n in 1..5000_u64 {
        let now = secs(1) + millis(n * 20);
        let mark = mark(look(&mut seen, n, from, now));
        seen.settle(mark, State::Accepted, None, Class::DEFAULT, now);
        if n % 500 == 0 {
            assert_eq!(look(&mut seen, 0, from, now), Sight::Known(State::Accepted));
        }
    }
    assert_eq!(seen.len(), 1 << 10);
    let pressure = seen.take_pressure().unwrap();
    assert_eq!(pressure.evicted, 5000 - 1024);
    assert_eq!(pressure.refused, 0);
    assert!(pressure.effective_ttl > secs(19), "{pressure:?}");
    assert_eq!(seen.take_pressure(), None);
}

#[test]
fn g3_when_all_entries_are_young_the_noisiest_are_refused_and_not_the_oldest_forgotten() {
    let mut seen = seen(1 << 10, 120);
    let noisy: Vec<Source> = (0..4).map(|n| seen.join(peer_id(n))).collect();
    let quiet = seen.join(peer_id(9));
    let settle = |seen: &mut Seen, sight, now| {
        if let Sight::New(mark) = sight {
            seen.settle(mark, State::Accepted, None, Class::DEFAULT, now);
        }
        sight
    };
    let mut refused = 0;
    for n in 0..4000_u64 {
        let now = secs(1) + millis(n / 10);
        let from = noisy[n as usize % 4];
        let sight = look(&mut seen, n, from, now);
        if settle(&mut seen, sight, now) == Sight::Refused(Refusal::Pressure) {
            refused += 1;
        }
        if n % 100 == 0 {
            let sight = look(&mut seen, 1_000_000 + n, quiet, now);
            assert!(
                matches!(settle(&mut seen, sight, now), Sight::New(_)),
                "{n}"
            );
        }
    }
    assert!(refused > 2500, "{refused}");
    assert_eq!(seen.take_pressure().unwrap().refused, refused);
    // Once they are older than a message may be held, they may go.
    let now = secs(3);
    assert!(matches!(
        look(&mut seen, 9_999_999, noisy[0], now),
        Sight::New(_)
    ));
}

/// The oldest of anybody went: a neighbour with 1,000 messages a second had all others forgotten within a minute.
#[test]
fn g3_who_floods_pushes_out_its_own_and_nobody_elses() {
    let mut seen = seen(1 << 12, 120);
    let honest: Vec<Source> = (0..8).map(|n| seen.join(peer_id(n))).collect();
    let flood = seen.join(peer_id(100));
    let accept = |seen: &mut Seen, n: u64, from, now| {
        if let Sight::New(mark) = look(seen, n, from, now) {
            let id = n.to_be_bytes();
            seen.settle(mark, State::Accepted, Some(&id), Class::DEFAULT, now);
        }
    };
    // What came before the flood is the oldest all along.
    for n in 0..800 {
        accept(&mut seen, n, honest[n as usize % 8], secs(1));
    }
    // A message of our own has no source that is a peer.
    let own = mark(look(&mut seen, 900, Source::LOCAL, secs(1)));
    seen.settle(own, State::Accepted, None, Class::DEFAULT, secs(1));
    for n in 0..100_000_u64 {
        accept(&mut seen, 1_000_000 + n, flood, secs(2) + millis(n));
    }
    assert_eq!(seen.len(), 1 << 12);
    let now = secs(102);
    let known = (0..800_u64)
        .filter(|n| seen.knows(&n.to_be_bytes(), now))
        .count();
    assert_eq!(known, 800);
    assert_eq!(
        look(&mut seen, 900, honest[0], now),
        Sight::Known(State::Accepted)
    );
    // Of its own the younger ones are those that are left, all but a few.
    let kept = (0..100_000_u64).filter(|n| seen.knows(&(1_000_000 + n).to_be_bytes(), now));
    let late = kept.filter(|n| *n > 90_000).count();
    assert!(late > 2900, "{late}");
    // Another flood beside it has to share with it, not with the others.
    let other = seen.join(peer_id(101));
    for n in 0..10_000_u64 {
        accept(&mut seen, 2_000_000 + n, other, secs(103) + millis(n));
        accept(&mut seen, 3_000_000 + n, flood, secs(103) + millis(n));
    }
    let now = secs(113);
    let known = (0..800_u64)
        .filter(|n| seen.knows(&n.to_be_bytes(), now))
        .count();
    assert_eq!(known, 800);
}

/// Threat G3 as it is written: 500 peers with 1,000 messages a second each, all of them well signed, beside 30 honest ones. The cache is 8 MiB
/// at most, and of the honest messages at least 999 of 1,000 are taken, and known when their copies come.
#[test]
fn g3_five_hundred_floods_of_a_thousand_a_second_leave_the_honest_their_entries() {
    let seconds = sim_scale(60).max(4) as u64;
    let mut seen = seen(1 << 17, 120);
    let honest: Vec<Source> = (0..30).map(|n| seen.join(peer_id(n))).collect();
    let hostile: Vec<Source> = (0..500).map(|n| seen.join(peer_id(1000 + n))).collect();
    let (mut sent, mut taken, mut copies, mut known) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut flood = 1 << 32;
    for at in 0..seconds * 1000 {
        let now = secs(1) + millis(at);
        for from in &hostile {
            flood += 1;
            if let Sight::New(mark) = look(&mut seen, flood, *from, now) {
                seen.settle(mark, State::Accepted, None, Class::DEFAULT, now);
            }
        }
        // Two a second of each honest one, and a copy of what came two seconds ago.
        for n in (0..30).filter(|n| (at + n * 17) % 500 == 0) {
            let (number, from) = (at * 30 + n, honest[n as usize]);
            sent += 1;
            if let Sight::New(mark) = look(&mut seen, number, from, now) {
                taken += 1;
                seen.settle(mark, State::Accepted, None, Class::DEFAULT, now);
            }
            if at >= 2000 {
                copies += 1;
                let sight = look(&mut seen, (at - 2000) * 30 + n, honest[0], now);
                known += u64::from(sight == Sight::Known(State::Accepted));
            }
        }
    }
    assert!(sent >= seconds * 60 && copies > 0);
    assert!(taken * 1000 >= sent * 999, "{taken} of {sent}");
    assert!(known * 1000 >= copies * 999, "{known} of {copies}");
    assert!(seen.memory() <= 8 << 20, "{} bytes", seen.memory());
    assert!(seen.counters().refused_pressure > 0, "it is full");
}

#[test]
fn g3_what_waits_for_a_verdict_is_shared_out() {
    let mut seen = seen(1 << 12, 120);
    let (flood, honest) = (seen.join(peer_id(1)), seen.join(peer_id(2)));
    let mut taken = 0;
    for n in 0..5000 {
        match look(&mut seen, n, flood, secs(1)) {
            Sight::New(_) => taken += 1,
            Sight::Refused(Refusal::Pending) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken, 512, "half of a quarter");
    assert_eq!(seen.room(flood), 0);
    assert!(seen.room(honest) > 100);
    assert!(matches!(
        look(&mut seen, 9999, honest, secs(1)),
        Sight::New(_)
    ));
}

#[test]
fn sources_are_used_again_when_nothing_of_them_is_left() {
    let mut seen = seen(1 << 10, 10);
    let first = seen.join(peer_id(1));
    assert_eq!(seen.join(peer_id(1)), first);
    let pending = mark(look(&mut seen, 1, first, secs(1)));
    seen.leave(&peer_id(1));
    assert_eq!(seen.peer(first), None);
    let second = seen.join(peer_id(2));
    assert_ne!(second, first, "an entry still names the first");
    seen.set_banned(&peer_id(2), true);
    assert!(!seen.admits(second));
    assert_eq!(
        look(&mut seen, 5, second, secs(1)),
        Sight::Refused(Refusal::Banned)
    );
    seen.set_banned(&peer_id(2), false);
    assert!(seen.admits(second));
    assert!(
        seen.settle(pending, State::Accepted, None, Class::DEFAULT, secs(2))
            .is_empty()
    );
    seen.expire(secs(20));
    assert_eq!(seen.join(peer_id(3)), first);
    // Identities by the thousand, each with a message, leave nothing behind.
    let mut rng = Rng::new(1);
    for n in 0..20_000 {
        let peer = peer_id(1000 + n);
        let source = seen.join(peer);
        look(&mut seen, rng.next_u64(), source, secs(100 + n));
        seen.leave(&peer);
    }
    seen.expire(secs(100_000));
    assert!(seen.memory() < 200_000, "{}", seen.memory());
}

#[test]
fn g1_who_sent_the_same_meanwhile_is_told_at_the_verdict() {
    let mut seen = seen(1 << 10, 10);
    let all: Vec<Source> = (0..20).map(|n| seen.join(peer_id(n))).collect();
    let mark = mark(look(&mut seen, 1, all[0], secs(1)));
    for source in &all {
        assert_eq!(
            look(&mut seen, 1, *source, secs(1)),
            Sight::Known(State::Pending)
        );
        look(&mut seen, 1, *source, secs(1));
    }
    seen.leave(&peer_id(3));
    let others = seen.settle(mark, State::Accepted, Some(b"id"), Class::DEFAULT, secs(1));
    assert_eq!(others.len(), 11, "twelve are remembered, one of them left");
    assert!(!others.contains(&all[0]) && !others.contains(&all[3]));
}

/// 49.7 days: milliseconds in 32 bits come round.
#[test]
fn s4_36_times_are_right_when_the_short_clock_comes_round() {
    let mut seen = seen(1 << 10, 120);
    let from = seen.join(peer_id(1));
    let round = millis(u64::from(u32::MAX));
    let mut now = round - secs(60);
    let mark = mark(look(&mut seen, 1, from, now));
    seen.settle(mark, State::Accepted, Some(b"id"), Class::DEFAULT, now);
    now += secs(119);
    assert!(now > round);
    assert_eq!(look(&mut seen, 1, from, now), Sight::Known(State::Accepted));
    assert!(seen.knows(b"id", now + secs(119)));
    assert!(!seen.knows(b"id", now + secs(120)));
    // Exactly one round later nothing is taken for young.
    assert!(matches!(
        look(&mut seen, 1, from, now + round + millis(1)),
        Sight::New(_)
    ));
}
