//! When may this be tried again, and why not now? A bounded table of failures, driven with time and randomness from outside.
//!
//! Generic on what is tried (`K`: a peer and an address) and on the reason (`C`), so that it compiles and is tested without libp2p.

use std::{collections::HashMap, hash::Hash, time::Duration};

/// Time since the start of the node.
pub type Time = Duration;

/// How soon and how late.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackoffConfig {
    /// After the first ordinary failure. Doubles with each further one.
    pub first: Duration,
    /// Never longer than this for ordinary failures: a device that comes back is found within this time.
    pub longest: Duration,
    /// After the first failure that says "another swarm".
    pub first_foreign: Duration,
    /// Never longer than this for foreign peers.
    pub longest_foreign: Duration,
    /// Failures remembered. The victim at the limit is the entry that is due soonest; it costs about 300 bytes.
    pub capacity: usize,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(5 * 60),
            first_foreign: Duration::from_secs(30 * 60),
            longest_foreign: Duration::from_secs(24 * 60 * 60),
            capacity: 1024,
        }
    }
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May be gone in a second: refused, unreachable, busy.
    Transient,
    /// Will not go away by itself: another swarm's key, no key at all.
    Foreign,
}

/// The table.
#[derive(Debug)]
pub struct Backoff<K, C> {
    config: BackoffConfig,
    failures: HashMap<K, Failure<C>>,
    evicted: u64,
}

/// What is remembered of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<C> {
    /// Failures in a row.
    pub count: u32,
    /// Earliest next attempt.
    pub retry_at: Time,
    /// The last reason.
    pub cause: C,
    /// Its class.
    pub class: Class,
}

impl<K: Eq + Hash + Clone, C> Backoff<K, C> {
    /// An empty table.
    pub fn new(config: BackoffConfig) -> Self {
        Self {
            config,
            failures: HashMap::new(),
            evicted: 0,
        }
    }

    /// The failure that forbids an attempt now, or `None` if it may be tried.
    pub fn forbids(&self, key: &K, now: Time) -> Option<&Failure<C>> {
        self.failures
            .get(key)
            .filter(|failure| failure.retry_at > now)
    }

    /// The last failure, due or not.
    pub fn last(&self, key: &K) -> Option<&Failure<C>> {
        self.failures.get(key)
    }

    /// An attempt failed. Returns when the next one may be made. `random` is any 64 random bits: the wait is between half and all of
    /// the nominal one, so that devices that lost the same peer do not come back in step.
    pub fn on_failure(&mut self, key: K, class: Class, cause: C, now: Time, random: u64) -> Time {
        let before = self.failures.get(&key);
        // A change of class starts over: "refused" after "wrong key" means that the device was restarted, perhaps with our key.
        let count = before
            .filter(|failure| failure.class == class)
            .map_or(0, |failure| failure.count)
            .saturating_add(1);
        if before.is_none() && self.failures.len() >= self.config.capacity {
            self.evict();
        }
        let retry_at = now.saturating_add(self.wait(class, count, random));
        let failure = Failure {
            count,
            retry_at,
            cause,
            class,
        };
        self.failures.insert(key, failure);
        retry_at
    }

    /// An attempt succeeded: nothing is held against the target any more.
    pub fn on_success(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Forgets everything that `which` selects, e.g. one peer on the operator's word, or all when our key changed.
    pub fn reset(&mut self, mut which: impl FnMut(&K, &Failure<C>) -> bool) {
        self.failures.retain(|key, failure| !which(key, failure));
    }

    /// All that is remembered, for `status`.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Failure<C>)> {
        self.failures.iter()
    }

