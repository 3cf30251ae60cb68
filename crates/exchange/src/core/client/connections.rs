//! Peers come and go, and the lines to them are written or lost.

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::peer::Peer;
use super::{Answer, Client, Out};
use crate::config::Line;
use crate::core::{PeerKey, Time};
use crate::metrics::Counters;

/// Peers remembered in `Why::gone`.
const GONE: usize = 8;

impl Client {
    pub(in crate::core) fn connected(
        &mut self,
        key: PeerKey,
        id: PeerId,
        lan: bool,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        self.peers.insert(key, Peer::new(id, lan, now));
        if let Some(site) = &mut self.site {
            site.connected(key, id, now);
        }
        let open: Vec<Cid> = self.open.values().copied().collect();
        for cid in open {
            self.place(&cid, now, counters, out);
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    pub(in crate::core) fn disconnected(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(peer) = self.peers.remove(&key) else {
            return;
        };
        self.expected = self.expected.saturating_sub(peer.bytes);
        self.changed.remove(&key);
        if let Some(site) = &mut self.site {
            site.disconnected(key);
        }
        for session in self.sessions.values_mut() {
            session.forget(key);
        }
        let mut orphans = Vec::new();
        for (cid, want) in &mut self.wants {
            let Some(at) = want.asks.iter().position(|a| a.peer == key) else {
                continue;
            };
            let ask = want.asks.remove(at);
            if want.gone.len() < GONE && !want.gone.contains(&peer.id) {
                want.gone.push(peer.id);
            }
            if matches!(ask.answer, Answer::BlockPending | Answer::HavePending) {
                counters.moved += u64::from(ask.answer == Answer::BlockPending);
                orphans.push((want.seq, *cid));
            }
        }
        orphans.sort_unstable_by_key(|(seq, _)| *seq);
        for (_, cid) in orphans {
            self.place(&cid, now, counters, out);
        }
        self.turns_changed(now, counters, out);
        self.stir_all();
        self.stir(now, counters, out);
    }

    /// The peer speaks no Bitswap: as if it were not there, until it disconnects.
    pub(in crate::core) fn unsupported(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.unsupported = true;
        }
        if let Some(site) = &mut self.site {
            site.unsupported(key);
        }
        self.give_up_on(key, Answer::TimedOut, now, counters, out);
    }

    pub(in crate::core) fn set_lan(&mut self, key: PeerKey, lan: bool) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.lan = lan;
        }
    }

    /// A message came from the peer.
    pub(in crate::core) fn came(&mut self, key: PeerKey, bytes: usize, now: Time) {
        if let Some(line) = self.peers.get(&key).map(Peer::line) {
            self.downs.came(line, bytes, now);
        }
    }

    pub(in crate::core) fn carried(&mut self, line: Line, read: u64, now: Time) {
        self.downs.carried(line, read, now);
    }

    pub(in crate::core) fn progress(&mut self, key: PeerKey, at: Time, bytes: usize) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.progress = peer.progress.max(at);
            peer.partial = peer.partial.saturating_add(bytes);
        }
    }

    /// It held memory for what it did not send: asked last, as one that stalled. What it owes is left to its own time-outs, since it may send
    /// that again.
    pub(in crate::core) fn too_slow(&mut self, key: PeerKey, now: Time) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.stalled(now);
        }
    }

    pub(in crate::core) fn request_sent(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.remote.written();
            if peer.remote.has_work() {
                self.changed.insert(key);
            }
        }
    }

    pub(in crate::core) fn requests_lost(&mut self, key: PeerKey, counters: &mut Counters) {
        if let Some(peer) = self.peers.get_mut(&key) {
            counters.resent_wantlists += u64::from(peer.remote.lost());
            if peer.remote.has_work() {
                self.changed.insert(key);
            }
        }
    }
}
