//! Whose turn it is to send on a line with a budget.
//!
//! Messages that carry blocks are sent in slices of 8 KiB, each of which waits until the line's bucket has bytes left; those who send take
//! turns. Not all at once: a message that was begun must come forward, or its receiver gives it up, so no more of them are under way than
//! the rate can feed. What is not asked for here (control, names, messages by topic) is not held up, and is taken off the same bucket once
//! it was seen on the line: so it goes first.

use std::collections::VecDeque;
use std::time::Duration;

use super::Bucket;
use crate::core::Time;

/// Who sends.
pub(crate) type Sender = u64;

/// The turns of one line, outwards.
#[derive(Debug)]
pub(crate) struct Turns {
    bucket: Bucket,
    /// Senders whose messages are under way, at most `most`.
    places: Vec<Place>,
    most: usize,
    /// Those of them that wait for bytes, in turn. Each once.
    ring: VecDeque<Sender>,
    /// Senders that wait for a place, in the order they came. Each once, so no more than there are connections.
    queue: VecDeque<Sender>,
    /// Bytes that were granted.
    granted: u64,
    /// Bytes that went over the line beyond those, as far as they were taken off the bucket.
    beyond: u64,
    /// What the line's meter said first.
    base: Option<u64>,
}

#[derive(Debug)]
struct Place {
    sender: Sender,
    /// When it asked, or was given something, last.
    seen: Time,
}

/// The answer to a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// So many bytes may be sent now.
    Bytes(usize),
    /// To ask again then; `None`: when it is said so ([`Turns::next`]).
    Wait(Option<Time>),
}

/// Most bytes sent at once: at 2 Mbit/s they take 33 ms, which is what a name that changed waits for.
const SLICE: usize = 8 * 1024;
/// Each message under way gets as much a second: twice what a receiver asks of the whole message before it gives it up (100 kbit/s), and enough
/// for a slice well within the two seconds after which it asks somebody else.
const SHARE: u64 = 32 * 1024;
/// Most messages under way, whatever the rate.
const MOST: u64 = 256;
/// Bytes that are left after a pause are those of this time, and two slices at least.
const BURST: Duration = Duration::from_millis(50);
/// Whose receiver takes nothing for so long gives up its place to one that waits.
const IDLE: Duration = Duration::from_secs(2);
/// Who waits for a place looks again after this whether somebody is idle.
const LOOK: Duration = Duration::from_millis(500);

impl Turns {
    pub(crate) fn new(rate: u64, now: Time) -> Self {
        let burst = (rate.saturating_mul(BURST.as_millis() as u64) / 1000).max(2 * SLICE as u64);
        Self {
            bucket: Bucket::new(rate, burst, now),
            places: Vec::new(),
            most: (rate / SHARE).clamp(1, MOST) as usize,
            ring: VecDeque::new(),
            queue: VecDeque::new(),
            granted: 0,
            beyond: 0,
            base: None,
        }
    }

    /// A sender has `bytes` to send.
    pub(crate) fn ask(&mut self, sender: Sender, bytes: usize, now: Time) -> Grant {
        if !self.has_place(sender, now) {
            return Grant::Wait(now.checked_add(LOOK));
        }
        if !self.ring.contains(&sender) {
            self.ring.push_back(sender);
        }
        if self.ring.front() != Some(&sender) {
            return Grant::Wait(None);
        }
        if !self.bucket.has_more_than(0, now) {
            return Grant::Wait(self.bucket.when_more_than(0));
        }
        self.ring.pop_front();
        let slice = bytes.min(SLICE);
        self.bucket.spend(slice as u64, now);
        self.granted += slice as u64;
        Grant::Bytes(slice)
    }

    /// A sender has nothing more to send for now, or is gone.
    pub(crate) fn leave(&mut self, sender: Sender) {
        self.places.retain(|place| place.sender != sender);
        self.ring.retain(|other| *other != sender);
        self.queue.retain(|other| *other != sender);
    }

    /// Who may get something now by asking: after a grant, and after somebody left.
    pub(crate) fn next(&self) -> impl Iterator<Item = Sender> {
        let free = self.places.len() < self.most;
        let queued = self.queue.front().filter(|_| free);
        self.ring.front().into_iter().chain(queued).copied()
    }

