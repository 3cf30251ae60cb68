//! What a node replicates, and within which bounds.

use crate::stream::Pattern;
use std::time::Duration;

/// Bounds and paces. The defaults are fit for a tablet: at most some 48 MiB whatever others send.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which streams are kept here.
    pub patterns: Vec<Pattern>,
    /// Feeds that are known to be longer elsewhere; about 300 bytes each. Later ones are dropped, counted, and found again by the next comparison.
    pub max_wants: usize,
    /// Of these, by one author: a hostile one has no more (L6).
    pub max_wants_per_author: usize,
    /// Feeds of one author that are kept at all. Those beyond are dropped and counted.
    pub max_feeds_per_author: usize,
    /// Bytes of batches that came before the one before them. The one that lies furthest ahead gives way.
    pub max_early_bytes: usize,
    /// Of these, by one author.
    pub max_early_bytes_per_author: usize,
    /// Peers that are served; those beyond are answered with "busy".
    pub max_peers: usize,
    /// Requests of one peer that wait.
    pub max_requests_per_peer: usize,
    /// Reads of the log under way for others.
    pub max_loads: usize,
    /// Bytes of batches in one answer, at most and asked for.
    pub answer_bytes: u64,
    /// Bytes a second that one peer gets, after a first `serve_burst`; 0 is without limit.
    pub serve_per_second: u64,
    /// See `serve_per_second`.
    pub serve_burst: u64,
    /// Comparisons that one peer may ask for at once, one more each second.
    pub sync_burst: u32,
    /// How long an answer may take before another peer is asked.
    pub patience: Duration,
    /// Pause between comparisons with one peer that end in agreement; each walks over all feeds once.
    pub sync_interval: Duration,
    /// Pause between announcements, so that many appends are one message.
    pub announce_gap: Duration,
    /// A batch of at most so many bytes goes with its announcement.
    pub push_bytes: usize,
    /// What a peer may do wrong before it is not asked for a while.
    pub strikes: u32,
}

impl Config {
    /// The defaults, for a node that keeps these streams.
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self {
            patterns,
            max_wants: 65_536,
            max_wants_per_author: 256,
            max_feeds_per_author: 1_024,
            max_early_bytes: 8 << 20,
            max_early_bytes_per_author: 1 << 20,
            max_peers: 1_024,
            max_requests_per_peer: 4,
            max_loads: 8,
            answer_bytes: 1 << 20,
            serve_per_second: 0,
            serve_burst: 8 << 20,
            sync_burst: 64,
            patience: Duration::from_secs(10),
            sync_interval: Duration::from_secs(60),
            announce_gap: Duration::from_millis(20),
            push_bytes: 8 << 10,
            strikes: 8,
        }
    }
}
