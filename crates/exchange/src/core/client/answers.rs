//! What peers say and send: blocks, presences, wrong bytes.

use bytes::Bytes;
use gemba_block::{Block, Cid};

use super::peer::OpenAsk;
use super::want::Phase;
use super::{Answer, Client, Out};
use crate::core::{Output, PeerKey, Time};
use crate::metrics::Counters;
use crate::wire::{Message, Presence};

impl Client {
    pub(in crate::core) fn received(
        &mut self,
        key: PeerKey,
        message: Message,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let (delivers, answers) = self.answers_us(key, &message);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.progress = if delivers { now } else { peer.progress };
            peer.partial = peer.partial.saturating_sub(message.wire_bytes);
            peer.heard = if answers { now } else { peer.heard };
        }
        // A few wanted bytes must not keep a large receive buffer alive.
        let kept: usize = message
            .blocks
            .iter()
            .filter(|b| self.wants.contains_key(b.cid()))
            .map(Block::len)
            .sum();
        let copy = kept * 2 < message.wire_bytes;
        for block in message.blocks {
            self.on_block(key, block, copy, now, counters, out);
        }
        for (cid, presence) in message.presences {
            match presence {
                Presence::Have => self.on_have(key, cid, now, counters, out),
                Presence::DontHave => self.on_dont_have(key, cid, now, counters, out),
            }
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    /// Whether the peer sends a block that it was asked for, and whether it answers an open question: otherwise a word now and then, about
    /// anything, would keep from the others what it owes.
    fn answers_us(&self, key: PeerKey, message: &Message) -> (bool, bool) {
        let ask = |cid: &Cid| self.wants.get(cid).and_then(|want| want.ask_of(key));
        let block = |block: &Block| ask(block.cid()).is_some();
        let presence = |cid: &Cid| ask(cid).is_some_and(|ask| ask.answer == Answer::HavePending);
        (
            message.blocks.iter().any(block),
            message.presences.iter().any(|(cid, _)| presence(cid)),
        )
    }

    pub(super) fn on_block(
        &mut self,
        key: PeerKey,
        block: Block,
        copy: bool,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let cid = *block.cid();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.remote.answered(&cid, true);
        let from = peer.id;
        let Some(mut want) = self.wants.remove(&cid) else {
            self.not_wanted(key, &block, now, counters, out);
            return;
        };
        counters.found += 1;
        self.downs.saw(block.len());
        self.set_phase(&mut want, &cid, Phase::Fetching);
        let asked = want.ask_of(key).map(|a| (a.number, a.at));
        self.settle_all(&want);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.delivered(asked, block.len(), now);
        }
        for other in want.asks.iter().filter(|a| a.peer != key) {
            self.cancel_at(other.peer, &cid);
        }
        self.recent.insert(&cid);
        if let Some(site) = &mut self.site {
            site.found(&cid, key, now);
        }
        let block = if copy {
            Block::danger_unchecked(cid, Bytes::copy_from_slice(block.data()))
        } else {
            block
        };
        for id in want.sessions {
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            session.wants.remove(&cid);
            session.had(key);
            session.saw_size(block.len());
            self.found += block.len();
            out.push_back(Output::Found {
                session: id,
                block: block.clone(),
                from,
            });
        }
        if !self.paused && self.found >= self.config.node_bytes {
            self.paused = true;
            counters.pauses += 1;
            out.push_back(Output::Pause(true));
        }
    }

    /// A block that nobody here wants: late, or wrong bytes.
    pub(super) fn not_wanted(
        &mut self,
        key: PeerKey,
        block: &Block,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        if self.recent.contains(block.cid()) {
            counters.duplicates += 1;
            counters.duplicate_bytes += block.len() as u64;
            return;
        }
        counters.unwanted += 1;
        if self.peers.get(&key).is_some_and(|p| p.blocks > 0) {
            counters.wrong_bytes += 1;
            self.wrong_bytes(key, now, counters, out);
        }
    }

    /// X2: bytes that are not what was asked for. What the peer owes is asked of others at once.
    pub(super) fn wrong_bytes(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let config = &self.config;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.sent_wrong(now, config) {
            counters.distrusted += 1;
            out.push_back(Output::Distrusted { peer: peer.id });
        }
        self.give_up_on(key, Answer::WrongBytes, now, counters, out);
    }

    pub(in crate::core) fn malformed(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        self.wrong_bytes(key, now, counters, out);
        self.stir(now, counters, out);
    }

    /// Moves everything that a peer owes.
    pub(super) fn give_up_on(
        &mut self,
        key: PeerKey,
        answer: Answer,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let mut open: Vec<OpenAsk> = peer.block_asks.drain(..).collect();
        open.extend(peer.have_asks.drain(..));
        for ask in open {
            if self.close_ask(key, &ask, answer, now) {
                counters.moved += 1;
                self.place(&ask.cid, now, counters, out);
            }
        }
    }

    pub(super) fn on_have(
        &mut self,
        key: PeerKey,
        cid: Cid,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        counters.haves_in += 1;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.remote.answered(&cid, false);
        let Some(want) = self.wants.get_mut(&cid) else {
            return;
        };
        let Some(ask) = want.asks.iter_mut().find(|a| a.peer == key) else {
            return;
        };
        if ask.answer == Answer::BlockPending {
            // It will come; a server says HAVE to an earlier want-have first.
            return;
        }
        if ask.answer == Answer::HavePending {
            peer.haves = peer.haves.saturating_sub(1);
            peer.answered(ask.at, now);
        }
        ask.answer = Answer::Has;
        ask.answered_at = Some(now);
        // Who waits for somebody to have it begins anew: everybody had his turn before (SI-9).
        want.shared.lapsed.clear();
        for id in &want.sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                session.had(key);
            }
        }
        if want.phase != Phase::Queued && want.phase != Phase::Fetching {
            self.place(&cid, now, counters, out);
        }
    }

    pub(super) fn on_dont_have(
        &mut self,
        key: PeerKey,
        cid: Cid,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        counters.dont_haves_in += 1;
        let Some(want) = self.wants.get_mut(&cid) else {
            return;
        };
        let Some(ask) = want.asks.iter_mut().find(|a| a.peer == key) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.remote.idle(cid);
        self.changed.insert(key);
        match ask.answer {
            Answer::BlockPending => {
                counters.moved += 1;
                peer.settle(ask.charged);
                peer.answered(ask.at, now);
                self.expected = self.expected.saturating_sub(ask.charged);
            }
            Answer::HavePending => {
                peer.haves = peer.haves.saturating_sub(1);
                peer.answered(ask.at, now);
            }
            _ => {}
        }
        ask.answer = Answer::DontHave;
        ask.answered_at = Some(now);
        for id in &want.sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                session.had_not(key);
            }
        }
        if want.phase != Phase::Queued {
            self.place(&cid, now, counters, out);
        }
    }
}
