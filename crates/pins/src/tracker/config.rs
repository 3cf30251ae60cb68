//! What the tracker may hold and how patient it is.

use super::Time;
use std::time::Duration;

/// Settings of a [`Tracker`](super::Tracker).
///
/// Worst case of memory: `in_flight` × about 600 bytes, 2.4 MiB with the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerConfig {
    pub(crate) walks: usize,
    pub(crate) walks_standing: usize,
    pub(crate) in_flight: usize,
    pub(crate) batch: usize,
    pub(crate) patience: Time,
    pub(crate) denied_stall: Time,
    pub(crate) stall: Time,
    pub(crate) busy_stall: Time,
    pub(crate) first_pause: Time,
    pub(crate) longest_pause: Time,
    pub(crate) recent_tries: u32,
    pub(crate) rest: Time,
    pub(crate) redraw: Time,
    pub(crate) compare: Time,
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self {
            walks: 4,
            walks_standing: 16,
            in_flight: 4096,
            batch: 1024,
            patience: Duration::from_secs(3),
            denied_stall: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            busy_stall: Duration::from_secs(300),
            first_pause: Duration::from_secs(10),
            longest_pause: Duration::from_secs(600),
            recent_tries: 5,
            rest: Duration::from_secs(1),
            redraw: Duration::from_secs(60),
            compare: Duration::from_secs(30),
        }
    }
}

impl TrackerConfig {
    /// Walks at the same time that advance; more would only share the same line. 0 counts as 1. Default 4.
    #[must_use]
    pub fn walks(mut self, walks: usize) -> Self {
        self.walks = walks.max(1);
        self.walks_standing = self.walks_standing.max(self.walks);
        self
    }

    /// Walks at the same time, those included that stand still: one that waits for [`patience`](Self::patience) gives its turn to another and
    /// keeps its session. At least [`walks`](Self::walks). Default 16.
    #[must_use]
    pub fn walks_standing(mut self, walks: usize) -> Self {
        self.walks_standing = walks.max(self.walks);
        self
    }

    /// Operations in memory: running, waiting for their turn, and failed ones with their attempts. The rest stay in the desired set and are
    /// drawn from there. Where it is full the failed one that is tried last gives way, and its attempts are forgotten. At least 16. Default 4,096.
    #[must_use]
    pub fn in_flight(mut self, operations: usize) -> Self {
        self.in_flight = operations.max(16);
        self
    }

    /// Pins drawn from the desired set at once. At least 1. Default 1,024.
    #[must_use]
    pub fn batch(mut self, pins: usize) -> Self {
        self.batch = pins.max(1);
        self
    }

    /// No block for so long: the walk stands still, and another may begin beside it. Default 3 s.
    #[must_use]
    pub fn patience(mut self, time: Time) -> Self {
        self.patience = time;
        self
    }

    /// No block for so long, and nobody who could be asked has it: the try ends. Where others wait for their turn, after
    /// [`patience`](Self::patience) already. Default 15 s.
    #[must_use]
    pub fn denied_stall(mut self, time: Time) -> Self {
        self.denied_stall = time;
        self
    }

    /// No block for so long, and no byte of anything: the try ends. Never the total time: a terabyte may take a week. Default 60 s.
    #[must_use]
    pub fn stall(mut self, time: Time) -> Self {
        self.stall = time;
        self
    }

    /// No block for so long, though bytes arrive, on a slow line for others perhaps: the try ends. Default 300 s.
    #[must_use]
    pub fn busy_stall(mut self, time: Time) -> Self {
        self.busy_stall = time;
        self
    }

    /// The first pause before the next try; doubles up to [`longest_pause`](Self::longest_pause). Default 10 s.
    #[must_use]
    pub fn first_pause(mut self, time: Time) -> Self {
        self.first_pause = time;
        self
    }

    /// The longest pause before the next try. Default 600 s.
    #[must_use]
    pub fn longest_pause(mut self, time: Time) -> Self {
        self.longest_pause = time;
        self
    }

    /// What somebody asked for in person goes before the rest for so many tries; then it waits its turn with them. Default 5, as IPFS Cluster.
    #[must_use]
    pub fn recent_tries(mut self, tries: u32) -> Self {
        self.recent_tries = tries;
        self
    }

    /// How long nothing is started after the owner could start nothing. Default 1 s.
    #[must_use]
    pub fn rest(mut self, time: Time) -> Self {
        self.rest = time;
        self
    }

    /// Between two rounds through the desired set, if more of it is not whole than fits into memory. Default 60 s.
    #[must_use]
    pub fn redraw(mut self, time: Time) -> Self {
        self.redraw = time;
        self
    }

    /// Between two rounds through the desired set though nothing of it is known to be left: what became not whole, or was wanted, and was never told is
    /// found that way. It costs one look at what is not whole. [`Time::MAX`]: never. Default 30 s.
    #[must_use]
    pub fn compare(mut self, time: Time) -> Self {
        self.compare = time;
        self
    }
}
