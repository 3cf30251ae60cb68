//! A tablet that is suspended and woken, and links that are cut, in virtual time: the cores of dialer and liveness, joined as their drivers join them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use gemba_pnet::dialer::backoff::{Backoff, BackoffConfig, Class, Time};
use gemba_pnet::dialer::redial::{Redial, TargetState};
use gemba_pnet::wake::{LOOK_EVERY, Wake};
use gemba_pnet::watch::Watch;
use gemba_testkit::{Rng, check, sim_scale};

const MS: Duration = Duration::from_millis(1);
const STEP: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
/// As `LivenessConfig` and `TransportConfig` have them.
const INTERVAL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(15);
const SLEEP: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(4);
const PEERS: usize = 6;

/// One connection and what its other end thinks of it.
struct Link {
    number: u64,
    ping_at: Time,
    /// The other end has it too.
    held: bool,
}

/// A dial under way: when it ends and how.
struct Dial {
    at: Time,
    up: bool,
}

struct World {
    /// What time it is, and what the tablet's timers believe.
    real: Time,
    ran: Time,
    /// Whether the tablet's clock stands still while it sleeps.
    stops: bool,
    radio_at: Time,
    /// Whether a new address tells that the radio is back.
    told: bool,
    /// Whether a dead connection answers with a reset, or not at all: the address is another one, or a router forgot it.
    resets: bool,
    rtt: Duration,
    links: BTreeMap<usize, Link>,
    dials: BTreeMap<usize, Dial>,
    next_link: u64,
    look_at: Time,
    wake: Wake,
    watch: Watch<(usize, u64)>,
    redial: Redial<usize>,
    backoff: Backoff<usize, ()>,
    /// What the peers watch, in real time.
    peers: Watch<(usize, u64)>,
}

impl World {
    fn new(rng: &mut Rng) -> Self {
        let mut redial = Redial::new(8, 64);
        for peer in 0..PEERS {
            redial.add(peer, None, Time::ZERO, Time::ZERO);
        }
        Self {
            real: Time::ZERO,
            ran: Time::ZERO,
            stops: rng.coin(),
            radio_at: Time::ZERO,
            told: false,
            resets: true,
            rtt: MS * rng.range(1..80) as u32,
            links: BTreeMap::new(),
            dials: BTreeMap::new(),
            next_link: 0,
            look_at: Time::ZERO,
            wake: Wake::new(SLEEP),
            watch: Watch::new(PATIENCE),
            redial,
            backoff: Backoff::new(BackoffConfig::default()),
            peers: Watch::new(PATIENCE),
        }
    }

    fn radio(&self) -> bool {
        self.real >= self.radio_at
    }

    /// Ten milliseconds of waking life.
    fn step(&mut self, rng: &mut Rng) {
        let before = self.radio();
        self.real += STEP;
        self.ran += STEP;
        if self.radio() && !before && self.told {
            self.forget();
        }
        if self.ran >= self.look_at {
            self.look_at = self.ran + LOOK_EVERY;
            if self.wake.look(self.ran, self.real).is_some() {
                for (peer, _) in self.watch.on_wake() {
                    self.close(peer, rng);
                }
                self.forget();
            }
        }
        self.ping(rng);
        while self.watch.deadline().is_some_and(|due| due <= self.ran) {
            if let Some((peer, _)) = self.watch.expire(self.ran) {
                self.close(peer, rng);
            }
        }
        self.others_expire();
        self.end_dials(rng);
        while let Some(peer) = self.redial.poll(self.ran) {
            self.dial(peer, rng);
        }
    }

    fn sleep(&mut self, length: Duration) {
        // The other ends go on, each until its patience ends.
        let until = self.real + length;
        while let Some(due) = self.peers.deadline().filter(|due| *due <= until) {
            self.real = due;
            self.others_expire();
        }
        self.real = until;
        if !self.stops {
            self.ran += length;
        }
    }

    fn others_expire(&mut self) {
        while let Some((peer, number)) = self.peers.expire(self.real) {
            if let Some(link) = self.links.get_mut(&peer).filter(|l| l.number == number) {
                link.held = false;
            }
        }
    }

    fn ping(&mut self, rng: &mut Rng) {
        let mut reset = Vec::new();
        let (ran, real, radio) = (self.ran, self.real, self.radio());
        for (peer, link) in &mut self.links {
            if ran < link.ping_at || !radio {
                continue;
            }
            link.ping_at = ran + INTERVAL;
            if link.held {
                self.watch.on_answer(&(*peer, link.number), ran);
                // The other one pings us as well.
                self.peers.on_answer(&(*peer, link.number), real);
            } else if self.resets {
                reset.push(*peer);
            }
        }
        for peer in reset {
            self.close(peer, rng);
        }
    }

    /// As `Dialer::on_closed`: spread over a second.
    fn close(&mut self, peer: usize, rng: &mut Rng) {
        let Some(link) = self.links.remove(&peer) else {
            return;
        };
        self.watch.forget(&(peer, link.number));
        let retry_at = self.ran + MS * rng.range(0..1000) as u32;
        self.redial.on_down(&peer, retry_at, self.ran);
    }

    /// As `Dialer::forget`.
    fn forget(&mut self) {
        self.backoff.reset(|_, _| true);
        let waiting: Vec<usize> = self
            .redial
            .iter()
            .filter(|(_, state)| matches!(state, TargetState::Due(_)))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in waiting {
            self.redial.on_down(&peer, self.ran, self.ran);
        }
    }

