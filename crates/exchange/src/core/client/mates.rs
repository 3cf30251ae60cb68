//! Wants that the devices of a site share (specs/site.md): whose turn one is, what follows when that changes, and when a mate is not waited
//! for any longer.
//!
//! A shared want goes to mates first. Whoever has the turn asks all of them, and outside when none has it; the others ask him alone. So no
//! peer outside ever hears of a want whose turn it is not.

use std::time::Duration;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::place::Placed;
use super::want::{Phase, Want};
use super::{Answer, Client, Out};
use crate::config::Line;
use crate::core::site::{Change, Site, Turn};
use crate::core::{PeerKey, SessionId, SiteFact, Time};
use crate::metrics::Counters;
use crate::wire::SiteMessage;

/// Mates have to answer within this whether they have a block, before others are asked (SI-7).
const ANSWERS: Duration = Duration::from_millis(500);
/// A mate that says that bytes come to it, and from which no block comes, has so many stall times while as many blocks as this come to us from
/// outside (SI-10).
const PATIENCE: u32 = 10;
const BLOCKS: u64 = 3;
/// And so many in any case: a block of 1 MiB over 100 kbit/s takes less.
const LONG_PATIENCE: u32 = 60;
/// While another of the site waits for bytes from outside too, whether they come or not, it is the line that is full or dead rather than a
/// device, and who gets nothing has so many stall times: to take over what it fetches would send it over that line twice (SI-10).
const LINE_PATIENCE: u32 = 4;
/// How often a want is left again to mates that had their turn, or held against one that took it as well.
const RETURNS: u8 = 4;
/// Wants of a session that wait for mates at a time. With the 256 that are looked for they stay within the 512 that a peer keeps for us after it
/// said that it has them not (EX-6).
const WAITING: usize = 256;

/// What changes within this time is looked at together.
const GATHER: Duration = Duration::from_millis(10);

/// What becomes of a want for which nobody is left to ask.
pub(super) enum Next {
    /// More peers may be asked now.
    Ask,
    /// It is a mate's turn, or mates have to hear of it first.
    Wait,
    /// Nobody has it.
    Nobody,
}

impl Client {
    // Facts.

    pub(in crate::core) fn on_site(
        &mut self,
        key: PeerKey,
        fact: SiteFact,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(site) = &mut self.site else {
            return;
        };
        let mut changes = Vec::new();
        match fact {
            SiteFact::Speaks { near } => site.speaks(key, near),
            SiteFact::Silent => {
                site.silent(key);
                changes.push(Change::Turns);
            }
            SiteFact::Said(message) => site.said(key, message, now, counters, &mut changes),
        }
        for change in changes {
            match change {
                Change::Turns => self.turns_changed(now, counters, out),
                Change::Taken(cid, by) => self.on_taken(&cid, by, now, counters, out),
                Change::Released(cid, by) => self.on_released(&cid, by, now, counters, out),
            }
        }
    }

    /// SI-8: a mate asks outside for a block. If we do as well, it is left to the one whose turn it is, and to the other if nothing comes to us.
    fn on_taken(
        &mut self,
        cid: &Cid,
        by: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(mut want) = self.wants.remove(cid) else {
            return;
        };
        if want.shared.outside {
            self.settle_clash(cid, &mut want, by, now, counters);
        } else if want.shared.returns < RETURNS {
            want.shared.returned(by);
        }
        self.wants.insert(*cid, want);
        self.place_open(cid, now, counters, out);
    }

    /// Both ask outside: one of the two takes it back.
    fn settle_clash(
        &mut self,
        cid: &Cid,
        want: &mut Want,
        by: PeerKey,
        now: Time,
        counters: &mut Counters,
    ) {
        let since = self.outside_progress().max(want.shared.since);
        let still = now >= since.saturating_add(self.config.stall);
        let Some(site) = &mut self.site else {
            return;
        };
        let is_ours = !still && !site.outranks_us(by, cid);
        let had_turn = want.shared.lapsed.contains(&Some(by));
        if is_ours {
            // It does not know that bytes come to us. All mates are told, so not as often as anybody likes.
            if want.shared.returns < RETURNS {
                want.shared.returns += 1;
                site.take(*cid);
            }
        } else if !had_turn || want.shared.returns < RETURNS {
            counters.site_yielded += 1;
            want.shared.returned(by);
            want.shared.had_turn(None);
            self.withdraw(cid, want, true);
        }
    }

