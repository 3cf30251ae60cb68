//! What the book may hold and how often it speaks, on one page.

use crate::wall::Wall;
use std::time::Duration;

/// Limits and intervals of a [`Core`](crate::Core). The defaults fit a tablet among 500 devices.
///
/// Worst case of memory: `max_names` × two records of 10 KiB and what is in flight (some 30 MiB, were every record of the largest size; with
/// usual ones of 300 bytes below 2 MiB), `max_floors` × 200 bytes, `max_verifying` × 10 KiB, and 150 bytes for each name that a peer is interested in: 40 MiB, were there 512
/// peers with 512 names each that are in this book as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Names with a record: own, followed, and resolved. Own and followed ones never give way; the resolved one that was used least lately
    /// does. Default 1,024.
    pub max_names: usize,
    /// Names of which only the number is remembered, so that a version that was told is not followed by an older one. The one with the oldest change
    /// gives way. Default 16,384.
    pub max_floors: usize,
    /// Peers of `/gemba/names/1`. Default 512.
    pub max_peers: usize,
    /// Names that one peer may be interested in, 64 of them such as are not in this book. What is beyond is not pushed to him; topics and his own
    /// comparing serve him. Default 512.
    pub max_interests: usize,
    /// Records whose signature is being checked. What comes beyond is dropped and counted. Default 64.
    pub max_verifying: usize,
    /// Commands that wait for a signature. Default 1,024.
    pub max_commands: usize,
    /// Signatures that one peer may have checked at once, and a second later: 32 and 8. At 40 µs each a hostile peer costs a third of a
    /// thousandth of a core.
    pub peer_burst: u32,
    /// See `peer_burst`.
    pub peer_per_second: u32,
    /// Versions of one name that are spread at once; beyond it one each `announce_gap`, always the newest. Default 4.
    pub announce_burst: u32,
    /// Default 250 ms.
    pub announce_gap: Duration,
    /// How often the newest record is said again on its topic unless others did. Longer than the two minutes that gossip remembers a message.
    /// Default 10 min.
    pub reannounce: Duration,
    /// How often a followed name is compared with peers, in case a message was lost. Default 5 min. Notification does not wait for it.
    pub pull: Duration,
    /// How often own records are put into the DHT, whose servers forget them after 48 h. Default 22 h.
    pub dht_put: Duration,
    /// How often a follower looks whether the DHT still has the record, and puts it if fewer than `dht_enough` peers do. Default 12 h.
    pub dht_tend: Duration,
    /// Default 4.
    pub dht_enough: usize,
    /// How long a name that is not known is looked for. Default 10 s.
    pub resolve_timeout: Duration,
    /// A moment before which this program did not exist: no clock before it is believed.
    pub build: Wall,
    /// Most by which a moment that was seen in something signed may lie after `build` and be believed. One device with a clock in 2099 must not
    /// make every record of the others stale. Default 20 years, a guess at the life of a device.
    pub horizon: Duration,
    /// Spreads intervals, so that devices switched on together do not speak together. Give each device its own.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_names: 1_024,
            max_floors: 16_384,
            max_peers: 512,
            max_interests: 512,
            max_verifying: 64,
            max_commands: 1_024,
            peer_burst: 32,
            peer_per_second: 8,
            announce_burst: 4,
            announce_gap: Duration::from_millis(250),
            reannounce: Duration::from_secs(600),
            pull: Duration::from_secs(300),
            dht_put: Duration::from_secs(22 * 3600),
            dht_tend: Duration::from_secs(12 * 3600),
            dht_enough: 4,
            resolve_timeout: Duration::from_secs(10),
            build: Wall::from_unix(1_767_225_600, 0), // 2026-01-01
            horizon: Duration::from_secs(20 * 365 * 24 * 3600),
            seed: 0,
        }
    }
}