    /// A connect is sent at once, and again after one and three seconds if it was lost; without any network it fails at once.
    fn dial(&mut self, peer: usize, rng: &mut Rng) {
        let hello = 3 * self.rtt + MS * rng.range(5..60) as u32;
        let tries = [Duration::ZERO, SECOND, 3 * SECOND];
        let lost = |after: &&Duration| self.real + **after < self.radio_at;
        let answered = tries.iter().find(|after| !lost(after));
        let dial = match answered {
            Some(after) if self.radio() || rng.coin() => Dial {
                at: self.ran + *after + hello,
                up: true,
            },
            None if rng.coin() => Dial {
                at: self.ran + CONNECT,
                up: false,
            },
            _ => Dial {
                at: self.ran + STEP,
                up: false,
            },
        };
        self.dials.insert(peer, dial);
    }

    fn end_dials(&mut self, rng: &mut Rng) {
        let ended: Vec<usize> = self
            .dials
            .iter()
            .filter(|(_, dial)| dial.at <= self.ran)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in ended {
            if self.dials.remove(&peer).unwrap().up && self.radio() {
                self.backoff.on_success(&peer);
                self.redial.on_connected(&peer);
                self.next_link += 1;
                let number = self.next_link;
                self.watch.on_alive((peer, number), self.ran);
                self.peers.on_alive((peer, number), self.real);
                let ping_at = self.ran + MS * rng.range(0..5000) as u32;
                let held = true;
                self.links.insert(
                    peer,
                    Link {
                        number,
                        ping_at,
                        held,
                    },
                );
            } else {
                // As `Dialer::target_down`.
                let (class, random) = (Class::Transient, rng.next_u64());
                let retry_at = self.backoff.on_failure(peer, class, (), self.ran, random);
                let retry_at = retry_at.max(self.ran + SECOND);
                self.redial.on_down(&peer, retry_at, self.ran);
            }
        }
    }

    fn connected(&self, peer: usize) -> bool {
        self.links.get(&peer).is_some_and(|link| link.held)
    }
}

/// T13: after each sleep, short or long, with sockets that are dead in silence or say so, every peer that was lost is connected again
/// within 5 s of the wake (p99), of which the radio takes up to two.
#[test]
fn t13_a_suspended_tablet_is_connected_again_within_five_seconds_of_its_wake() {
    let mut took = Vec::new();
    let mut kept = 0;
    check!(sim_scale(1000).div_ceil(10), |rng| {
        let mut world = World::new(rng);
        for _ in 0..10 {
            let awake = rng.range(6_000..30_000) as u32;
            for _ in 0..awake / 10 {
                world.step(rng);
            }
            assert!((0..PEERS).all(|peer| world.connected(peer)));
            let numbers = |world: &World| -> Vec<u64> {
                (0..PEERS)
                    .map(|peer| world.links.get(&peer).map_or(0, |link| link.number))
                    .collect()
            };
            let before = numbers(&world);
            let length = *rng.pick(&[1, 4, 6, 12, 20, 300, 3_600, 8 * 3_600]);
            world.sleep(SECOND * length + MS * rng.range(0..900) as u32);
            let woke = world.real;
            world.radio_at = woke + MS * rng.range(0..2_000) as u32;
            (world.told, world.resets) = (rng.coin(), rng.coin());
            let mut lost: Vec<usize> = (0..PEERS).collect();
            while !lost.is_empty() || world.real < woke + 2 * SECOND {
                world.step(rng);
                let now = numbers(&world);
                lost.retain(|peer| {
                    let new = now[*peer] != before[*peer];
                    let back = world.connected(*peer) && world.radio() && (new || length < 5);
                    if back && new {
                        took.push(world.real - woke);
                    }
                    !back
                });
                assert!(world.real < woke + 60 * SECOND, "never comes back");
            }
            if length < 5 {
                assert_eq!(numbers(&world), before, "a short sleep costs nothing");
                kept += 1;
            }
        }
    });
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    assert!(took.len() > PEERS * kept, "{} reconnects", took.len());
    assert!(p99 <= 5 * SECOND, "{p99:?} of {} reconnects", took.len());
}

/// S3.32: links are cut at random, with a reset or in silence, with a line that is gone for up to two seconds or back at once. Each link is there again
/// within 5 s of the moment that this end could know of it, without anybody's help; a peer that is silent is noticed when its time is over.
#[test]
fn s3_32_a_link_that_is_cut_is_there_again_within_five_seconds() {
    check!(sim_scale(1000).div_ceil(20), |rng| {
        let mut world = World::new(rng);
        for _ in 0..300 {
            world.step(rng);
        }
        for _ in 0..20 {
            for _ in 0..rng.range(0..600) {
                world.step(rng);
            }
            let peer = rng.index(PEERS);
            let cut = world.ran;
            world.radio_at = world.real + MS * *rng.pick(&[0, 500, 1_000, 2_000]);
            world.resets = rng.coin();
            let is_silent = rng.coin();
            if is_silent {
                world.links.get_mut(&peer).unwrap().held = false;
            } else {
                world.close(peer, rng);
            }
            let mut noticed = (!is_silent).then_some(cut);
            while !world.connected(peer) {
                world.step(rng);
                if noticed.is_none() && !world.links.contains_key(&peer) {
                    noticed = Some(world.ran);
                }
                match noticed {
                    None => assert!(world.ran <= cut + PATIENCE + INTERVAL + SECOND),
                    Some(at) => assert!(world.ran <= at + 5 * SECOND, "after {:?}", at - cut),
                }
            }
        }
    });
}
