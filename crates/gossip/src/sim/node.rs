//! An honest node: the real core, and what a driver holds beside it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use libp2p_identity::PeerId;

use super::plan::{Pace, Plan};
use super::{Planted, peer_id};
use crate::config::Config;
use crate::core::{Core, Load};
use crate::hash::Keyed;
use crate::metrics::Counters;
use crate::seen::Seen;
use crate::wire::Author;
use crate::{SeenCounters, Time};

/// Never, in milliseconds.
pub(super) const NEVER: u32 = u32::MAX;

pub(super) struct Honest {
    pub(super) core: Core,
    pub(super) seen: Seen,
    /// When the timer that was set last goes off.
    pub(super) timer: Time,
    pub(super) pace: Pace,
    /// When the reading thread, the checking thread and the line are through.
    pub(super) read_free: Time,
    pub(super) check_free: Time,
    pub(super) line_free: Time,
    /// What its disk holds.
    pub(super) stored: Option<u64>,
    /// Its process runs.
    pub(super) up: bool,
    /// It is to be connected.
    pub(super) present: bool,
    /// Counts processes: what one began the next knows nothing of.
    pub(super) life: u32,
    /// Times at which it was not there, or cut off.
    pub(super) away: Vec<(Time, Time)>,
    pub(super) subscribes: bool,
    /// What is known of each message here.
    pub(super) log: Vec<Noted>,
    /// Bytes of messages whose signature was found good in this life, hashed.
    pub(super) checked: HashSet<u64, Keyed>,
    /// Who asked for which message, by numbers: those may be sent later.
    pub(super) asked: HashSet<(u32, u32), Keyed>,
    /// Counters of lives that ended.
    before: Counters,
    copies_before: u64,
    pub(super) most: Load,
    pub(super) bytes_out: u64,
    pub(super) control_bytes: u64,
    pub(super) message_bytes: u64,
    pub(super) messages_out: u64,
}

/// A message at a node, in milliseconds since start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted {
    /// The first copy was read, in this life.
    pub(super) read: u32,
    /// The last copy was read.
    pub(super) last: u32,
    /// It was delivered, in this life.
    pub(super) delivered: u32,
    /// It was delivered for the first time, in whatever life, in microseconds after its publication.
    pub(super) latency: u32,
    /// Nothing was heard of it for longer than the time-to-live.
    pub(super) forgotten: bool,
}

impl Default for Noted {
    fn default() -> Self {
        Self {
            read: NEVER,
            last: NEVER,
            delivered: NEVER,
            latency: NEVER,
            forgotten: false,
        }
    }
}

impl Honest {
    pub(super) fn new(plan: &Plan, number: u32, seed: u64) -> Self {
        let (core, seen) = process(plan, number, seed);
        let mut pace = plan.pace;
        if plan.slow > 1 && number as usize + 1 == plan.honest {
            pace.read *= plan.slow;
            pace.check *= plan.slow;
            pace.sends /= u64::from(plan.slow);
        }
        Self {
            core,
            seen,
            timer: Time::MAX,
            pace,
            read_free: Time::ZERO,
            check_free: Time::ZERO,
            line_free: Time::ZERO,
            stored: None,
            up: true,
            present: true,
            life: 0,
            away: Vec::new(),
            subscribes: false,
            log: Vec::new(),
            checked: HashSet::with_hasher(Keyed::new(seed)),
            asked: HashSet::with_hasher(Keyed::new(seed)),
            before: Counters::default(),
            copies_before: 0,
            most: Load::default(),
            bytes_out: 0,
            control_bytes: 0,
            message_bytes: 0,
            messages_out: 0,
        }
    }

    /// Another process, with nothing but what is on the disk.
    pub(super) fn restart(&mut self, plan: &Plan, number: u32, seed: u64) {
        self.before = self.counters();
        self.copies_before += self.seen.counters().duplicates;
        (self.core, self.seen) = process(plan, number, seed);
        self.life += 1;
        self.timer = Time::MAX;
        self.checked.clear();
        self.asked.clear();
        for noted in &mut self.log {
            *noted = Noted {
                latency: noted.latency,
                ..Noted::default()
            };
        }
    }

    /// Over all its lives.
    pub(super) fn counters(&self) -> Counters {
        self.before.plus(&self.core.counters())
    }

    pub(super) fn seen_counters(&self) -> SeenCounters {
        self.seen.counters()
    }

    pub(super) fn duplicates(&self) -> u64 {
        self.copies_before + self.seen.counters().duplicates
    }

    pub(super) fn noted(&mut self, message: u32) -> &mut Noted {
        let at = message as usize;
        if self.log.len() <= at {
            self.log.resize(at + 1, Noted::default());
        }
        &mut self.log[at]
    }

    /// The next time that one more thing of `cost` is done by who is through with the others at `free`.
    pub(super) fn spend(free: &mut Time, cost: Duration, now: Time) -> Time {
        *free = (*free).max(now) + cost;
        *free
    }

    /// Whether it was cut off at some time between.
    pub(super) fn was_away(&self, from: Time, to: Time) -> bool {
        self.away.iter().any(|(a, b)| *a < to && from < *b)
    }
}

fn process(plan: &Plan, number: u32, seed: u64) -> (Core, Seen) {
    let config = config_of(plan, number);
    let mut key = [0; 32];
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = (seed >> (i % 8 * 8)) as u8 ^ i as u8;
    }
    let mut seen = Seen::new(config.seen(), key);
    if plan.planted == Some(Planted::FirstSeen) {
        seen.plant_first_seen();
    }
    let author = Author::keyless(peer_id(number));
    (Core::new(config, Some(author), seed), seen)
}

fn config_of(plan: &Plan, number: u32) -> Config {
    let mut config = plan.config.clone();
    config.planted = plan.planted;
    let anchors = (0..plan.anchors as u32).filter(|anchor| *anchor != number);
    config
        .direct
        .extend(anchors.map(peer_id).collect::<Vec<PeerId>>());
    config
}

/// The largest of each component.
pub(super) fn most(a: &mut Load, b: &Load) {
    macro_rules! most {
        ($($name:ident)*) => { $(a.$name = a.$name.max(b.$name);)* };
    }
    most!(peers topics seen_entries seen_bytes pipeline_messages pipeline_bytes lane_messages lane_bytes lane_words
        history_messages history_bytes promises unneeded own_messages own_bytes authors authors_bytes bans);
}

/// Who is connected, by number.
pub(super) type Joined = BTreeMap<u32, u32>;
