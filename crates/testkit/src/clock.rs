//! Virtual time.

use std::time::Duration;

/// Two clocks that a device has: one that only goes forward, and one that somebody sets.
///
/// ```
/// use gemba_testkit::Clock;
/// use std::time::Duration;
///
/// let mut clock = Clock::new();
/// clock.advance(Duration::from_secs(5));
/// clock.jump_wall(-20 * 365 * 24 * 3600 * 1000); // a dead battery
/// assert_eq!(clock.now(), Duration::from_secs(5));
/// ```
#[derive(Debug, Clone)]
pub struct Clock {
    now: Duration,
    wall_ms: i64,
    /// Nanoseconds of true time not yet shown by the wall clock, and by the monotone one under drift.
    wall_rest: i128,
    drift_ppm: i32,
}

impl Clock {
    /// Monotone time 0; wall clock 2026-01-01 00:00 UTC; no drift.
    pub fn new() -> Self {
        Self {
            now: Duration::ZERO,
            wall_ms: 1_767_225_600_000,
            wall_rest: 0,
            drift_ppm: 0,
        }
    }

    /// A device whose oscillator is off by this many parts in a million.
    #[must_use]
    pub fn with_drift_ppm(mut self, ppm: i32) -> Self {
        self.drift_ppm = ppm;
        self
    }

    /// Monotone time since start. Never goes back.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The wall clock, in milliseconds since 1970; before 1970 it is negative.
    pub fn wall_ms(&self) -> i64 {
        self.wall_ms
    }

    /// Lets true time pass.
    pub fn advance(&mut self, true_time: Duration) {
        let nanos = true_time.as_nanos() as i128;
        let seen = nanos + nanos * i128::from(self.drift_ppm) / 1_000_000;
        self.now += Duration::from_nanos(
            u64::try_from(seen).expect("a step shorter than 584 years, drift above -100 %"),
        );
        self.pass_wall(seen);
    }

    /// Lets time pass until the monotone clock shows `time`.
    ///
    /// # Panics
    /// If that is in the past.
    pub fn advance_to(&mut self, time: Duration) {
        let step = time
            .checked_sub(self.now)
            .expect("a monotone clock never goes back");
        self.now = time;
        self.pass_wall(step.as_nanos() as i128);
    }

    /// The device sleeps: its wall clock goes on, its monotone clock stands still, as Linux's CLOCK_MONOTONIC does.
    pub fn suspend(&mut self, true_time: Duration) {
        self.pass_wall(true_time.as_nanos() as i128);
    }

    /// Somebody sets the wall clock, forward or back.
    pub fn jump_wall(&mut self, milliseconds: i64) {
        self.wall_ms = self.wall_ms.saturating_add(milliseconds);
    }

    /// Somebody sets the wall clock to this time.
    pub fn set_wall_ms(&mut self, wall_ms: i64) {
        self.wall_ms = wall_ms;
    }

    fn pass_wall(&mut self, nanos: i128) {
        self.wall_rest += nanos;
        let whole = self.wall_rest / 1_000_000;
        self.wall_rest -= whole * 1_000_000;
        self.wall_ms = self
            .wall_ms
            .saturating_add(i64::try_from(whole).unwrap_or(i64::MAX));
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_pass_and_only_the_wall_jumps() {
        let mut clock = Clock::new();
        let wall = clock.wall_ms();
        for _ in 0..1_000 {
            clock.advance(Duration::from_micros(1_500));
        }
        assert_eq!(clock.now(), Duration::from_millis(1_500));
        assert_eq!(
            clock.wall_ms() - wall,
            1_500,
            "fractions of a millisecond add up"
        );
        clock.jump_wall(-2_000_000_000_000);
        assert!(clock.wall_ms() < 0, "before 1970");
        clock.suspend(Duration::from_secs(3));
        assert_eq!(clock.now(), Duration::from_millis(1_500));
        clock.advance_to(Duration::from_secs(2));
        assert_eq!(clock.now(), Duration::from_secs(2));
    }

    #[test]
    fn drift_shows_in_a_day() {
        let mut fast = Clock::new().with_drift_ppm(200);
        fast.advance(Duration::from_secs(86_400));
        assert_eq!(
            fast.now() - Duration::from_secs(86_400),
            Duration::from_millis(17_280)
        );
    }
}
