//! Bytes exchanged with each peer, bounded in peers.

use std::collections::{HashMap, VecDeque};

use libp2p_identity::PeerId;

/// What was exchanged with one peer since start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PeerLedger {
    /// Who.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::display"))]
    pub peer: PeerId,
    /// Whether it is connected now.
    pub connected: bool,
    /// Blocks received from it.
    pub blocks_in: u64,
    /// Bytes of those.
    pub bytes_in: u64,
    /// Blocks written to it.
    pub blocks_out: u64,
    /// Bytes of those.
    pub bytes_out: u64,
}

/// All peers. Connected ones always have a line; of the gone ones the longest gone leaves first.
pub(super) struct Ledger {
    lines: HashMap<PeerId, Line>,
    gone: VecDeque<PeerId>,
    keep: usize,
}

#[derive(Default)]
struct Line {
    /// Whether the peer is in `gone`.
    gone: bool,
    blocks_in: u64,
    bytes_in: u64,
    blocks_out: u64,
    bytes_out: u64,
}

impl Ledger {
    pub(super) fn new(keep: usize) -> Self {
        Self {
            lines: HashMap::new(),
            gone: VecDeque::new(),
            keep,
        }
    }

    pub(super) fn connected(&mut self, peer: PeerId) {
        let line = self.lines.entry(peer).or_default();
        if std::mem::take(&mut line.gone) {
            self.gone.retain(|p| *p != peer);
        }
    }

    pub(super) fn disconnected(&mut self, peer: PeerId) {
        if let Some(line) = self.lines.get_mut(&peer)
            && !line.gone
        {
            line.gone = true;
            self.gone.push_back(peer);
        }
        while self.gone.len() > self.keep {
            if let Some(oldest) = self.gone.pop_front() {
                self.lines.remove(&oldest);
            }
        }
    }

    pub(super) fn received(&mut self, peer: PeerId, blocks: usize, bytes: usize) {
        if let Some(line) = self.lines.get_mut(&peer) {
            line.blocks_in += blocks as u64;
            line.bytes_in += bytes as u64;
        }
    }

    pub(super) fn sent(&mut self, peer: PeerId, blocks: usize, bytes: usize) {
        if let Some(line) = self.lines.get_mut(&peer) {
            line.blocks_out += blocks as u64;
            line.bytes_out += bytes as u64;
        }
    }

    /// Sorted by peer.
    pub(super) fn list(&self, is_connected: impl Fn(&PeerId) -> bool) -> Vec<PeerLedger> {
        let mut list: Vec<_> = self
            .lines
            .iter()
            .map(|(peer, line)| PeerLedger {
                peer: *peer,
                connected: is_connected(peer),
                blocks_in: line.blocks_in,
                bytes_in: line.bytes_in,
                blocks_out: line.blocks_out,
                bytes_out: line.bytes_out,
            })
            .collect();
        list.sort_by_key(|line| line.peer);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_peers_leave_the_ledger_oldest_first_and_come_back_with_their_line() {
        let mut ledger = Ledger::new(2);
        let peers: Vec<_> = (0..4).map(|_| PeerId::random()).collect();
        for peer in &peers {
            ledger.connected(*peer);
            ledger.received(*peer, 1, 10);
            ledger.disconnected(*peer);
        }
        assert_eq!(ledger.list(|_| false).len(), 2);
        ledger.connected(peers[3]);
        ledger.sent(peers[3], 1, 7);
        let list = ledger.list(|p| *p == peers[3]);
        let line = list.iter().find(|l| l.peer == peers[3]);
        assert!(line.is_some_and(|l| l.connected && l.bytes_in == 10 && l.bytes_out == 7));
        assert_eq!(ledger.gone.len(), 1);
    }
}
