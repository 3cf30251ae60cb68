//! Token buckets, and how a device spreads what it does at intervals.

use super::Time;
use std::time::Duration;

/// So many at once, and one more each interval.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    most: u32,
    tokens: u32,
    every: Duration,
    since: Time,
}

impl Bucket {
    pub(crate) fn new(most: u32, every: Duration) -> Self {
        Self {
            most: most.max(1),
            tokens: most.max(1),
            every: every.max(Duration::from_nanos(1)),
            since: Time::ZERO,
        }
    }

    pub(crate) fn per_second(most: u32, per_second: u32) -> Self {
        Self::new(most, Duration::from_secs(1) / per_second.max(1))
    }

    pub(crate) fn take(&mut self, now: Time) -> bool {
        self.refill(now);
        let has = self.tokens > 0;
        self.tokens -= u32::from(has);
        has
    }

    /// Whether nothing would be lost if it were forgotten.
    #[cfg(feature = "kad")]
    pub(crate) fn is_full(&mut self, now: Time) -> bool {
        self.refill(now);
        self.tokens == self.most
    }

    /// When there will be one, if there is none.
    pub(super) fn ready_at(&self) -> Time {
        self.since + self.every
    }

    fn refill(&mut self, now: Time) {
        let passed = now.saturating_sub(self.since);
        let earned = passed.as_nanos() / self.every.as_nanos();
        if self.tokens == self.most || earned >= u128::from(self.most) {
            // A full bucket earns nothing, and a long pause fills it.
            self.tokens = self.most;
            self.since = now;
            return;
        }
        let earned = earned as u32;
        self.tokens = self.tokens.saturating_add(earned).min(self.most);
        self.since += self.every * earned;
    }
}

/// A splitmix generator: it only spreads deadlines.
#[derive(Debug)]
pub(super) struct Spread(u64);

impl Spread {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Three quarters of it to five quarters.
    pub(super) fn around(&mut self, interval: Duration) -> Duration {
        let quarter = interval / 4;
        interval - quarter + quarter * (self.next() % 513) as u32 / 256
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
