//! When to start mDNS anew.
//!
//! libp2p-mdns never restarts an interface task that ended with an error, asks rarely once somebody has answered, and
//! never forgets. A fresh start cures all three, at the price of a few packets. So it is started anew quickly at first and after
//! a change of the network, then more and more rarely.

use std::time::Duration;

use super::table::Time;

/// How often.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RestartConfig {
    /// After the first start or a change of the network.
    pub soonest: Duration,
    /// Doubles up to this. A dead interface task, or a neighbour missed, is found within this time.
    pub latest: Duration,
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            soonest: Duration::from_secs(30),
            latest: Duration::from_secs(5 * 60),
        }
    }
}

/// The schedule.
#[derive(Debug)]
pub struct Restart {
    config: RestartConfig,
    interval: Duration,
    at: Time,
    started: Time,
}

impl Restart {
    /// Started at `now`.
    pub fn new(config: RestartConfig, now: Time) -> Self {
        Self {
            interval: config.soonest,
            at: now.saturating_add(config.soonest),
            started: now,
            config,
        }
    }

    /// When to start anew.
    pub fn deadline(&self) -> Time {
        self.at
    }

    /// It was started anew.
    pub fn on_started(&mut self, now: Time) {
        self.interval = self.interval.saturating_mul(2).min(self.config.latest);
        self.started = now;
        self.at = now.saturating_add(self.interval);
    }

    /// Addresses came or went, or an error was seen: begin again with short intervals, the first `soonest` after the last start.
    pub fn on_disturbance(&mut self, now: Time) {
        self.interval = self.config.soonest;
        let soonest = self.started.saturating_add(self.config.soonest).max(now);
        self.at = self.at.min(soonest);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn starts(restart: &mut Restart, count: usize) -> Vec<u64> {
        let mut seen = Vec::new();
        for _ in 0..count {
            let now = restart.deadline();
            seen.push(now.as_secs());
            restart.on_started(now);
        }
        seen
    }

    #[test]
    fn quickly_at_first_then_every_five_minutes() {
        let mut restart = Restart::new(RestartConfig::default(), at(0));
        assert_eq!(starts(&mut restart, 6), [30, 90, 210, 450, 750, 1050]);
    }

    #[test]
    fn a_change_of_the_network_is_answered_soon_but_never_in_a_storm() {
        let mut restart = Restart::new(RestartConfig::default(), at(0));
        starts(&mut restart, 6);
        restart.on_disturbance(at(1055));
        assert_eq!(restart.deadline(), at(1080));
        restart.on_disturbance(at(1100));
        assert_eq!(restart.deadline(), at(1080));
        restart.on_started(at(1100));
        assert_eq!(restart.deadline(), at(1160));
        for now in 1101..1129 {
            restart.on_disturbance(at(now));
            assert_eq!(restart.deadline(), at(1130));
        }
    }
}
