//! The knobs, each with what it trades and its worst case.

use std::time::Duration;

use crate::{crowd::Crowd, line::Lines, muxer::ReceiveBudget, stage::Stages};

/// How connections are made and how long each stage may take.
///
/// A stalled peer holds one pending connection for at most `incoming`, 5 s by default; see [`Limits`](crate::limits::Limits) for how many
/// of those there can be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TransportConfig {
    /// Name look-up and TCP connect, each. Beyond it the address counts as unreachable. On a LAN answers take milliseconds;
    /// 4 s also covers one lost SYN (retried after 1 s and 3 s).
    pub connect: Duration,
    /// From the connect to the remote's complete nonce.
    pub nonce: Duration,
    /// From the nonce to the secured and multiplexed connection, the key check included. On an old tablet the Noise handshake
    /// takes about 10 ms; the rest is for a bad link.
    pub security: Duration,
    /// All stages of an incoming connection together, from its acceptance to the secured and multiplexed one: who came to us has proved
    /// nothing until then (T1). The shorter deadline counts. On a line of 100 ms honest devices need less than a second; the rest is for
    /// two lost packets.
    pub incoming: Duration,
    /// Streams a connection may have at once, both directions. Kubo opens one for each response of about 16 KiB, and yamux ends
    /// the connection at the limit, so this is generous. What they may leave unread together is bounded by `receive`.
    pub max_streams: usize,
    /// Addresses of one host name that are tried, in the order of the resolver.
    pub max_addresses_per_name: usize,
    /// Bytes that may lie received and unread on all connections; beyond it a connection that has more than 64 KiB of them is not
    /// read. Clones of this configuration share it. 32 MiB by default: smaller slows peers down that are read slowly, larger is
    /// what hostile peers can take.
    pub receive: ReceiveBudget,
    /// Who gives way when many incoming connections are being set up at once: those who take longer than a second while there are more
    /// than twelve, by default. Belongs to `Limits::pending_incoming`. Clones of this configuration share it.
    pub crowd: Crowd,
    /// Which connections go over a slow line, and what is counted of each; nothing by default.
    pub lines: Lines,
    /// Tells where dials under way stand: keep a clone of it.
    pub stages: Stages,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(4),
            nonce: Duration::from_secs(5),
            security: Duration::from_secs(5),
            incoming: Duration::from_secs(5),
            max_streams: 512,
            max_addresses_per_name: 4,
            receive: ReceiveBudget::default(),
            crowd: Crowd::default(),
            lines: Lines::default(),
            stages: Stages::default(),
        }
    }
}
