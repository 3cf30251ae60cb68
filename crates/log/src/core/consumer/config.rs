//! What a consumer wants.

use super::planted::Planted;
use crate::stream::Pattern;
use std::time::Duration;

/// Name of a consumer: 1 to 64 bytes of `[A-Za-z0-9._~-]`, as a level of a stream's name, since it becomes one (`$dead/<consumer>/…`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerName(String);

/// The name is empty, longer than 64 bytes, or has other characters than `A-Z a-z 0-9 . _ ~ -`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a consumer has 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")]
pub struct BadName;

impl ConsumerName {
    /// Checks the name.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(name: &str) -> Result<Self, BadName> {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"._~-".contains(byte);
        if (1..=64).contains(&name.len()) && name.as_bytes().iter().all(good) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadName)
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ConsumerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a consumer that never was before begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first event that the log holds of each feed.
    Beginning,
    /// Behind what the log holds now. Feeds that come later are read from their first event.
    Tail,
}

/// What happens to the events behind one that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// They go on; the refused one is tried again beside them, and only it loses its place.
    Loose,
    /// The feed waits, as long as `attempts` and `patience` allow; other feeds go on.
    Strict,
}

/// How a consumer works. The defaults are fit for a tablet.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, one of its kind on a node.
    pub name: ConsumerName,
    /// Which streams it reads.
    pub patterns: Vec<Pattern>,
    /// Where it begins.
    pub start: Start,
    /// What a refused event does to those behind it.
    pub order: Order,
    /// Most events given at once; they are one transaction. What is read and done again after a crash grows with it.
    pub batch: u32,
    /// How long a worker may be silent before its feed is given to another.
    pub lease: Duration,
    /// How often an event is tried before it becomes a dead letter; at least 1.
    pub attempts: u32,
    /// How long after its first failure an event is tried at most. What comes first, this or `attempts`, counts.
    pub patience: Duration,
    /// Pause before the second attempt; it doubles with each further one.
    pub backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// Most refused events of one feed that wait for their next attempt; 48 bytes each in memory, some 8 in each row. The one that was tried most
    /// goes to the dead letters when there are more.
    pub max_aside: usize,
    /// Most workers that hold or wait for a lease.
    pub max_workers: usize,
    /// Most feeds; about 1 KiB each. Later ones are not read, counted, and told.
    pub max_feeds: usize,
    /// A bug, for tests of the simulator.
    #[doc(hidden)]
    pub planted: Option<Planted>,
}

impl Config {
    /// The defaults, for this consumer of these streams.
    pub fn new(name: ConsumerName, patterns: Vec<Pattern>) -> Self {
        Self {
            name,
            patterns,
            start: Start::Beginning,
            order: Order::Loose,
            batch: 1_000,
            lease: Duration::from_secs(30),
            attempts: 5,
            patience: Duration::from_secs(300),
            backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(60),
            max_aside: 512,
            max_workers: 256,
            max_feeds: 65_536,
            planted: None,
        }
    }

    /// The pause after this many failures.
    pub(super) fn pause(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(20);
        self.backoff
            .saturating_mul(1 << doublings)
            .min(self.max_backoff)
    }

    /// Whether an event that failed this often, for this long, is given up.
    pub(super) fn is_hopeless(&self, attempts: u32, held_ms: u64) -> bool {
        attempts >= self.attempts.max(1)
            || attempts > 0 && Duration::from_millis(held_ms) >= self.patience
    }
}