    /// Entries that were forgotten because the table was full.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn wait(&self, class: Class, count: u32, random: u64) -> Duration {
        let (first, longest) = match class {
            Class::Transient => (self.config.first, self.config.longest),
            Class::Foreign => (self.config.first_foreign, self.config.longest_foreign),
        };
        let doubled = first.saturating_mul(1u32 << count.saturating_sub(1).min(31));
        let nominal = doubled.min(longest);
        let half = nominal / 2;
        // 32 bits of fraction are plenty for waits of hours in nanoseconds.
        let fraction = (random >> 32) as u32;
        half + Duration::from_secs_f64(
            half.as_secs_f64() * f64::from(fraction) / f64::from(u32::MAX),
        )
    }

    fn evict(&mut self) {
        let victim = self
            .failures
            .iter()
            .min_by_key(|(_, failure)| failure.retry_at)
            .map(|(key, _)| key.clone());
        if let Some(victim) = victim {
            self.failures.remove(&victim);
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const LATE: u64 = u64::MAX;
    const EARLY: u64 = 0;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn table() -> Backoff<&'static str, &'static str> {
        Backoff::new(BackoffConfig::default())
    }

    #[test]
    fn waits_double_from_a_second_to_five_minutes_and_stay_there() {
        let mut table = table();
        let mut waits = Vec::new();
        for _ in 0..100 {
            waits.push(
                table
                    .on_failure("a", Class::Transient, "refused", Time::ZERO, LATE)
                    .as_secs(),
            );
        }
        assert_eq!(waits[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert!(waits[10..].iter().all(|&wait| wait == 300));
    }

    #[test]
    fn a_foreign_swarm_is_left_alone_for_half_an_hour_to_a_day() {
        let mut table = table();
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(
                table
                    .on_failure("a", Class::Foreign, "key", Time::ZERO, LATE)
                    .as_secs(),
            );
        }
        assert_eq!(waits[..6], [1800, 3600, 7200, 14400, 28800, 57600]);
        assert!(waits[6..].iter().all(|&wait| wait == 86_400));
    }

    #[test]
    fn jitter_takes_off_at_most_half() {
        for random in [EARLY, 1 << 40, LATE / 3, LATE] {
            let retry_at = table().on_failure("a", Class::Foreign, "key", seconds(5), random);
            assert!(
                (seconds(5 + 900)..=seconds(5 + 1800)).contains(&retry_at),
                "{retry_at:?}"
            );
        }
        assert_eq!(
            table().on_failure("a", Class::Transient, "x", Time::ZERO, EARLY),
            seconds(1) / 2
        );
    }

    #[test]
    fn s2_40_the_original_cause_is_kept_while_it_forbids() {
        let mut table = table();
        table.on_failure("a", Class::Transient, "refused", seconds(10), LATE);
        let failure = table.forbids(&"a", seconds(10)).unwrap();
        assert_eq!((failure.cause, failure.retry_at), ("refused", seconds(11)));
        assert!(table.forbids(&"a", seconds(11)).is_none());
        assert_eq!(table.last(&"a").unwrap().cause, "refused");
        table.on_success(&"a");
        assert!(table.last(&"a").is_none());
    }

    #[test]
    fn another_class_starts_over() {
        let mut table = table();
        for _ in 0..5 {
            table.on_failure("a", Class::Foreign, "key", Time::ZERO, LATE);
        }
        assert_eq!(
            table.on_failure("a", Class::Transient, "refused", Time::ZERO, LATE),
            seconds(1)
        );
    }

    #[test]
    fn reset_forgets_what_it_is_told_to() {
        let mut table = table();
        table.on_failure("a", Class::Foreign, "key", Time::ZERO, LATE);
        table.on_failure("b", Class::Transient, "refused", Time::ZERO, LATE);
        table.reset(|_, failure| failure.class == Class::Transient);
        assert!(
            table.forbids(&"a", Time::ZERO).is_some() && table.forbids(&"b", Time::ZERO).is_none()
        );
        table.reset(|_, _| true);
        assert_eq!(table.iter().count(), 0);
    }

    #[test]
    fn the_table_is_bounded_and_long_waits_survive_a_flood() {
        let mut table = Backoff::new(BackoffConfig {
            capacity: 16,
            ..BackoffConfig::default()
        });
        table.on_failure(0, Class::Foreign, "key", Time::ZERO, LATE);
        for key in 1..10_000 {
            table.on_failure(key, Class::Transient, "refused", Time::ZERO, LATE);
        }
        assert_eq!(table.iter().count(), 16);
        assert!(table.forbids(&0, Time::ZERO).is_some());
        assert_eq!(table.evicted(), 10_000 - 16);
    }

    #[test]
    fn times_at_the_end_of_time_do_not_overflow() {
        table().on_failure("a", Class::Foreign, "key", Duration::MAX, LATE);
    }
}