    /// SI-9: a mate asked everybody that it could, in vain.
    fn on_released(
        &mut self,
        cid: &Cid,
        by: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        if let Some(want) = self.wants.get_mut(cid) {
            want.shared.had_turn(Some(by));
            self.place_open(cid, now, counters, out);
        }
    }

    /// Whoever is a mate, or fetches what, changed: each want that waits for somebody is looked at again. Not more often than it takes a few
    /// messages to come, however many do.
    pub(super) fn turns_changed(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        if self.site.is_none() {
            return;
        }
        if now < self.turns_at {
            self.turns_due = true;
            return;
        }
        self.turns_due = false;
        self.turns_at = now.saturating_add(GATHER);
        let open: Vec<Cid> = self.open.values().copied().collect();
        for cid in open {
            self.place(&cid, now, counters, out);
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    fn place_open(&mut self, cid: &Cid, now: Time, counters: &mut Counters, out: &mut Out) {
        let open = self
            .wants
            .get(cid)
            .is_some_and(|w| w.phase != Phase::Queued);
        if open {
            self.place(cid, now, counters, out);
        }
    }

    // Roots.

    /// The first want of a session tells mates of its root.
    pub(super) fn begin_root(&mut self, id: SessionId, now: Time) {
        let (Some(site), Some(session)) = (&mut self.site, self.sessions.get_mut(&id)) else {
            return;
        };
        if let Some(root) = session.root
            && !std::mem::replace(&mut session.begun, true)
            && !site.begin(root, now)
        {
            session.root = None;
        }
    }

    pub(super) fn end_root(&mut self, id: SessionId) {
        if let (Some(site), Some(session)) = (&mut self.site, self.sessions.get(&id))
            && let (Some(root), true) = (&session.root, session.begun)
        {
            site.end(root);
        }
    }

    /// The roots below which a want is; none if a session wants it for itself.
    fn roots_of(&self, want: &Want) -> Vec<Cid> {
        let roots = want.sessions.iter().map(|id| self.sessions.get(id)?.root);
        roots.collect::<Option<Vec<Cid>>>().unwrap_or_default()
    }

    // Turns.

    /// Finds out whose turn a want is, before its next step.
    pub(super) fn take_turn(&mut self, cid: &Cid, want: &mut Want, now: Time) {
        let turn = match &self.site {
            None => Turn::Free,
            Some(site) => match self.roots_of(want) {
                none if none.is_empty() => Turn::Free,
                roots => site.turn(cid, &roots, &want.shared.lapsed, now),
            },
        };
        if turn != want.shared.turn {
            want.shared.turn = turn;
            want.shared.since = now;
            want.shared.found = self.site.as_ref().map_or(0, Site::outside_found);
            want.shared.nudged = now;
        }
        // It was ours, and nobody outside had it.
        if want.shared.outside && matches!(turn, Turn::Of(_)) {
            self.withdraw(cid, want, false);
        }
    }

    /// Whether a peer that has the block, or that may have it (`guess`), may be asked for it (SI-7).
    pub(super) fn may_ask_now(&self, want: &Want, key: PeerKey, guess: bool) -> bool {
        let (Some(site), false) = (&self.site, want.shared.turn == Turn::Free) else {
            return true;
        };
        if !site.is_mate(key) {
            return want.shared.outside && want.shared.turn == Turn::Mine;
        }
        // Who fetches the same has it not, or has said so.
        !guess || want.shared.turn == Turn::Mine && !site.fetches(key, &self.roots_of(want))
    }

    /// Whether a peer may be asked whether it has the block (SI-7).
    pub(super) fn may_search(&self, want: &Want, key: PeerKey) -> bool {
        let (Some(site), turn) = (&self.site, want.shared.turn) else {
            return true;
        };
        match turn {
            Turn::Free => true,
            Turn::Of(mate) => key == mate,
            Turn::Mine if !site.is_mate(key) => want.shared.outside,
            Turn::Mine | Turn::Nobody => site.is_mate(key),
        }
    }

    /// Whether somebody has still to answer whether he has it. Mates that do not answer do not keep us from asking outside.
    pub(super) fn waits_for_answers(&self, want: &Want, now: Time) -> bool {
        let (Some(site), Turn::Mine | Turn::Nobody, false) =
            (&self.site, want.shared.turn, want.shared.outside)
        else {
            return want.waits(Answer::HavePending);
        };
        want.asks.iter().any(|ask| {
            ask.answer == Answer::HavePending
                && !site.is_tardy(ask.peer, now)
                && now < ask.at.saturating_add(ANSWERS)
        })
    }

    /// What to do with a want for which nobody is left who may be asked.
    pub(super) fn next_turn(
        &mut self,
        cid: &Cid,
        want: &mut Want,
        now: Time,
        counters: &mut Counters,
    ) -> Next {
        let roots = self.roots_of(want);
        let Some(site) = &mut self.site else {
            return Next::Nobody;
        };
        match want.shared.turn {
            Turn::Free => Next::Nobody,
            Turn::Of(_) => Next::Wait,
            Turn::Mine if want.shared.outside => self.give_up_turn(cid, want, now, counters),
            _ if site.is_on_hold(&roots, now) => Next::Wait,
            Turn::Nobody => Next::Nobody,
            Turn::Mine if !site.reaches_outside() => Next::Nobody,
            Turn::Mine => {
                counters.site_taken += 1;
                want.shared.outside = true;
                site.take(*cid);
                Next::Ask
            }
        }
    }

    /// SI-9: nobody outside has it for us, or the one who has it does not deliver. It is the next one's turn, if there is one.
    fn give_up_turn(
        &mut self,
        cid: &Cid,
        want: &mut Want,
        now: Time,
        counters: &mut Counters,
    ) -> Next {
        counters.site_released += 1;
        want.shared.had_turn(None);
        self.take_turn(cid, want, now);
        if matches!(want.shared.turn, Turn::Of(_)) {
            return Next::Ask;
        }
        // There is none: it stays where it is.
        want.shared.lapsed.retain(Option::is_some);
        want.shared.turn = Turn::Mine;
        if let Some(site) = &mut self.site {
            site.release(cid);
        }
        Next::Nobody
    }

    /// Takes a want back from peers outside, and tells mates afterwards (SI-9). Who said that he has it not keeps the want, so that he pushes the
    /// block should he get it, unless `all` is meant.
    fn withdraw(&mut self, cid: &Cid, want: &mut Want, all: bool) {
        let Some(site) = &self.site else {
            return;
        };
        let outside: Vec<PeerKey> = want
            .asks
            .iter()
            .filter(|ask| !site.is_mate(ask.peer) && (all || ask.answer != Answer::DontHave))
            .map(|ask| ask.peer)
            .collect();
        for key in outside {
            self.drop_ask(key, cid, want);
        }
        want.shared.outside = false;
        self.recent.insert(cid);
        if let Some(site) = &mut self.site {
            site.release(cid);
        }
    }

    /// As if the peer had never been asked.
    fn drop_ask(&mut self, key: PeerKey, cid: &Cid, want: &mut Want) {
        let Some(at) = want.asks.iter().position(|ask| ask.peer == key) else {
            return;
        };
        let ask = want.asks.remove(at);
        if let Some(peer) = self.peers.get_mut(&key) {
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
        self.cancel_at(key, cid);
    }

    /// It is with a mate, which says when it has it.
    pub(super) fn wait_for_mate(
        &mut self,
        cid: &Cid,
        want: &mut Want,
        counters: &mut Counters,
    ) -> Placed {
        let full = want
            .home()
            .and_then(|id| self.sessions.get(&id))
            .is_some_and(|s| s.waiting >= WAITING);
        if want.phase != Phase::Waiting {
            if full {
                return Placed::NoRoom;
            }
            counters.site_waits += 1;
        }
        self.set_phase(want, cid, Phase::Waiting);
        Placed::Settled
    }

    // Time.

    /// When to look at turns that changed.
    pub(super) fn turns_deadline(&self) -> Option<Time> {
        self.turns_due.then_some(self.turns_at)
    }

    pub(super) fn waits_for_mates(&self, now: Time) -> bool {
        self.site.as_ref().is_some_and(|site| {
            site.is_unsettled(now)
                || site.has_taken()
                || self.sessions.values().any(|session| session.waiting > 0)
        })
    }

    /// Tells mates how it goes, and goes on without those that let us wait.
    pub(super) fn mind_mates(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        let progress = self.outside_progress();
        // What was found and is not durable yet is as good as on its way, and so is what the line's budget lets us ask for next.
        let busy = self.found > 0 || self.lacks_budget(Line::Far, now);
        let Some(site) = &mut self.site else {
            return;
        };
        site.tell_progress(if busy { now } else { progress });
        if site.expire(now) || self.turns_due {
            self.turns_changed(now, counters, out);
        }
        let open: Vec<Cid> = self.open.values().copied().collect();
        for cid in open {
            self.mind_mate(&cid, now, counters, out);
        }
    }

    fn mind_mate(&mut self, cid: &Cid, now: Time, counters: &mut Counters, out: &mut Out) {
        let (Some(want), Some(site)) = (self.wants.get_mut(cid), &mut self.site) else {
            return;
        };
        let waits = matches!(want.phase, Phase::Waiting | Phase::Searching);
        match want.shared.turn {
            // Mates had time enough to answer, or to hear of the root.
            Turn::Mine | Turn::Nobody if waits && !want.shared.outside => {
                self.place(cid, now, counters, out);
            }
            Turn::Of(mate) if want.phase == Phase::Waiting => {
                let stall = self.config.stall;
                let of_line = stall.saturating_mul(LINE_PATIENCE);
                let line_in_use =
                    site.has_taken() || site.others_at_the_line(Some(mate), now, of_line) > 0;
                let patience = if line_in_use { of_line } else { stall };
                let since = want.shared.since;
                let heard = since.max(site.progress(mate));
                let (delivered, found) = site.delivered(mate);
                let waited = now.saturating_sub(since.max(delivered));
                let blocks = site.outside_found() - want.shared.found.max(found);
                let lies = waited >= stall.saturating_mul(LONG_PATIENCE)
                    || blocks >= BLOCKS && waited >= stall.saturating_mul(PATIENCE);
                if lies {
                    site.distrust(mate, now);
                }
                if lies || now >= heard.saturating_add(patience) {
                    counters.site_lapses += 1;
                    want.shared.had_turn(Some(mate));
                    self.place(cid, now, counters, out);
                } else if now >= want.shared.nudged.saturating_add(stall) {
                    want.shared.nudged = now;
                    self.nudge(mate, cid, now, counters, out);
                }
            }
            _ => {}
        }
    }

    /// Asks a mate again: the want or the answer may have been lost, or given way to others in its list.
    fn nudge(
        &mut self,
        mate: PeerKey,
        cid: &Cid,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(peer) = self.peers.get_mut(&mate) else {
            return;
        };
        if peer.remote.knows(cid) {
            peer.remote.probe(*cid);
            self.changed.insert(mate);
            return;
        }
        if let Some(want) = self.wants.get_mut(cid) {
            want.asks.retain(|ask| ask.peer != mate);
        }
        self.place(cid, now, counters, out);
    }

    /// How long a peer that owes us blocks may send nothing, and how many of the site share the line that it is asked over.
    pub(super) fn line_to(&self, key: PeerKey, now: Time) -> (Duration, u32) {
        let stall = self.config.stall;
        let of_line = stall.saturating_mul(LINE_PATIENCE);
        let asks_for_others = |site: &&Site| site.has_taken() && !site.is_mate(key);
        let others = self
            .site
            .as_ref()
            .filter(asks_for_others)
            .map_or(0, |site| site.others_at_the_line(None, now, of_line));
        (if others == 0 { stall } else { of_line }, others + 1)
    }

    /// When bytes last came from outside.
    fn outside_progress(&self) -> Time {
        let Some(site) = &self.site else {
            return Time::ZERO;
        };
        self.peers
            .iter()
            .filter(|(key, peer)| peer.blocks > 0 && !site.is_mate(**key))
            .map(|(_, peer)| peer.progress)
            .max()
            .unwrap_or_default()
    }

    // For the owner.

    pub(in crate::core) fn next_site_message(&mut self) -> Option<(PeerId, SiteMessage)> {
        self.site.as_mut()?.next_message()
    }

    pub(in crate::core) fn mates(&self) -> Vec<PeerId> {
        self.site
            .as_ref()
            .map_or_else(Vec::new, |site| site.mates().collect())
    }
}
