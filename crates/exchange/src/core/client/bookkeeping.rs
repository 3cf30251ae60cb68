//! What follows from every change of a want: figures of its session and peers, indexes, budgets.

use gemba_block::Cid;

use super::peer::OpenAsk;
use super::want::{Phase, Want};
use super::{Answer, Client};
use crate::core::{PeerKey, SessionId, Time};

impl Client {
    /// A session does not want it any more; the last one ends it.
    pub(super) fn leave(&mut self, cid: &Cid, id: SessionId) {
        let Some(mut want) = self.wants.remove(cid) else {
            return;
        };
        let was_home = want.home() == Some(id);
        let phase = want.phase;
        if was_home {
            // Takes it out of this session's figures before another becomes its home.
            self.set_phase(&mut want, cid, Phase::Queued);
        }
        want.sessions.retain(|s| *s != id);
        if let Some(home) = want.home() {
            if was_home {
                match phase {
                    Phase::Queued => {
                        if let Some(session) = self.sessions.get_mut(&home) {
                            session.pending.push_back(*cid);
                        }
                    }
                    phase => self.set_phase(&mut want, cid, phase),
                }
            }
            self.wants.insert(*cid, want);
            return;
        }
        self.settle_all(&want);
        for ask in &want.asks {
            self.cancel_at(ask.peer, cid);
        }
        if let Some(site) = &mut self.site {
            site.release(cid);
        }
        if !want.asks.is_empty() {
            self.recent.insert(cid);
        }
    }

    /// Nothing is owed for this want any more.
    pub(super) fn settle_all(&mut self, want: &Want) {
        for ask in &want.asks {
            let Some(peer) = self.peers.get_mut(&ask.peer) else {
                continue;
            };
            match ask.answer {
                Answer::BlockPending => {
                    peer.settle(ask.charged);
                    self.expected = self.expected.saturating_sub(ask.charged);
                }
                Answer::HavePending => peer.haves = peer.haves.saturating_sub(1),
                _ => {}
            }
            peer.trim();
        }
    }

    /// Ends one ask without its block. False if it was settled before.
    pub(super) fn close_ask(
        &mut self,
        key: PeerKey,
        open: &OpenAsk,
        answer: Answer,
        now: Time,
    ) -> bool {
        let Some(want) = self.wants.get_mut(&open.cid) else {
            return false;
        };
        let Some(ask) = want
            .asks
            .iter_mut()
            .find(|a| a.peer == key && a.number == open.number)
        else {
            return false;
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        match ask.answer {
            Answer::BlockPending => {
                peer.settle(ask.charged);
                self.expected = self.expected.saturating_sub(ask.charged);
                want.let_down = true;
            }
            Answer::HavePending => peer.haves = peer.haves.saturating_sub(1),
            _ => return false,
        }
        ask.answer = answer;
        ask.answered_at = Some(now);
        for id in &want.sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                session.failed(key);
            }
        }
        true
    }

    pub(super) fn cancel_at(&mut self, key: PeerKey, cid: &Cid) {
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.remote.knows(cid)
        {
            peer.remote.cancel(cid);
            self.changed.insert(key);
        }
    }

    /// Moves a want between phases and keeps the indexes and figures that follow from it.
    pub(super) fn set_phase(&mut self, want: &mut Want, cid: &Cid, phase: Phase) {
        let home = want.home();
        if let Some(session) = home.and_then(|id| self.sessions.get_mut(&id)) {
            match want.phase {
                Phase::Searching => session.searching -= 1,
                Phase::Unavailable => session.unavailable -= 1,
                Phase::Waiting => session.waiting -= 1,
                Phase::Queued | Phase::Fetching => {}
            }
            match phase {
                Phase::Searching => session.searching += 1,
                Phase::Unavailable => session.unavailable += 1,
                Phase::Waiting => session.waiting += 1,
                Phase::Queued | Phase::Fetching => {}
            }
        }
        if want.phase == Phase::Unavailable
            && let Some(at) = want.listed_at.take()
        {
            self.retry.remove(&(at, want.seq));
        }
        match phase {
            Phase::Searching | Phase::Waiting => {
                self.open.insert(want.seq, *cid);
            }
            Phase::Unavailable => {
                self.open.insert(want.seq, *cid);
                if let Some(at) = want.retry_at {
                    self.retry.insert((at, want.seq));
                    want.listed_at = Some(at);
                }
            }
            Phase::Queued | Phase::Fetching => {
                self.open.remove(&want.seq);
            }
        }
        want.phase = phase;
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
