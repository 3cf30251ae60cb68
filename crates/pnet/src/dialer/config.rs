//! The knobs of the dialer.

use std::time::Duration;

use multiaddr::Multiaddr;

use super::{backoff::BackoffConfig, spare::SpareConfig};

/// Whom to keep connected, and how hard to try.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DialerConfig {
    /// Bootstrap and other known peers, with or without `/p2p/…` at the end. They are dialed until connected, and again whenever the
    /// connection is lost.
    pub known: Vec<Multiaddr>,
    /// Waits after failures.
    pub backoff: BackoffConfig,
    /// How often a host is tried at addresses that nobody vouches for: neither the operator nor a member that was once found there (T11).
    pub spare: SpareConfig,
    /// Dials of our own under way at once.
    pub parallel: usize,
    /// Peers, known and discovered, that are kept connected; and peers whose addresses are remembered.
    pub max_peers: usize,
    /// Addresses remembered of one peer (T9). Worst case: `max_peers` × this × about 100 bytes, 3 MiB by default.
    pub max_addresses_per_peer: usize,
    /// How long a discovered peer that does not answer is still tried, counted from when it was last seen.
    pub discovered_lifetime: Duration,
    /// Incoming failures remembered for `status`. The victim is the oldest.
    pub incoming_failures: usize,
}

impl Default for DialerConfig {
    fn default() -> Self {
        Self {
            known: Vec::new(),
            backoff: BackoffConfig::default(),
            spare: SpareConfig::default(),
            parallel: 8,
            max_peers: 1024,
            max_addresses_per_peer: 32,
            discovered_lifetime: Duration::from_secs(10 * 60),
            incoming_failures: 64,
        }
    }
}
