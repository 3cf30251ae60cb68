//! The decision: the next step of a want, and which wants come next when room opens.

use std::time::Duration;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::downs::LOOK;
use super::mates::Next;
use super::peer::{OpenAsk, Peer};
use super::want::{Ask, Phase, Want};
use super::{Answer, Client, Out};
use crate::config::Line;
use crate::core::{Output, PeerKey, SessionId, Time};
use crate::metrics::Counters;
use crate::wire::WantKind;

/// What `place` did with a want.
#[derive(PartialEq, Eq)]
pub(super) enum Placed {
    /// Something is under way.
    Settled,
    /// The windows are full.
    NoRoom,
}

/// Who comes into question.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    /// Who delivered.
    Proven,
    /// Who did not fail of late.
    Unsuspected,
    /// Those as well.
    All,
}

/// What may be expected at most, besides what a peer's window allows.
pub(super) struct Room {
    /// Nothing is expected, and what was found leaves room.
    empty: bool,
    /// Bytes left of the node's budget.
    node: usize,
    /// Bytes left of the half of it that unproven peers share.
    unproven: usize,
    /// Whether the budgets of the lines let more be asked for.
    near: bool,
    far: bool,
}

/// The least is the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Who was asked before did not deliver, and this one is unproven as well: one liar after the other would keep the want (EX-22).
    again: bool,
    far: bool,
    guess: bool,
    cost: Duration,
}

/// Whom to ask for a block.
pub(super) enum Choice {
    Peer(PeerKey),
    Full,
    Nobody,
}

/// Pending wants that are ranked against each other.
const RANKED: usize = 64;
/// Pending wants that find no room before the others are left alone: others may have other holders.
const REFUSED: usize = 16;

impl Client {
    /// Fills the room that opened with pending wants of the sessions that were stirred.
    pub(super) fn stir(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        while let Some(id) = self.stirred.pop_first() {
            while self.fill(id, now, counters, out) {}
        }
    }

    /// Places what comes next in a session. False once nothing more finds room.
    fn fill(&mut self, id: SessionId, now: Time, counters: &mut Counters, out: &mut Out) -> bool {
        let (mut placed, mut refused) = (false, 0);
        for cid in self.rarest(id) {
            if self.place(&cid, now, counters, out) == Placed::NoRoom {
                refused += 1;
                if refused == REFUSED {
                    return false;
                }
            } else if let Some(session) = self.sessions.get_mut(&id) {
                session.no_longer_pending(&cid);
                placed = true;
            }
        }
        placed
    }

    /// The first pending wants of a session, those with the fewest holders first: what one peer alone has is gone when
    /// that peer goes, and it can take none of the load off the others.
    fn rarest(&self, id: SessionId) -> Vec<Cid> {
        let Some(session) = self.sessions.get(&id) else {
            return Vec::new();
        };
        let mut first: Vec<Cid> = session.pending.iter().take(RANKED).copied().collect();
        if self.peers.len() > 1 && first.len() > 1 {
            let probable = session.good().count();
            // Stable: otherwise in the order in which they were wanted.
            first.sort_by_cached_key(|cid| match self.wants.get(cid).map_or(0, Want::holders) {
                0 => probable,
                known => known,
            });
        }
        first
    }

    pub(super) fn stir_all(&mut self) {
        self.stirred.extend(
            self.sessions
                .iter()
                .filter(|(_, s)| !s.pending.is_empty())
                .map(|(id, _)| *id),
        );
    }

