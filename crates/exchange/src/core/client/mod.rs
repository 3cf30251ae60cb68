//! The client: which peer is asked for which want, and what happens when it does not deliver.
//!
//! A want goes through these phases: *queued* (nothing under way), *searching* (everybody was asked whether they have
//! it), *fetching* (one peer was asked for it), *unavailable* (all said no, or nothing). [`Client::place`] is the one
//! place that decides the next step of a want; it is called whenever an answer, a time-out or room arrives.

mod peer;
mod remote;
mod session;
mod why;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::time::Duration;

use bytes::Bytes;
use gemba_block::{Block, Cid, check_cid};
use libp2p_identity::PeerId;

pub use session::{AskPolicy, AskTest, SessionOptions};
pub use why::{Answer, Asked, WaitingFor, Why};

use super::{Output, PeerKey, SessionId, Time};
use crate::config::Config;
use crate::error::{TooManySessions, WantError};
use crate::metrics::Counters;
use crate::wire::{Message, Presence, WantKind};
use peer::{OpenAsk, Peer};
use session::Session;

type Out = VecDeque<Output>;

pub(super) struct Client {
    config: Config,
    peers: BTreeMap<PeerKey, Peer>,
    sessions: BTreeMap<SessionId, Session>,
    wants: HashMap<Cid, Want>,
    /// Searching and unavailable wants in order: what a new peer is asked for.
    open: BTreeMap<u64, Cid>,
    /// Unavailable wants by the time of their next round.
    retry: BTreeSet<(Time, u64)>,
    /// Peers whose wantlist changed.
    changed: BTreeSet<PeerKey>,
    /// Sessions whose pending wants may find room.
    stirred: BTreeSet<SessionId>,
    recent: Recent,
    expected: usize,
    found: usize,
    paused: bool,
    next_session: u64,
    /// Numbers wants and asks.
    next: u64,
    ticked: Time,
}

struct Want {
    seq: u64,
    /// The first one has it in its queue.
    sessions: Vec<SessionId>,
    since: Time,
    phase: Phase,
    asks: Vec<Ask>,
    gone: Vec<PeerId>,
    rounds: u32,
    retry_at: Option<Time>,
    /// Its key in `Client::retry`.
    listed_at: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Searching,
    Fetching,
    Unavailable,
}

/// What one peer was asked and said about one want.
struct Ask {
    peer: PeerKey,
    number: u64,
    at: Time,
    answer: Answer,
    answered_at: Option<Time>,
    /// Bytes counted as expected while the block is owed.
    charged: usize,
}

/// What `place` did with a want.
#[derive(PartialEq, Eq)]
enum Placed {
    /// Something is under way.
    Settled,
    /// The windows are full.
    NoRoom,
}

/// Whom to ask for a block.
enum Choice {
    Peer(PeerKey),
    Full,
    Nobody,
}

/// While anything is owed, time-outs are looked for this often.
const TICK: Duration = Duration::from_millis(250);
/// Pending wants that are tried beyond the first that has no room: others may have other holders.
const LOOK_AHEAD: usize = 16;
/// A block is lost if the peer delivered so many that were asked for later.
const OVERTAKEN: u64 = 64;
/// A stalled peer that holds a want is asked again after so many stall times.
const PATIENCE: u32 = 10;
/// Peers remembered in `Why::gone`.
const GONE: usize = 8;

