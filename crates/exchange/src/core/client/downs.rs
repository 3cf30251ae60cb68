//! What may come in over each line: more is not asked for (PA-5).
//!
//! A block is asked for while the line's bucket holds more than is owed over it already. What comes is taken off the bucket, whether it
//! was asked for or not.

use std::time::Duration;

use crate::config::{Config, Line};
use crate::core::Time;
use crate::core::pace::Bucket;

/// The budgets of both lines, inwards.
pub(super) struct Downs {
    near: Down,
    far: Down,
    /// What a block that is owed is taken for, in bytes: the largest of late. An average would be that of the folders above, when their leaves are asked
    /// for, and a thousand of those at once.
    largest: usize,
}

#[derive(Default)]
struct Down {
    bucket: Option<Bucket>,
    /// What the line's meter said last. Without one the exchange's own messages count.
    carried: Option<u64>,
}

/// As much as comes in this time may come at once after a pause: an answer takes some time, and meanwhile nothing else comes.
const BURST: Duration = Duration::from_secs(1);
/// A block before any came, in bytes: a leaf as gemba and Kubo make it.
const LEAF: usize = 1024 * 1024;
/// A smaller one that comes takes so much off the difference.
const FORGETS: usize = 8;
/// And no less than this.
const LEAST_BURST: u64 = 64 * 1024;
/// While something waits for a budget, it is looked at no more often.
pub(super) const LOOK: Duration = Duration::from_millis(50);

impl Downs {
    pub(super) fn new(config: &Config) -> Self {
        let mut downs = Self {
            near: Down::default(),
            far: Down::default(),
            largest: LEAF,
        };
        downs.set(Line::Near, config.near.down, Time::ZERO);
        downs.set(Line::Far, config.far.down, Time::ZERO);
        downs
    }

    /// Bytes a second, or no limit.
    pub(super) fn set(&mut self, line: Line, rate: Option<u64>, now: Time) {
        let burst = |rate: u64| rate.saturating_mul(BURST.as_secs()).max(LEAST_BURST);
        self.of_mut(line).bucket = rate.map(|rate| Bucket::new(rate, burst(rate), now));
    }

    pub(super) fn is_limited(&self) -> bool {
        self.near.bucket.is_some() || self.far.bucket.is_some()
    }

    /// Whether more may be asked for over a line over which `expected` bytes are owed.
    pub(super) fn may_ask(&self, line: Line, expected: usize, now: Time) -> bool {
        let bucket = self.of(line).bucket.as_ref();
        bucket.is_none_or(|bucket| bucket.has_more_than(expected as u64, now))
    }

    /// When that is so, if nothing comes until then. `None`: it is not a question of time.
    pub(super) fn when(&self, line: Line, expected: usize) -> Option<Time> {
        self.of(line)
            .bucket
            .as_ref()?
            .when_more_than(expected as u64)
    }

    /// A block came that was wanted.
    pub(super) fn saw(&mut self, bytes: usize) {
        let beyond = self.largest.saturating_sub(bytes);
        self.largest = bytes.max(self.largest - beyond.div_ceil(FORGETS));
    }

    /// What so many blocks may have.
    pub(super) fn weight(&self, blocks: usize) -> usize {
        blocks.saturating_mul(self.largest)
    }

    /// A message came.
    pub(super) fn came(&mut self, line: Line, bytes: usize, now: Time) {
        let down = self.of_mut(line);
        if let (Some(bucket), None) = (&mut down.bucket, down.carried) {
            bucket.spend(bytes as u64, now);
        }
    }

    /// The line's meter was read: all bytes that ever came over it.
    pub(super) fn carried(&mut self, line: Line, total: u64, now: Time) {
        let down = self.of_mut(line);
        let before = down.carried.replace(total).unwrap_or(total);
        if let Some(bucket) = &mut down.bucket
            && total > before
        {
            bucket.spend(total - before, now);
        }
    }

    fn of(&self, line: Line) -> &Down {
        match line {
            Line::Near => &self.near,
            Line::Far => &self.far,
        }
    }

    fn of_mut(&mut self, line: Line) -> &mut Down {
        match line {
            Line::Near => &mut self.near,
            Line::Far => &mut self.far,
        }
    }
}