    /// Takes the next step of a want.
    pub(super) fn place(
        &mut self,
        cid: &Cid,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) -> Placed {
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

    pub(super) fn step(
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
        self.take_turn(cid, want, now);
        match self.choose(cid, want, Among::Unsuspected, now) {
            Choice::Peer(key) => return self.ask_block(cid, want, key, now),
            Choice::Full => return Placed::NoRoom,
            Choice::Nobody => {}
        }
        match self.search(cid, want, now) {
            Some(Placed::NoRoom) => return Placed::NoRoom,
            Some(Placed::Settled) => return Placed::Settled,
            None => {}
        }
        match self.choose(cid, want, Among::All, now) {
            Choice::Peer(key) => return self.ask_block(cid, want, key, now),
            Choice::Full => return Placed::NoRoom,
            Choice::Nobody => {}
        }
        match self.next_turn(cid, want, now, counters) {
            Next::Ask => self.step(cid, want, now, counters, out),
            Next::Wait => self.wait_for_mate(cid, want, counters),
            Next::Nobody => self.unavailable(cid, want, now, counters, out),
        }
    }

    /// The best peer to ask for the block: near before far, certain before probable, soon before late.
    pub(super) fn choose(&self, cid: &Cid, want: &Want, among: Among, now: Time) -> Choice {
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
        let room = self.room_left(now);
        let mut best: Option<(Rank, PeerKey)> = None;
        let (mut near_full, mut any_full, mut proven_full) = (false, false, false);
        for (key, guess) in sure.chain(probable) {
            let Some(peer) = self.peers.get(&key) else {
                continue;
            };
            let of_those = match among {
                Among::Proven => peer.proven,
                Among::Unsuspected => !peer.is_suspect(now),
                Among::All => true,
            };
            let allowed =
                || self.may_ask(cid, want, &peer.id) && self.may_ask_now(want, key, guess);
            if !of_those || !peer.is_usable(now) || !allowed() {
                continue;
            }
            let cost = peer.cost(home.estimate);
            if !self.has_room(&room, peer, home.estimate) {
                // Who looks like a liar is not waited for while there are others.
                if among == Among::All || !peer.is_mute(now) {
                    near_full |= peer.lan;
                    any_full = true;
                }
                proven_full |= peer.proven && cost <= self.config.stall;
                continue;
            }
            let rank = self.rank(want, peer, guess, cost);
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, key));
            }
        }
        match best {
            // A near peer is worth waiting for.
            Some((rank, _)) if rank.far && near_full => Choice::Full,
            Some((rank, _)) if rank.again && proven_full => Choice::Full,
            Some((_, key)) => Choice::Peer(key),
            None if any_full => Choice::Full,
            None => Choice::Nobody,
        }
    }

    fn rank(&self, want: &Want, peer: &Peer, guess: bool, cost: Duration) -> Rank {
        // With an unproven peer it takes so long until it is known that it does not deliver.
        let doubt = if peer.proven {
            Duration::ZERO
        } else {
            self.config.stall
        };
        Rank {
            again: want.let_down && !peer.proven,
            far: !peer.lan,
            guess,
            cost: cost.saturating_add(doubt),
        }
    }

    /// What is left of the budgets.
    pub(super) fn room_left(&self, now: Time) -> Room {
        let most = self.config.node_bytes;
        let unproven = self.peers.values().filter(|p| !p.proven).map(|p| p.bytes);
        Room {
            empty: self.expected == 0 && self.found < most,
            node: most.saturating_sub(self.expected + self.found),
            unproven: (most / 2).saturating_sub(unproven.sum()),
            near: self
                .downs
                .may_ask(Line::Near, self.owed_over(Line::Near), now),
            far: self
                .downs
                .may_ask(Line::Far, self.owed_over(Line::Far), now),
        }
    }

    pub(super) fn has_room(&self, room: &Room, peer: &Peer, estimate: usize) -> bool {
        let node =
            room.empty || estimate <= room.node && (peer.proven || estimate <= room.unproven);
        let line = if peer.lan { room.near } else { room.far };
        node && line && peer.has_block_room(estimate, &self.config)
    }

    /// Bytes that may be expected over a line.
    fn owed_over(&self, line: Line) -> usize {
        if !self.downs.is_limited() {
            return 0;
        }
        let over = self.peers.values().filter(|peer| peer.line() == line);
        self.downs.weight(over.map(|peer| peer.blocks).sum())
    }

    /// Whether a budget is all that keeps wants from being asked for of those who are connected over that line.
    pub(super) fn lacks_budget(&self, line: Line, now: Time) -> bool {
        self.downs.is_limited()
            && self.peers.values().any(|peer| peer.line() == line)
            && self.sessions.values().any(|s| !s.pending.is_empty())
            && !self.downs.may_ask(line, self.owed_over(line), now)
    }

    /// When a budget lets more be asked for, if wants wait for it.
    pub(super) fn budget_deadline(&self) -> Option<Time> {
        let at = |line| {
            let lacks = self.lacks_budget(line, self.ticked);
            lacks.then(|| self.downs.when(line, self.owed_over(line)))?
        };
        let first = [at(Line::Near), at(Line::Far)]
            .into_iter()
            .flatten()
            .min()?;
        Some(first.max(self.ticked.saturating_add(LOOK)))
    }

    pub(super) fn ask_block(
        &mut self,
        cid: &Cid,
        want: &mut Want,
        key: PeerKey,
        now: Time,
    ) -> Placed {
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
    pub(super) fn search(&mut self, cid: &Cid, want: &mut Want, now: Time) -> Option<Placed> {
        let waiting = self.waits_for_answers(want, now);
        let unasked: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(key, peer)| {
                want.ask_of(**key).is_none()
                    && peer.is_usable(now)
                    && self.may_ask(cid, want, &peer.id)
                    && self.may_search(want, **key)
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
    pub(super) fn unavailable(
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

    pub(super) fn may_ask(&self, cid: &Cid, want: &Want, peer: &PeerId) -> bool {
        want.sessions
            .iter()
            .filter_map(|id| self.sessions.get(id))
            .any(|s| s.policy.may_ask(cid, peer))
    }

    /// Size expected of a block of this want.
    pub(super) fn estimate_of(&self, want: &Want) -> usize {
        want.home()
            .and_then(|id| self.sessions.get(&id))
            .map_or(0, |s| s.estimate)
    }
}
