//! Did the machine sleep? Two clocks tell: one that may stand still meanwhile, and one that goes on.
//!
//! A suspended tablet keeps its sockets, but whoever is at their other ends has given them up, and said so while nobody listened. The
//! clock that timers run on stands still during the sleep (Linux, macOS), so that no deadline notices anything.

use std::time::Duration;

/// Time since the start of the node.
pub type Time = Duration;

/// How often to [look](Wake::look): a sleep is noticed within this time after it.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the clocks said last time.
#[derive(Debug)]
pub struct Wake {
    at_least: Duration,
    last: Option<(Time, Time)>,
}

impl Wake {
    /// Tells of sleeps of `at_least` this long.
    pub fn new(at_least: Duration) -> Self {
        Self {
            at_least,
            last: None,
        }
    }

    /// Whether nobody has looked yet: the first look compares nothing, so it may come at once.
    pub fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// Compares the clocks with the last time, which was about [`LOOK_EVERY`] ago: `ran` is the one that timers run on, `passed` the
    /// one that goes on during a sleep. How long nobody looked, if that was a sleep. A clock that goes back tells nothing.
    pub fn look(&mut self, ran: Time, passed: Time) -> Option<Duration> {
        let (ran_before, passed_before) = self.last.replace((ran, passed))?;
        let since = ran
            .saturating_sub(ran_before)
            .max(passed.saturating_sub(passed_before));
        let slept = since.saturating_sub(LOOK_EVERY);
        (slept >= self.at_least).then_some(slept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    #[test]
    fn t13_a_sleep_is_told_once_whichever_clock_stood_still() {
        let mut wake = Wake::new(at(10));
        assert_eq!(wake.look(at(5), at(1_000)), None);
        assert_eq!(wake.look(at(6), at(1_001)), None);
        assert_eq!(wake.look(at(7), at(5_002)), Some(at(4_000)));
        assert_eq!(wake.look(at(8), at(5_003)), None);
        assert_eq!(wake.look(at(109), at(5_104)), Some(at(100)));
        assert_eq!(wake.look(at(110), at(5_105)), None);
    }

    #[test]
    fn a_busy_second_and_a_clock_that_is_set_back_are_no_sleep() {
        let mut wake = Wake::new(at(10));
        assert_eq!(wake.look(at(0), at(1_000)), None);
        assert_eq!(wake.look(at(9), at(1_009)), None);
        assert_eq!(wake.look(at(10), at(3)), None);
        assert_eq!(wake.look(at(11), at(4)), None);
        assert_eq!(wake.look(at(22), at(15)), Some(at(10)));
    }
}
