//! One wanted block: its phase, who was asked for it, what they said.

use std::collections::HashMap;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::peer::OpenAsk;
use super::why::Answer;
use crate::core::site::{Turn, Who};
use crate::core::{PeerKey, SessionId, Time};

pub(super) struct Want {
    pub(super) seq: u64,
    /// The first one has it in its queue.
    pub(super) sessions: Vec<SessionId>,
    pub(super) since: Time,
    pub(super) phase: Phase,
    pub(super) asks: Vec<Ask>,
    pub(super) gone: Vec<PeerId>,
    /// Somebody who was asked for it did not deliver.
    pub(super) let_down: bool,
    /// Peers that were probed in this round.
    pub(super) probed: Vec<PeerKey>,
    pub(super) rounds: u32,
    pub(super) retry_at: Option<Time>,
    /// Its key in `Client::retry`.
    pub(super) listed_at: Option<Time>,
    /// What its site makes of it.
    pub(super) shared: Shared,
}

/// A want that devices of a site share (specs/site.md).
pub(super) struct Shared {
    /// Whose turn it is, and since when.
    pub(super) turn: Turn,
    pub(super) since: Time,
    /// Blocks that had come to us from outside by then.
    pub(super) found: u64,
    /// Peers outside of the site may be asked, and mates were told so.
    pub(super) outside: bool,
    /// Who had his turn and did not fetch it, in this round.
    pub(super) lapsed: Vec<Who>,
    /// How often it was left again to one that had its turn, or held against one.
    pub(super) returns: u8,
    /// When whoever has the turn was last asked again.
    pub(super) nudged: Time,
}

impl Shared {
    /// Somebody had his turn.
    pub(super) fn had_turn(&mut self, who: Who) {
        if !self.lapsed.contains(&who) {
            self.lapsed.push(who);
        }
    }

    /// A mate may have it again.
    pub(super) fn returned(&mut self, mate: PeerKey) {
        if let Some(at) = self.lapsed.iter().position(|who| *who == Some(mate)) {
            self.lapsed.swap_remove(at);
            self.returns = self.returns.saturating_add(1);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Queued,
    Searching,
    Fetching,
    Unavailable,
    /// It is a mate's turn to fetch it.
    Waiting,
}

/// What one peer was asked and said about one want.
pub(super) struct Ask {
    pub(super) peer: PeerKey,
    pub(super) number: u64,
    pub(super) at: Time,
    pub(super) answer: Answer,
    pub(super) answered_at: Option<Time>,
    /// Bytes counted as expected while the block is owed.
    pub(super) charged: usize,
}

impl Want {
    pub(super) fn new(seq: u64, session: SessionId, now: Time) -> Self {
        Self {
            seq,
            sessions: vec![session],
            since: now,
            phase: Phase::Queued,
            asks: Vec::new(),
            gone: Vec::new(),
            let_down: false,
            probed: Vec::new(),
            rounds: 0,
            retry_at: None,
            listed_at: None,
            shared: Shared {
                turn: Turn::Free,
                since: now,
                found: 0,
                outside: false,
                lapsed: Vec::new(),
                returns: 0,
                nudged: now,
            },
        }
    }

    pub(super) fn home(&self) -> Option<SessionId> {
        self.sessions.first().copied()
    }

    pub(super) fn ask_of(&self, key: PeerKey) -> Option<&Ask> {
        self.asks.iter().find(|a| a.peer == key)
    }

    pub(super) fn waits(&self, answer: Answer) -> bool {
        self.asks.iter().any(|a| a.answer == answer)
    }

    /// Those who were asked for the block and owe it.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Ask> {
        self.asks
            .iter()
            .filter(|a| a.answer == Answer::BlockPending)
    }

    /// Peers that said they have it.
    pub(super) fn holders(&self) -> usize {
        self.asks.iter().filter(|a| a.answer == Answer::Has).count()
    }

    pub(super) fn set_ask(&mut self, ask: Ask) {
        match self.asks.iter_mut().find(|a| a.peer == ask.peer) {
            Some(old) => *old = ask,
            None => self.asks.push(ask),
        }
    }
}

/// Whether an ask is still the one that its want waits for.
pub(super) fn is_open(wants: &HashMap<Cid, Want>, key: PeerKey, open: &OpenAsk) -> bool {
    wants
        .get(&open.cid)
        .and_then(|w| w.ask_of(key))
        .is_some_and(|a| {
            a.number == open.number
                && matches!(a.answer, Answer::BlockPending | Answer::HavePending)
        })
}