    /// What the line's meter says: all bytes that went over it, those that were granted among them, these perhaps later.
    pub(crate) fn carried(&mut self, total: u64, now: Time) {
        let base = *self.base.get_or_insert(total);
        let beyond = total.saturating_sub(base).saturating_sub(self.granted);
        if beyond > self.beyond {
            self.bucket.spend(beyond - self.beyond, now);
            self.beyond = beyond;
        }
    }

    /// Whether the sender's message is under way, perhaps from now on.
    fn has_place(&mut self, sender: Sender, now: Time) -> bool {
        if let Some(place) = self.places.iter_mut().find(|p| p.sender == sender) {
            place.seen = now;
            return true;
        }
        let first = self.queue.front().is_none_or(|front| *front == sender);
        if first && (self.places.len() < self.most || self.evict(now)) {
            self.queue.pop_front();
            self.places.push(Place { sender, seen: now });
            return true;
        }
        if !self.queue.contains(&sender) {
            self.queue.push_back(sender);
        }
        false
    }

    /// Takes the place of one whose receiver takes nothing.
    fn evict(&mut self, now: Time) -> bool {
        let idle = self.places.iter().position(|place| {
            now >= place.seen.saturating_add(IDLE) && !self.ring.contains(&place.sender)
        });
        idle.map(|at| self.places.swap_remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gemba_testkit::{Rng, check};

    use super::*;

    const MBIT: u64 = 125_000;
    const SECOND: Duration = Duration::from_secs(1);

    /// Senders with endless messages that ask when they are told to, in virtual time.
    struct World {
        turns: Turns,
        now: Time,
        /// When each asks again.
        asks: BTreeMap<Sender, Time>,
        sent: BTreeMap<Sender, u64>,
        /// The longest that a sender waited for a slice after it had one.
        longest: BTreeMap<Sender, (Time, Duration)>,
    }

    impl World {
        fn new(rate: u64, senders: u64) -> Self {
            Self {
                turns: Turns::new(rate, Time::ZERO),
                now: Time::ZERO,
                asks: (0..senders).map(|sender| (sender, Time::ZERO)).collect(),
                sent: BTreeMap::new(),
                longest: BTreeMap::new(),
            }
        }

        /// One sender asks, whoever is due first.
        fn step(&mut self) {
            let Some((sender, at)) = self
                .asks
                .iter()
                .map(|(sender, at)| (*sender, *at))
                .min_by_key(|(sender, at)| (*at, *sender))
            else {
                return;
            };
            self.now = self.now.max(at);
            match self.turns.ask(sender, usize::MAX, self.now) {
                Grant::Bytes(bytes) => {
                    assert!(bytes <= SLICE);
                    *self.sent.entry(sender).or_default() += bytes as u64;
                    let (last, longest) = self
                        .longest
                        .entry(sender)
                        .or_insert((self.now, Duration::ZERO));
                    *longest = (*longest).max(self.now - *last);
                    *last = self.now;
                    self.asks.insert(sender, self.now);
                    self.wake();
                }
                Grant::Wait(Some(at)) => {
                    assert!(at > self.now, "asking again at once would ask for ever");
                    self.asks.insert(sender, at);
                }
                Grant::Wait(None) => {
                    self.asks.insert(sender, Time::MAX);
                }
            }
        }

        fn wake(&mut self) {
            for next in self.turns.next() {
                if let Some(at) = self.asks.get_mut(&next) {
                    *at = self.now;
                }
            }
        }

        fn run_until(&mut self, end: Time) {
            while self.now < end {
                self.step();
            }
        }

        fn total(&self) -> u64 {
            self.sent.values().sum()
        }
    }

    /// The cap holds over a minute, for any rate and number of senders, and none of it is left unused.
    #[test]
    fn pa_2_bytes_over_time_are_the_rate_and_at_most_one_burst() {
        check!(30, |rng| {
            let rate = rng.range(MBIT / 5..20 * MBIT);
            let mut world = World::new(rate, rng.range(1..40));
            world.run_until(60 * SECOND);
            let carried = world.now.as_secs_f64() * rate as f64;
            let burst = (rate / 20).max(2 * SLICE as u64) + SLICE as u64;
            let sent = world.total() as f64;
            assert!(sent <= carried + burst as f64, "{sent} beside {carried}");
            assert!(sent >= carried - SLICE as f64, "{sent} beside {carried}");
        });
    }

    /// A message that was begun comes forward: what its receiver waits for is below its two seconds at any rate.
    #[test]
    fn pa_3_who_has_a_place_is_never_without_bytes_for_long_and_shares_are_equal() {
        for (rate, senders, under_way) in [
            (16_000, 3, 1),
            (2 * MBIT, 3, 3),
            (2 * MBIT, 100, 7),
            (80 * MBIT, 200, 200),
        ] {
            let mut world = World::new(rate, senders);
            world.run_until(20 * SECOND);
            assert_eq!(world.sent.len(), under_way);
            for (_, longest) in world.longest.values() {
                assert!(*longest < SECOND, "{longest:?} at {rate}");
            }
            let least = world.sent.values().min().copied().unwrap_or_default();
            let most = world.sent.values().max().copied().unwrap_or_default();
            // But for the burst that was there at the beginning, for whoever asked first.
            let burst = (rate / 20).max(2 * SLICE as u64);
            assert!(
                most - least <= burst + 3 * SLICE as u64,
                "{least} and {most}"
            );
        }
    }

    #[test]
    fn who_waits_for_a_place_gets_it_when_one_leaves_or_its_receiver_takes_nothing() {
        let mut turns = Turns::new(LEAST, Time::ZERO);
        assert_eq!(turns.ask(1, 100, Time::ZERO), Grant::Bytes(100));
        assert!(matches!(
            turns.ask(2, 100, Time::ZERO),
            Grant::Wait(Some(_))
        ));
        assert!(matches!(
            turns.ask(3, 100, Time::ZERO),
            Grant::Wait(Some(_))
        ));
        turns.leave(1);
        assert_eq!(turns.next().collect::<Vec<_>>(), [2]);
        assert!(
            matches!(turns.ask(3, 100, SECOND), Grant::Wait(_)),
            "not before its turn"
        );
        assert_eq!(turns.ask(2, 100, SECOND), Grant::Bytes(100));
        // 2 does not ask again: its receiver takes nothing.
        assert!(matches!(turns.ask(3, 100, 2 * SECOND), Grant::Wait(_)));
        assert_eq!(turns.ask(3, 100, 3 * SECOND), Grant::Bytes(100));
        assert!(
            matches!(turns.ask(2, 100, 3 * SECOND), Grant::Wait(_)),
            "behind"
        );
    }

    const LEAST: u64 = crate::config::LEAST_RATE;

    /// Control, names and topics are not held up, and what they take is missing for blocks afterwards: together no more than the cap.
    #[test]
    fn pa_4_what_is_not_paced_counts_and_goes_first() {
        let rate = 2 * MBIT;
        let mut world = World::new(rate, 3);
        let mut rng = Rng::new(7);
        let (mut others, mut overhead) = (0, 0.0);
        for tick in 1..=600_u32 {
            world.run_until(tick * SECOND / 10);
            // Names and topics, and what the layers below add to each byte.
            others += rng.range(0..rate / 20);
            overhead = world.total() as f64 * 0.004;
            let total = world.total() + others + overhead as u64;
            world.turns.carried(total, world.now);
        }
        let all = world.total() as f64 + others as f64 + overhead;
        let carried = world.now.as_secs_f64() * rate as f64;
        assert!(all <= carried * 1.03, "{all} beside {carried}");
        assert!(all >= carried * 0.95, "{all} beside {carried}");
    }

    /// Bytes that were granted reach the meter later, or never: they are not taken off twice.
    #[test]
    fn what_was_granted_is_not_counted_again_when_it_is_seen() {
        let mut turns = Turns::new(MBIT, Time::ZERO);
        turns.carried(1_000_000, Time::ZERO);
        assert_eq!(turns.ask(1, SLICE, Time::ZERO), Grant::Bytes(SLICE));
        for seen in [0, 100, SLICE as u64] {
            turns.carried(1_000_000 + seen, Time::ZERO);
        }
        assert_eq!(turns.ask(1, SLICE, Time::ZERO), Grant::Bytes(SLICE));
        assert!(matches!(turns.ask(1, SLICE, Time::ZERO), Grant::Wait(_)));
    }
}