impl Client {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            wants: HashMap::new(),
            open: BTreeMap::new(),
            retry: BTreeSet::new(),
            changed: BTreeSet::new(),
            stirred: BTreeSet::new(),
            recent: Recent::default(),
            expected: 0,
            found: 0,
            paused: false,
            next_session: 0,
            next: 0,
            ticked: Time::ZERO,
        }
    }

    // ---- commands of the owner

    pub(super) fn open_session(
        &mut self,
        options: SessionOptions,
    ) -> Result<SessionId, TooManySessions> {
        if self.sessions.len() >= self.config.sessions {
            return Err(TooManySessions(self.sessions.len()));
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(id, Session::new(options));
        Ok(id)
    }

    pub(super) fn want(
        &mut self,
        id: SessionId,
        cids: impl IntoIterator<Item = Cid>,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) -> Result<(), WantError> {
        let mut result = Ok(());
        for (taken, cid) in cids.into_iter().enumerate() {
            result = self.want_one(id, cid, taken, now);
            if result.is_err() {
                break;
            }
        }
        self.stirred.insert(id);
        self.stir(now, counters, out);
        result
    }

    fn want_one(
        &mut self,
        id: SessionId,
        cid: Cid,
        taken: usize,
        now: Time,
    ) -> Result<(), WantError> {
        let session = self
            .sessions
            .get_mut(&id)
            .ok_or(WantError::UnknownSession(id))?;
        check_fetchable(&cid)?;
        if session.wants.contains(&cid) {
            return Ok(());
        }
        if session.wants.len() >= self.config.session_wants {
            return Err(WantError::Full { taken });
        }
        session.wants.insert(cid);
        match self.wants.get_mut(&cid) {
            // Another session wants it too; a policy that allows more peers may find it sooner.
            Some(want) => want.sessions.push(id),
            None => {
                session.pending.push_back(cid);
                let seq = self.number();
                self.wants.insert(cid, Want::new(seq, id, now));
            }
        }
        Ok(())
    }

    pub(super) fn room(&self, id: SessionId) -> usize {
        self.sessions.get(&id).map_or(0, |s| {
            self.config.session_wants.saturating_sub(s.wants.len())
        })
    }

    pub(super) fn cancel(
        &mut self,
        id: SessionId,
        cids: &[Cid],
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let gone: HashSet<Cid> = cids
            .iter()
            .filter(|cid| session.wants.remove(*cid))
            .copied()
            .collect();
        session.pending.retain(|cid| !gone.contains(cid));
        // In the caller's order: what follows must not depend on a hash.
        for cid in cids.iter().filter(|cid| gone.contains(*cid)) {
            self.leave(cid, id);
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    pub(super) fn close_session(
        &mut self,
        id: SessionId,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let mut cids: Vec<Cid> = session.wants.iter().copied().collect();
        cids.sort_by_key(|cid| self.wants.get(cid).map(|w| w.seq));
        self.cancel(id, &cids, now, counters, out);
        self.sessions.remove(&id);
    }

    pub(super) fn set_policy(
        &mut self,
        id: SessionId,
        policy: AskPolicy,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.policy = policy;
        let open: Vec<Cid> = self.open.values().copied().collect();
        for cid in open {
            self.place(&cid, now, counters, out);
        }
        self.stirred.insert(id);
        self.stir(now, counters, out);
    }

    pub(super) fn release(
        &mut self,
        bytes: usize,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        self.found = self.found.saturating_sub(bytes);
        if self.paused && self.found < self.config.node_bytes / 4 * 3 {
            self.paused = false;
            // Nobody could deliver in the meantime.
            for peer in self.peers.values_mut() {
                peer.progress = now;
            }
            out.push_back(Output::Pause(false));
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    // ---- facts from the network

    pub(super) fn connected(
        &mut self,
        key: PeerKey,
        id: PeerId,
        lan: bool,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        self.peers.insert(key, Peer::new(id, lan, now));
        let open: Vec<Cid> = self.open.values().copied().collect();
        for cid in open {
            self.place(&cid, now, counters, out);
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    pub(super) fn disconnected(
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
        self.stir_all();
        self.stir(now, counters, out);
    }

    /// The peer speaks no Bitswap: as if it were not there, until it disconnects.
    pub(super) fn unsupported(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.unsupported = true;
        }
        self.give_up_on(key, Answer::TimedOut, now, counters, out);
    }

    pub(super) fn malformed(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        self.wrong_bytes(key, now, counters, out);
        self.stir(now, counters, out);
    }

    pub(super) fn set_lan(&mut self, key: PeerKey, lan: bool) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.lan = lan;
        }
    }

    pub(super) fn progress(&mut self, key: PeerKey, at: Time) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.progress = peer.progress.max(at);
        }
    }

    pub(super) fn request_sent(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.remote.written();
            if peer.remote.has_work() {
                self.changed.insert(key);
            }
        }
    }

    pub(super) fn requests_lost(&mut self, key: PeerKey, counters: &mut Counters) {
        if let Some(peer) = self.peers.get_mut(&key) {
            counters.resent_wantlists += u64::from(peer.remote.lost());
            if peer.remote.has_work() {
                self.changed.insert(key);
            }
        }
    }

    pub(super) fn received(
        &mut self,
        key: PeerKey,
        message: Message,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !(message.blocks.is_empty() && message.presences.is_empty())
        {
            peer.progress = now;
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

    fn on_block(
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
        self.set_phase(&mut want, &cid, Phase::Fetching);
        let number = want.ask_of(key).map(|a| a.number);
        self.settle_all(&want);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.delivered(number, block.len(), now);
        }
        for other in want.asks.iter().filter(|a| a.peer != key) {
            self.cancel_at(other.peer, &cid);
        }
        self.recent.insert(&cid);
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
    fn not_wanted(
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
    fn wrong_bytes(&mut self, key: PeerKey, now: Time, counters: &mut Counters, out: &mut Out) {
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

    /// Moves everything that a peer owes.
    fn give_up_on(
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

    fn on_have(
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
        }
        ask.answer = Answer::Has;
        ask.answered_at = Some(now);
        for id in &want.sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                session.had(key);
            }
        }
        if want.phase != Phase::Queued && want.phase != Phase::Fetching {
            self.place(&cid, now, counters, out);
        }
    }

    fn on_dont_have(
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
                self.expected = self.expected.saturating_sub(ask.charged);
            }
            Answer::HavePending => peer.haves = peer.haves.saturating_sub(1),
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

    // ---- time

    pub(super) fn deadline(&self) -> Option<Time> {
        let tick = self
            .peers
            .values()
            .any(|p| p.blocks > 0 || p.haves > 0)
            .then_some(self.ticked.saturating_add(TICK));
        let retry = self.retry.first().map(|(at, _)| *at);
        match (tick, retry) {
            (Some(tick), Some(retry)) => Some(tick.min(retry)),
            (tick, retry) => tick.or(retry),
        }
    }

    pub(super) fn expire(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        self.ticked = now;
        if !self.paused {
            let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
            for key in keys {
                self.time_out_blocks(key, now, counters, out);
                self.time_out_haves(key, now, counters, out);
            }
        }
        self.start_rounds(now, counters, out);
        self.stir_all();
        self.stir(now, counters, out);
    }

    /// A want moves on if its peer made no progress for `stall`, if the peer delivered much that was asked for later,
    /// or if it trickles so slowly that nobody should wait.
    fn time_out_blocks(&mut self, key: PeerKey, now: Time, counters: &mut Counters, out: &mut Out) {
        let mut late = Vec::new();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let silent = now >= peer.progress.saturating_add(self.config.stall);
        let delivered = peer.delivered;
        let wants = &self.wants;
        peer.block_asks.retain(|ask| {
            if !is_open(wants, key, ask) {
                return false;
            }
            let waited = now >= ask.at.saturating_add(self.config.stall);
            let overtaken = delivered > ask.number + OVERTAKEN;
            if waited && (silent || overtaken || now >= ask.latest) {
                late.push(*ask);
                return false;
            }
            true
        });
        if late.is_empty() {
            return;
        }
        peer.stalled(now);
        let id = peer.id;
        counters.timeouts += late.len() as u64;
        let mut moved = 0;
        for ask in late {
            if self.close_ask(key, &ask, Answer::TimedOut, now) {
                moved += 1;
                counters.moved += 1;
                self.place(&ask.cid, now, counters, out);
            }
        }
        out.push_back(Output::Stalled { peer: id, moved });
    }

    /// Presences come at once, so only a peer that is busy delivering gets more time.
    fn time_out_haves(&mut self, key: PeerKey, now: Time, counters: &mut Counters, out: &mut Out) {
        let mut late = Vec::new();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let silent = now >= peer.progress.saturating_add(self.config.stall);
        let wants = &self.wants;
        let stall = self.config.stall;
        peer.have_asks.retain(|ask| {
            if !is_open(wants, key, ask) {
                return false;
            }
            if (now >= ask.at.saturating_add(stall) && silent)
                || now >= ask.at.saturating_add(stall.saturating_mul(3))
            {
                late.push(*ask);
                return false;
            }
            true
        });
        counters.have_timeouts += late.len() as u64;
        for ask in late {
            if self.close_ask(key, &ask, Answer::TimedOut, now) {
                self.place(&ask.cid, now, counters, out);
            }
        }
    }

    /// Asks everybody again for what nobody had.
    fn start_rounds(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        while let Some((at, seq)) = self.retry.first().copied()
            && at <= now
        {
            self.retry.pop_first();
            let Some(cid) = self.open.get(&seq).copied() else {
                continue;
            };
            let Some(want) = self.wants.get_mut(&cid) else {
                continue;
            };
            want.retry_at = None;
            counters.rebroadcasts += 1;
            self.forget_answers(&cid, now);
            self.place(&cid, now, counters, out);
        }
    }

    /// Before a want is looked for again: old answers go, so that everybody is asked again. Except of a peer that stalled
    /// with the want in hand: links are ordered, so the block comes when the link moves, and twice if it were asked for
    /// twice. It is waited for again once the peer moves, and asked again after [`PATIENCE`].
    fn forget_answers(&mut self, cid: &Cid, now: Time) {
        let Some(mut want) = self.wants.remove(cid) else {
            return;
        };
        let estimate = self.estimate_of(&want);
        let patience = self.config.stall.saturating_mul(PATIENCE);
        let mut asks = std::mem::take(&mut want.asks);
        asks.retain_mut(|ask| match ask.answer {
            Answer::HavePending | Answer::BlockPending => true,
            Answer::TimedOut => {
                let since = ask.answered_at.unwrap_or(ask.at);
                let Some(peer) = self.peers.get(&ask.peer) else {
                    return false;
                };
                if !peer.remote.holds_block_want(cid) {
                    return false;
                }
                if peer.progress <= since {
                    return now < since.saturating_add(patience);
                }
                if !self.has_room(peer, estimate) {
                    // Still owed, and bytes do come: counted as such once there is room.
                    return now < since.saturating_add(patience);
                }
                let Some(peer) = self.peers.get_mut(&ask.peer) else {
                    return false;
                };
                self.next += 1;
                *ask = Ask {
                    number: self.next,
                    answer: Answer::BlockPending,
                    answered_at: None,
                    charged: estimate,
                    ..*ask
                };
                let open = OpenAsk {
                    cid: *cid,
                    number: ask.number,
                    at: now,
                    latest: peer.latest(estimate, now, &self.config),
                };
                peer.owe(open, estimate);
                self.expected += estimate;
                true
            }
            _ => false,
        });
        want.asks = asks;
        self.wants.insert(*cid, want);
    }

    // ---- the decision

    /// Takes the next step of a want.
    fn place(&mut self, cid: &Cid, now: Time, counters: &mut Counters, out: &mut Out) -> Placed {
        let Some(mut want) = self.wants.remove(cid) else {
            return Placed::Settled;
        };
        let was_queued = want.phase == Phase::Queued;
        let placed = self.step(cid, &mut want, now, counters, out);
        if placed == Placed::NoRoom && !was_queued {
            self.set_phase(&mut want, cid, Phase::Queued);
            if let Some(session) = want.home().and_then(|id| self.sessions.get_mut(&id)) {
                session.pending.push_front(*cid);
            }
        }
        self.wants.insert(*cid, want);
        placed
    }

    fn step(
        &mut self,
        cid: &Cid,
        want: &mut Want,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) -> Placed {
        if want.waits(Answer::BlockPending) {
            self.set_phase(want, cid, Phase::Fetching);
            return Placed::Settled;
        }
        match self.choose(cid, want, false, now) {
            Choice::Peer(key) => return self.ask_block(cid, want, key, now),
            Choice::Full => return Placed::NoRoom,
            Choice::Nobody => {}
        }
        match self.search(cid, want, now) {
            Some(Placed::NoRoom) => return Placed::NoRoom,
            Some(Placed::Settled) => return Placed::Settled,
            None => {}
        }
        match self.choose(cid, want, true, now) {
            Choice::Peer(key) => self.ask_block(cid, want, key, now),
            Choice::Full => Placed::NoRoom,
            Choice::Nobody => self.unavailable(cid, want, now, counters, out),
        }
    }

    /// The best peer to ask for the block: near before far, certain before probable, soon before late. With `suspects`
    /// also those that failed before.
    fn choose(&self, cid: &Cid, want: &Want, suspects: bool, now: Time) -> Choice {
        let Some(home) = want.home().and_then(|id| self.sessions.get(&id)) else {
            return Choice::Nobody;
        };
        let sure = want
            .asks
            .iter()
            .filter(|a| a.answer == Answer::Has)
            .map(|a| (a.peer, false));
        let probable = home
            .good()
            .filter(|key| want.ask_of(*key).is_none())
            .map(|key| (key, true));
        let mut best: Option<((bool, bool, u64), PeerKey)> = None;
        let mut near_full = false;
        let mut any_full = false;
        for (key, guess) in sure.chain(probable) {
            let Some(peer) = self.peers.get(&key) else {
                continue;
            };
            if !peer.is_usable(now)
                || (peer.is_suspect(now) && !suspects)
                || !self.may_ask(cid, want, &peer.id)
            {
                continue;
            }
            if !self.has_room(peer, home.estimate) {
                near_full |= peer.lan;
                any_full = true;
                continue;
            }
            let rank = (!peer.lan, guess, peer.cost(home.estimate));
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, key));
            }
        }
        match best {
            // A near peer is worth waiting for.
            Some(((true, ..), _)) if near_full => Choice::Full,
            Some((_, key)) => Choice::Peer(key),
            None if any_full => Choice::Full,
            None => Choice::Nobody,
        }
    }

    fn has_room(&self, peer: &Peer, estimate: usize) -> bool {
        let node = self.expected == 0 && self.found < self.config.node_bytes
            || self.expected + self.found + estimate <= self.config.node_bytes;
        node && peer.has_block_room(estimate, &self.config)
    }

    fn ask_block(&mut self, cid: &Cid, want: &mut Want, key: PeerKey, now: Time) -> Placed {
        let estimate = self.estimate_of(want);
        let number = self.number();
        let Some(peer) = self.peers.get_mut(&key) else {
            return Placed::NoRoom;
        };
        let open = OpenAsk {
            cid: *cid,
            number,
            at: now,
            latest: peer.latest(estimate, now, &self.config),
        };
        peer.owe(open, estimate);
        peer.remote.want(*cid, WantKind::Block, want.seq);
        self.expected += estimate;
        self.changed.insert(key);
        want.set_ask(Ask {
            peer: key,
            number,
            at: now,
            answer: Answer::BlockPending,
            answered_at: None,
            charged: estimate,
        });
        // Those who were asked before and did not deliver must not send a second copy.
        let failed: Vec<PeerKey> = want
            .asks
            .iter()
            .filter(|a| matches!(a.answer, Answer::TimedOut | Answer::WrongBytes))
            .map(|a| a.peer)
            .collect();
        for other in failed {
            self.cancel_at(other, cid);
        }
        self.set_phase(want, cid, Phase::Fetching);
        Placed::Settled
    }

    /// Asks everybody who was not asked yet whether they have it. `None` if there is nobody left to ask or wait for.
    fn search(&mut self, cid: &Cid, want: &mut Want, now: Time) -> Option<Placed> {
        let waiting = want.waits(Answer::HavePending);
        let unasked: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(key, peer)| {
                want.ask_of(**key).is_none()
                    && peer.is_usable(now)
                    && self.may_ask(cid, want, &peer.id)
            })
            .map(|(key, _)| *key)
            .collect();
        if unasked.is_empty() {
            if !waiting {
                return None;
            }
            self.set_phase(want, cid, Phase::Searching);
            return Some(Placed::Settled);
        }
        let full = want
            .home()
            .and_then(|id| self.sessions.get(&id))
            .is_some_and(|s| s.searching >= self.config.search);
        if want.phase != Phase::Searching && full {
            return Some(Placed::NoRoom);
        }
        let mut asked = waiting;
        for key in unasked {
            let number = self.number();
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            if !peer.has_entry_room(&self.config) {
                continue;
            }
            asked = true;
            peer.haves += 1;
            peer.have_asks.push_back(OpenAsk {
                cid: *cid,
                number,
                at: now,
                latest: now,
            });
            peer.remote.want(*cid, WantKind::Have, want.seq);
            self.changed.insert(key);
            want.set_ask(Ask {
                peer: key,
                number,
                at: now,
                answer: Answer::HavePending,
                answered_at: None,
                charged: 0,
            });
        }
        if !asked {
            return Some(Placed::NoRoom);
        }
        self.set_phase(want, cid, Phase::Searching);
        Some(Placed::Settled)
    }

    /// Everybody said no or nothing.
    fn unavailable(
        &mut self,
        cid: &Cid,
        want: &mut Want,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) -> Placed {
        // Without anybody to ask, one want of a session says so for all.
        let others = want
            .home()
            .and_then(|id| self.sessions.get(&id))
            .is_some_and(|s| s.unavailable > 0);
        if want.asks.is_empty() && others && want.phase != Phase::Unavailable {
            return Placed::NoRoom;
        }
        if want.retry_at.is_some() && want.phase == Phase::Unavailable {
            return Placed::Settled;
        }
        let pause = self
            .config
            .retry_first
            .saturating_mul(1 << want.rounds.min(16))
            .min(self.config.retry_last);
        want.rounds += 1;
        want.retry_at = Some(now.saturating_add(pause));
        self.set_phase(want, cid, Phase::Unavailable);
        counters.unavailable += 1;
        let asked = self.asked(want);
        for session in &want.sessions {
            out.push_back(Output::Unavailable {
                session: *session,
                cid: *cid,
                asked: asked.clone(),
            });
        }
        Placed::Settled
    }

    /// Fills the room that opened with pending wants of the sessions that were stirred.
    fn stir(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        while let Some(id) = self.stirred.pop_first() {
            let mut at = 0;
            while at < LOOK_AHEAD {
                let Some(cid) = self
                    .sessions
                    .get(&id)
                    .and_then(|s| s.pending.get(at))
                    .copied()
                else {
                    break;
                };
                if self.place(&cid, now, counters, out) == Placed::NoRoom {
                    at += 1;
                } else if let Some(session) = self.sessions.get_mut(&id) {
                    session.pending.remove(at);
                }
            }
        }
    }

    fn stir_all(&mut self) {
        self.stirred.extend(
            self.sessions
                .iter()
                .filter(|(_, s)| !s.pending.is_empty())
                .map(|(id, _)| *id),
        );
    }

    // ---- bookkeeping

    pub(super) fn next_request(&mut self) -> Option<(PeerId, Message)> {
        while let Some(key) = self.changed.pop_first() {
            if let Some(peer) = self.peers.get_mut(&key)
                && let Some(message) = peer.remote.take()
            {
                return Some((peer.id, message));
            }
        }
        None
    }

    pub(super) fn is_busy(&self, key: PeerKey) -> bool {
        self.peers
            .get(&key)
            .is_some_and(|p| p.blocks > 0 || p.haves > 0)
    }

    pub(super) fn wants(&self) -> usize {
        self.wants.len()
    }

    pub(super) fn expected_bytes(&self) -> usize {
        self.expected
    }

    pub(super) fn found_bytes(&self) -> usize {
        self.found
    }

    pub(super) fn why(&self, cid: &Cid) -> Option<Why> {
        let want = self.wants.get(cid)?;
        Some(Why {
            cid: *cid,
            sessions: want.sessions.clone(),
            since: want.since,
            asked: self.asked(want),
            gone: want.gone.clone(),
            waiting_for: match want.phase {
                _ if self.paused => WaitingFor::Release,
                Phase::Queued => WaitingFor::Room,
                Phase::Searching => WaitingFor::Answers,
                Phase::Fetching => WaitingFor::Block,
                Phase::Unavailable => WaitingFor::Holder,
            },
            rounds: want.rounds,
            retry_at: want.retry_at,
        })
    }

    fn asked(&self, want: &Want) -> Vec<Asked> {
        want.asks
            .iter()
            .filter_map(|ask| {
                Some(Asked {
                    peer: self.peers.get(&ask.peer)?.id,
                    at: ask.at,
                    answer: ask.answer,
                    answered_at: ask.answered_at,
                })
            })
            .collect()
    }

    fn may_ask(&self, cid: &Cid, want: &Want, peer: &PeerId) -> bool {
        want.sessions
            .iter()
            .filter_map(|id| self.sessions.get(id))
            .any(|s| s.policy.may_ask(cid, peer))
    }

    /// A session does not want it any more; the last one ends it.
    fn leave(&mut self, cid: &Cid, id: SessionId) {
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
        if !want.asks.is_empty() {
            self.recent.insert(cid);
        }
    }

    /// Nothing is owed for this want any more.
    fn settle_all(&mut self, want: &Want) {
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
    fn close_ask(&mut self, key: PeerKey, open: &OpenAsk, answer: Answer, now: Time) -> bool {
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

    fn cancel_at(&mut self, key: PeerKey, cid: &Cid) {
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.remote.knows(cid)
        {
            peer.remote.cancel(cid);
            self.changed.insert(key);
        }
    }

    /// Moves a want between phases and keeps the indexes and figures that follow from it.
    fn set_phase(&mut self, want: &mut Want, cid: &Cid, phase: Phase) {
        let home = want.home();
        if let Some(session) = home.and_then(|id| self.sessions.get_mut(&id)) {
            match want.phase {
                Phase::Searching => session.searching -= 1,
                Phase::Unavailable => session.unavailable -= 1,
                Phase::Queued | Phase::Fetching => {}
            }
            match phase {
                Phase::Searching => session.searching += 1,
                Phase::Unavailable => session.unavailable += 1,
                Phase::Queued | Phase::Fetching => {}
            }
        }
        if want.phase == Phase::Unavailable
            && let Some(at) = want.listed_at.take()
        {
            self.retry.remove(&(at, want.seq));
        }
        match phase {
            Phase::Searching => {
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

    /// Size expected of a block of this want.
    fn estimate_of(&self, want: &Want) -> usize {
        want.home()
            .and_then(|id| self.sessions.get(&id))
            .map_or(0, |s| s.estimate)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Want {
    fn new(seq: u64, session: SessionId, now: Time) -> Self {
        Self {
            seq,
            sessions: vec![session],
            since: now,
            phase: Phase::Queued,
            asks: Vec::new(),
            gone: Vec::new(),
            rounds: 0,
            retry_at: None,
            listed_at: None,
        }
    }

    fn home(&self) -> Option<SessionId> {
        self.sessions.first().copied()
    }

    fn ask_of(&self, key: PeerKey) -> Option<&Ask> {
        self.asks.iter().find(|a| a.peer == key)
    }

    fn waits(&self, answer: Answer) -> bool {
        self.asks.iter().any(|a| a.answer == answer)
    }

    fn set_ask(&mut self, ask: Ask) {
        match self.asks.iter_mut().find(|a| a.peer == ask.peer) {
            Some(old) => *old = ask,
            None => self.asks.push(ask),
        }
    }
}

/// Whether an ask is still the one that its want waits for.
fn is_open(wants: &HashMap<Cid, Want>, key: PeerKey, open: &OpenAsk) -> bool {
    wants
        .get(&open.cid)
        .and_then(|w| w.ask_of(key))
        .is_some_and(|a| {
            a.number == open.number
                && matches!(a.answer, Answer::BlockPending | Answer::HavePending)
        })
}

fn check_fetchable(cid: &Cid) -> Result<(), WantError> {
    if cid.hash().code() == 0 {
        return Err(WantError::Identity);
    }
    Ok(check_cid(cid)?)
}

/// CIDs that were wanted a moment ago, to tell a late block from a wrong one. Keeps hashes only.
#[derive(Default)]
struct Recent {
    set: HashSet<u64>,
    order: VecDeque<u64>,
    hasher: RandomState,
}

/// More than all peers together can have on their way.
const RECENT: usize = 16_384;

impl Recent {
    fn insert(&mut self, cid: &Cid) {
        let hash = self.hasher.hash_one(cid);
        if self.set.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    fn contains(&self, cid: &Cid) -> bool {
        self.set.contains(&self.hasher.hash_one(cid))
    }
}
