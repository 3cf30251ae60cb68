//! So many bytes a second, and some more at once after a pause.

use std::time::Duration;

use crate::config::LEAST_RATE;
use crate::core::Time;

/// What a line may carry one way.
///
/// Bytes may be spent as long as any are left, so that what is spent at once may owe some; and what nobody asked for is spent as well.
/// In `t` seconds, who asks first spends no more than `rate * t + burst` and the last piece.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    /// Bytes a second.
    rate: u64,
    /// The most that is left after a pause, in millionths of a byte.
    burst: i128,
    /// What was left at `at`, in millionths of a byte: a rate counts out so many in each microsecond.
    left: i128,
    at: Time,
}

const MICRO: i128 = 1_000_000;
/// The most that is owed, in what the rate carries in this time. Whoever does not ask may spend more than there is for long: it must not
/// stop those who do for hours after.
const DEBT: Duration = Duration::from_secs(10);

impl Bucket {
    /// A full one. A rate below [`LEAST_RATE`] counts as that.
    pub(crate) fn new(rate: u64, burst: u64, now: Time) -> Self {
        let burst = i128::from(burst) * MICRO;
        Self {
            rate: rate.max(LEAST_RATE),
            burst,
            left: burst,
            at: now,
        }
    }

    /// Whether more than `beyond` bytes are left.
    pub(crate) fn has_more_than(&self, beyond: u64, now: Time) -> bool {
        self.left_at(now) > i128::from(beyond) * MICRO
    }

    /// When more than `beyond` bytes are left, if nothing is spent until then. `None`: never so many.
    pub(crate) fn when_more_than(&self, beyond: u64) -> Option<Time> {
        let wanted = i128::from(beyond) * MICRO + 1;
        if wanted > self.burst {
            return None;
        }
        let lacks = u128::try_from(wanted - self.left).unwrap_or(0);
        let micros = lacks.div_ceil(u128::from(self.rate));
        let wait = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        Some(self.at.saturating_add(wait))
    }

    pub(crate) fn spend(&mut self, bytes: u64, now: Time) {
        let owed = i128::from(self.rate) * DEBT.as_micros() as i128;
        self.left = (self.left_at(now) - i128::from(bytes) * MICRO).max(-owed);
        // Whole microseconds: what is left of the last one counts later.
        self.at = self.at.max(micros(now));
    }

    fn left_at(&self, now: Time) -> i128 {
        let passed = micros(now).saturating_sub(self.at).as_micros();
        let came = i128::try_from(passed)
            .unwrap_or(i128::MAX)
            .saturating_mul(i128::from(self.rate));
        self.left.saturating_add(came).min(self.burst)
    }
}

fn micros(time: Time) -> Time {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use gemba_testkit::check;

    use super::*;

    #[test]
    fn what_was_spent_comes_back_at_the_rate_and_no_more_than_the_burst() {
        let second = Duration::from_secs(1);
        let mut bucket = Bucket::new(100_000, 20_000, second);
        bucket.spend(50_000, second);
        assert!(!bucket.has_more_than(0, second));
        let back = second + Duration::from_micros(300_001);
        assert_eq!(bucket.when_more_than(0), Some(back));
        assert!(bucket.has_more_than(0, back));
        assert!(!bucket.has_more_than(0, back - Duration::from_micros(1)));
        let later = 100 * second;
        assert!(bucket.has_more_than(19_999, later) && !bucket.has_more_than(20_000, later));
        assert_eq!(bucket.when_more_than(20_000), None);
    }

    #[test]
    fn what_nobody_asked_for_does_not_stop_the_others_for_hours() {
        let mut bucket = Bucket::new(100_000, 20_000, Time::ZERO);
        bucket.spend(u64::MAX, Time::ZERO);
        let back = bucket.when_more_than(0).unwrap_or(Time::MAX);
        assert!(back <= DEBT + Duration::from_millis(1), "{back:?}");
    }

    /// The cap: over any time, whatever is asked for and when.
    #[test]
    fn spent_is_at_most_the_rate_and_a_burst_and_a_piece() {
        check!(200, |rng| {
            let rate = rng.range(LEAST_RATE..10_000_000);
            let burst = rng.range(1..1_000_000);
            let piece = rng.range(1..100_000);
            let mut now = Duration::from_nanos(rng.range(0..1_000_000_000));
            let mut bucket = Bucket::new(rate, burst, now);
            let (begun, mut spent) = (now, 0);
            for _ in 0..1000 {
                now += Duration::from_nanos(rng.range(0..50_000_000));
                while bucket.has_more_than(0, now) {
                    let bytes = rng.range(1..piece + 1);
                    bucket.spend(bytes, now);
                    spent += bytes;
                }
                let most = (now - begun).as_secs_f64() * rate as f64 + (burst + piece) as f64;
                assert!(spent as f64 <= most, "{spent} of {most}");
            }
        });
    }
}
