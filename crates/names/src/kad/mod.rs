//! The route over the DHT: `libp2p-kad`, used and not rewritten, within bounds (feature `kad`, docs/decisions/015).
//!
//! [`Dht`] is the driver: it mounts Kubo's two tables (`/ipfs/lan/kad/1.0.0` and `/ipfs/kad/1.0.0`), lets in only peers that said by identify
//! that they serve it, and turns [`Output::DhtGet`](crate::Output::DhtGet) and [`Output::DhtPut`](crate::Output::DhtPut) into queries with a
//! deadline. `store` is what a server keeps: records of names that it verified, and a bounded list of who has what content. `queue` is what waits.
//! What is decided about a name is decided by the [`Core`](crate::Core); here is decided what a server stores (specs/names.md §8).

mod behaviour;
mod queue;
mod search;
mod store;
mod tables;

pub use behaviour::{Dht, DhtCounters, Event, Failed};
pub use store::{Kept, StoreCounters, StoreLimits};

use std::time::Duration;

/// Whether others may ask this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It keeps records for others and answers them.
    #[default]
    Server,
    /// It only asks: for devices that are often away or on a metered line. Others never have it in their tables.
    Client,
}

/// Limits of a [`Dht`]. The defaults fit a Raspberry Pi among 500 devices.
///
/// Worst case of memory: the store (see [`StoreLimits`]), `max_peers` × `max_addresses` × 100 bytes a table, `max_queries` × `enough` × 10 KiB of
/// answers, and `max_waiting` × 10 KiB of records that wait for their turn: below 20 MiB, with usual records of 300 bytes below 3 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Server or client.
    pub mode: Mode,
    /// Servers in both tables. Beyond it a newcomer is not let in, and counted. Default 512.
    pub max_peers: usize,
    /// Addresses of one server; the oldest goes. Default 8.
    pub max_addresses: usize,
    /// Queries under way, for names and of puts together. Default 16.
    pub max_queries: usize,
    /// Names that wait for their query, and records that wait to be put, each. What comes beyond fails at once. Default 1,024.
    pub max_waiting: usize,
    /// How long one query may take; a put, which looks for its servers first, twice that. Default 10 s, as Go's.
    pub query_timeout: Duration,
    /// Answers after which a query for a name ends. Default 16, as Kubo.
    pub enough: usize,
    /// How long after the first answer a query for a name waits for better ones. Default 1 s: servers that are switched off must not delay a name.
    pub settle: Duration,
    /// How often the tables are refreshed. Default 10 min, as Go.
    pub refresh: Duration,
    /// What a server keeps.
    pub store: StoreLimits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Server,
            max_peers: 512,
            max_addresses: 8,
            max_queries: 16,
            max_waiting: 1_024,
            query_timeout: Duration::from_secs(10),
            enough: 16,
            settle: Duration::from_secs(1),
            refresh: Duration::from_secs(600),
            store: StoreLimits::default(),
        }
    }
}
