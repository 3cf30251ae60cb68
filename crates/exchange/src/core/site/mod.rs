//! The devices of a site, and who of them fetches which block from outside (specs/site.md).
//!
//! It knows which peers are *mates*, what they fetch and what they have taken on, and answers whose turn a block is. What follows for wants is
//! the client's business (`client/mates.rs`). It holds no blocks and believes no mate for longer than the client's patience.

mod claims;
mod neighbour;
mod rank;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::{PeerKey, Time};
use crate::config::SiteConfig;
use crate::metrics::Counters;
use crate::wire::{Hello, SiteMessage};
use claims::Claims;
use neighbour::{Neighbour, Side};
use rank::Seed;

/// A new peer is given this long to say that it is a mate, and a mate to take note of a root (SI-5). Ten times the round trip of a slow
/// radio link.
const PATIENCE: Duration = Duration::from_millis(500);
/// Peers that come one after the other must not hold a fetch up for ever.
const BETWEEN_HOLDS: Duration = Duration::from_secs(5);
/// Roots of ours that mates are told of; the others are fetched as if there was no site.
const ROOTS: usize = 64;

/// Whose turn it is to fetch a block from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) enum Turn {
    /// Nobody shares it: everybody may be asked.
    Free,
    /// Ours.
    Mine,
    /// That mate's.
    Of(PeerKey),
    /// Nobody's who might: all that were, gave up.
    Nobody,
}

/// Who may be left out of a choice: a mate, or we ourselves.
pub(in crate::core) type Who = Option<PeerKey>;

/// What a fact changes for wants.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::core) enum Change {
    /// Whose turn it is, for any of them.
    Turns,
    /// A mate fetches this block.
    Taken(Cid, PeerKey),
    /// A mate does not fetch it any more.
    Released(Cid, PeerKey),
}

pub(in crate::core) struct Site {
    label: Option<String>,
    me: Seed,
    neighbours: BTreeMap<PeerKey, Neighbour>,
    roots: BTreeMap<Cid, Root>,
    claims: Claims,
    /// What we ask for outside.
    mine: BTreeSet<Cid>,
    /// Whether anybody outside is connected.
    outside: bool,
    outside_found: u64,
    dirty: BTreeSet<PeerKey>,
    told_progress: Time,
}

/// A root that we fetch.
struct Root {
    sessions: usize,
    /// Mates that have not taken note of it.
    unknown_to: BTreeSet<PeerKey>,
    /// Until when nothing is asked for outside because of them.
    hold: Time,
    next_hold: Time,
}

impl Site {
    pub(in crate::core) fn new(config: SiteConfig) -> Self {
        Self {
            me: Seed::of(&config.local),
            label: config.label,
            neighbours: BTreeMap::new(),
            roots: BTreeMap::new(),
            claims: Claims::default(),
            mine: BTreeSet::new(),
            outside: false,
            outside_found: 0,
            dirty: BTreeSet::new(),
            told_progress: Time::ZERO,
        }
    }

    // Peers.

    pub(in crate::core) fn connected(&mut self, key: PeerKey, id: PeerId, now: Time) {
        let until = now.saturating_add(PATIENCE);
        self.neighbours
            .insert(key, Neighbour::new(id, Side::Unknown { until }));
        self.look_outside();
        self.hold_all(now);
    }

    pub(in crate::core) fn disconnected(&mut self, key: PeerKey) {
        self.neighbours.remove(&key);
        self.dirty.remove(&key);
        self.leaves(key);
    }

    /// It has no blocks for anybody.
    pub(in crate::core) fn unsupported(&mut self, key: PeerKey) {
        if let Some(peer) = self.neighbours.get_mut(&key) {
            peer.mute = true;
        }
        self.look_outside();
    }

    /// Our messages reach it from now on: it is told who we are and what we do.
    pub(in crate::core) fn speaks(&mut self, key: PeerKey, near: bool) {
        let Some(peer) = self.neighbours.get_mut(&key) else {
            return;
        };
        peer.near = near;
        peer.speaks = true;
        peer.greet(self.label.clone());
        let is_mate = peer.is_mate();
        self.dirty.insert(key);
        if is_mate {
            self.tell_all(key);
        }
    }

    /// It does not speak the protocol, or our stream to it broke off (SI-4).
    pub(in crate::core) fn silent(&mut self, key: PeerKey) {
        if let Some(peer) = self.neighbours.get_mut(&key) {
            peer.silent();
        }
        for root in self.roots.values_mut() {
            root.unknown_to.remove(&key);
        }
        self.look_outside();
    }

    fn leaves(&mut self, key: PeerKey) {
        self.claims.forget(key);
        for root in self.roots.values_mut() {
            root.unknown_to.remove(&key);
        }
        self.look_outside();
    }

    /// One message of a peer. What it changes is added to `changes`.
    pub(in crate::core) fn said(
        &mut self,
        key: PeerKey,
        message: SiteMessage,
        now: Time,
        counters: &mut Counters,
        changes: &mut Vec<Change>,
    ) {
        if let Some(hello) = &message.hello {
            self.greeted(key, hello, now);
            changes.push(Change::Turns);
        }
        let Some(peer) = self.neighbours.get_mut(&key).filter(|p| p.is_mate()) else {
            counters.site_dropped += u64::from(message.hello.is_none());
            return;
        };
        if message.progress || !message.takes.is_empty() {
            peer.progress = now;
        }
        let turns = message.outside.is_some()
            || !message.fetches.is_empty()
            || !message.ends.is_empty()
            || !message.knows.is_empty();
        if turns {
            changes.push(Change::Turns);
        }
        peer.outside = message.outside.unwrap_or(peer.outside);
        for root in message.fetches {
            self.mate_fetches(key, root, counters);
        }
        for root in message.ends {
            self.mate_ends(key, &root);
        }
        for cid in message.takes {
            if self.claim(key, cid, now, counters) {
                changes.push(Change::Taken(cid, key));
            }
        }
        for cid in message.releases {
            if self.claims.by(&cid) == Some(key) {
                self.claims.remove(&cid);
            }
            changes.push(Change::Released(cid, key));
        }
        for root in message.knows {
            if let Some(root) = self.roots.get_mut(&root) {
                root.unknown_to.remove(&key);
            }
        }
    }

    /// SI-2: who has the same label is a mate, and who has none as we have none, if one of us sees the other on his own subnet.
    fn greeted(&mut self, key: PeerKey, hello: &Hello, now: Time) {
        let Some(peer) = self.neighbours.get_mut(&key) else {
            return;
        };
        let near = peer.near || hello.near;
        let is_mate = hello.label == self.label && (hello.label.is_some() || near);
        let was_mate = peer.is_mate();
        peer.place(if is_mate { Side::Mate } else { Side::Outside });
        // What it said before was on another stream, and is said again on this one (SI-4).
        if was_mate {
            self.leaves(key);
        }
        self.look_outside();
        if is_mate && !was_mate {
            self.hold_all(now);
            self.tell_all(key);
        }
    }

    /// A mate is told everything that we fetch and have taken on.
    fn tell_all(&mut self, key: PeerKey) {
        let mine = self.mine.iter().copied().collect::<Vec<_>>();
        let (outside, roots) = (self.outside, &mut self.roots);
        let Some(draft) = self.neighbours.get_mut(&key).and_then(Neighbour::draft) else {
            return;
        };
        draft.outside = Some(outside);
        draft.takes = mine;
        draft.fetches.clear();
        for (root, it) in roots {
            draft.fetches.push(*root);
            it.unknown_to.insert(key);
        }
        self.dirty.insert(key);
    }

    fn mate_fetches(&mut self, key: PeerKey, root: Cid, counters: &mut Counters) {
        let Some(peer) = self.neighbours.get_mut(&key) else {
            return;
        };
        counters.site_dropped += u64::from(!peer.fetches(root));
        let ours = self.roots.contains_key(&root);
        let mine = self.mine.iter().copied();
        if let Some(draft) = peer.draft() {
            if ours {
                // It may not have heard of them, because it fetched nothing.
                draft.takes = mine.collect();
            }
            draft.knows.push(root);
            self.dirty.insert(key);
        }
    }

    fn mate_ends(&mut self, key: PeerKey, root: &Cid) {
        let Some(peer) = self.neighbours.get_mut(&key) else {
            return;
        };
        peer.fetches.retain(|r| r != root);
        if peer.fetches.is_empty() {
            self.claims.forget(key);
        }
    }

    /// SI-8: of two that took the same block, the one whose turn it is keeps it. True if the claim is new and stands.
    fn claim(&mut self, key: PeerKey, cid: Cid, now: Time, counters: &mut Counters) -> bool {
        if self
            .neighbours
            .get(&key)
            .is_none_or(|p| p.is_distrusted(now))
        {
            return false;
        }
        let before = self.claims.by(&cid).filter(|by| *by != key);
        if before.is_some_and(|by| self.weight(Some(by), &cid) > self.weight(Some(key), &cid)) {
            return false;
        }
        let taken = self.claims.insert(cid, key);
        counters.site_dropped += u64::from(!taken);
        taken
    }

    /// Who did not say yet where he is counts: otherwise devices that learn at the same moment that somebody is outside would each know of
    /// nobody else who reaches him.
    fn look_outside(&mut self) {
        let outside = self.neighbours.values().any(|p| !p.is_mate() && !p.mute);
        if outside != self.outside {
            self.outside = outside;
            self.tell_mates(|draft| draft.outside = Some(outside), |_| true);
        }
    }

    /// Until they said who they are, or took note of what we fetch, but not for longer than [`PATIENCE`].
    fn hold_all(&mut self, now: Time) {
        for root in self.roots.values_mut().filter(|r| now >= r.next_hold) {
            root.hold = now.saturating_add(PATIENCE);
            root.next_hold = root.hold.saturating_add(BETWEEN_HOLDS);
        }
    }

    // What we fetch.

    /// A session begins with a root. False if there are too many.
    pub(in crate::core) fn begin(&mut self, root: Cid, now: Time) -> bool {
        if let Some(known) = self.roots.get_mut(&root) {
            known.sessions += 1;
            return true;
        }
        if self.roots.len() >= ROOTS {
            return false;
        }
        let mates = self.neighbours.iter().filter(|(_, p)| p.is_mate());
        let hold = now.saturating_add(PATIENCE);
        let it = Root {
            sessions: 1,
            unknown_to: mates.map(|(key, _)| *key).collect(),
            hold,
            next_hold: hold.saturating_add(BETWEEN_HOLDS),
        };
        self.roots.insert(root, it);
        let word = |draft: &mut SiteMessage| {
            draft.ends.retain(|r| *r != root);
            draft.fetches.push(root);
        };
        self.tell_mates(word, |_| true);
        true
    }

    /// A session with that root is over.
    pub(in crate::core) fn end(&mut self, root: &Cid) {
        let Some(known) = self.roots.get_mut(root) else {
            return;
        };
        known.sessions -= 1;
        if known.sessions > 0 {
            return;
        }
        self.roots.remove(root);
        let word = |draft: &mut SiteMessage| {
            draft.fetches.retain(|r| r != root);
            draft.ends.push(*root);
        };
        self.tell_mates(word, |_| true);
    }

    /// SI-8: we ask for it outside from now on.
    pub(in crate::core) fn take(&mut self, cid: Cid) {
        self.claims.remove(&cid);
        self.mine.insert(cid);
        let word = |draft: &mut SiteMessage| {
            draft.releases.retain(|c| *c != cid);
            draft.takes.push(cid);
        };
        self.tell_mates(word, fetches_any);
    }

    /// We do not ask for it any more, and have not got it (SI-9).
    pub(in crate::core) fn release(&mut self, cid: &Cid) {
        if self.mine.remove(cid) {
            let word = |draft: &mut SiteMessage| {
                draft.takes.retain(|c| c != cid);
                draft.releases.push(*cid);
            };
            self.tell_mates(word, fetches_any);
        }
    }

    /// It is here.
    pub(in crate::core) fn found(&mut self, cid: &Cid, from: PeerKey, now: Time) {
        self.mine.remove(cid);
        self.claims.remove(cid);
        match self.neighbours.get_mut(&from) {
            Some(peer) if peer.is_mate() => peer.delivered(now, self.outside_found),
            _ => self.outside_found += 1,
        }
    }

    /// Blocks that came to us from outside.
    pub(in crate::core) fn outside_found(&self) -> u64 {
        self.outside_found
    }

    /// When a mate last sent us a block, and how many had come from outside by then.
    pub(in crate::core) fn delivered(&self, key: PeerKey) -> (Time, u64) {
        self.neighbours
            .get(&key)
            .map_or((Time::ZERO, 0), |peer| peer.last_block)
    }

    /// SI-10: tells mates that bytes come from outside, if there are any that may wait for them.
    pub(in crate::core) fn tell_progress(&mut self, progress: Time) {
        if progress > self.told_progress {
            self.told_progress = progress;
            self.tell_mates(|draft| draft.progress = true, fetches_any);
        }
    }

    fn tell_mates(
        &mut self,
        mut word: impl FnMut(&mut SiteMessage),
        whom: impl Fn(&Neighbour) -> bool,
    ) {
        for (key, peer) in &mut self.neighbours {
            if peer.is_mate()
                && whom(peer)
                && let Some(draft) = peer.draft()
            {
                word(draft);
                self.dirty.insert(*key);
            }
        }
    }

    /// The next message to a peer.
    pub(in crate::core) fn next_message(&mut self) -> Option<(PeerId, SiteMessage)> {
        while let Some(key) = self.dirty.first().copied() {
            let message = self
                .neighbours
                .get_mut(&key)
                .and_then(|peer| Some((peer.id, peer.next_message()?)));
            match message {
                Some(message) => return Some(message),
                None => self.dirty.remove(&key),
            };
        }
        None
    }

    // Whose turn it is.

    /// SI-7: who has taken it on, or else the first of those who fetch one of these roots and reach somebody outside.
    pub(in crate::core) fn turn(
        &self,
        cid: &Cid,
        roots: &[Cid],
        without: &[Who],
        now: Time,
    ) -> Turn {
        if self.mine.contains(cid) && !without.contains(&None) {
            return Turn::Mine;
        }
        if let Some(by) = self.claims.by(cid)
            && self.is_candidate(by, now)
            && !without.contains(&Some(by))
        {
            return Turn::Of(by);
        }
        let me = self.outside.then_some(None);
        let mates = self
            .neighbours
            .iter()
            .filter(|(key, p)| {
                self.is_candidate(**key, now) && roots.iter().any(|root| p.fetches.contains(root))
            })
            .map(|(key, _)| Some(*key));
        let first = mates
            .chain(me)
            .filter(|who| !without.contains(who))
            .max_by_key(|who| self.weight(*who, cid));
        match first {
            Some(Some(key)) => Turn::Of(key),
            Some(None) => Turn::Mine,
            None => Turn::Nobody,
        }
    }

    fn is_candidate(&self, key: PeerKey, now: Time) -> bool {
        self.neighbours
            .get(&key)
            .is_some_and(|p| p.is_mate() && p.outside && !p.is_distrusted(now))
    }

    fn weight(&self, who: Who, cid: &Cid) -> u64 {
        let seed = match who {
            None => Some(self.me),
            Some(key) => self.neighbours.get(&key).map(|p| p.seed),
        };
        seed.map_or(0, |seed| seed.weight(cid))
    }

    /// Whether a mate comes before us for a block.
    pub(in crate::core) fn outranks_us(&self, key: PeerKey, cid: &Cid) -> bool {
        self.weight(Some(key), cid) > self.weight(None, cid)
    }

    /// SI-5: whether mates have to hear first that we fetch one of these roots.
    pub(in crate::core) fn is_on_hold(&self, roots: &[Cid], now: Time) -> bool {
        let strangers = || {
            let unknown = |p: &Neighbour| matches!(p.side, Side::Unknown { .. });
            self.neighbours.values().any(unknown)
        };
        roots
            .iter()
            .filter_map(|root| self.roots.get(root))
            .any(|root| now < root.hold && (!root.unknown_to.is_empty() || strangers()))
    }

    pub(in crate::core) fn is_mate(&self, key: PeerKey) -> bool {
        self.neighbours.get(&key).is_some_and(Neighbour::is_mate)
    }

    /// Whether a mate fetches one of these roots itself.
    pub(in crate::core) fn fetches(&self, key: PeerKey, roots: &[Cid]) -> bool {
        self.neighbours
            .get(&key)
            .is_some_and(|p| p.fetches.iter().any(|root| roots.contains(root)))
    }

    /// Whether a peer did not answer lately.
    pub(in crate::core) fn is_tardy(&self, key: PeerKey, now: Time) -> bool {
        self.neighbours.get(&key).is_none_or(|p| p.is_tardy(now))
    }

    /// When a mate last said that bytes come to it.
    pub(in crate::core) fn progress(&self, key: PeerKey) -> Time {
        self.neighbours.get(&key).map_or(Time::ZERO, |p| p.progress)
    }

    /// How many other mates wait for bytes from outside: they took blocks, and said so, or that bytes come, within this time.
    pub(in crate::core) fn others_at_the_line(&self, but: Who, now: Time, within: Duration) -> u32 {
        let waits = |(key, peer): &(&PeerKey, &Neighbour)| {
            Some(**key) != but
                && now < peer.progress.saturating_add(within)
                && self.is_candidate(**key, now)
                && self.claims.any_of(**key)
        };
        self.neighbours.iter().filter(waits).count() as u32
    }

    /// Whether anybody outside is connected.
    pub(in crate::core) fn reaches_outside(&self) -> bool {
        self.outside
    }

    /// Whether something is asked for outside.
    pub(in crate::core) fn has_taken(&self) -> bool {
        !self.mine.is_empty()
    }

    /// SI-10: a mate says that bytes come to it, and what it took on does not come.
    pub(in crate::core) fn distrust(&mut self, key: PeerKey, now: Time) {
        if let Some(peer) = self.neighbours.get_mut(&key) {
            peer.distrust(now);
        }
    }

    /// A peer did not answer whether it has a block.
    pub(in crate::core) fn tardy(&mut self, key: PeerKey, now: Time) {
        if let Some(peer) = self.neighbours.get_mut(&key) {
            peer.tardy(now);
        }
    }

    /// Whether time will change something.
    pub(in crate::core) fn is_unsettled(&self, now: Time) -> bool {
        let unknown = |p: &Neighbour| matches!(p.side, Side::Unknown { .. });
        self.neighbours.values().any(unknown) || self.roots.values().any(|root| now < root.hold)
    }

    /// Who did not say that he is a mate is none. True if that changes turns.
    pub(in crate::core) fn expire(&mut self, now: Time) -> bool {
        let mut changed = false;
        for peer in self.neighbours.values_mut() {
            if matches!(peer.side, Side::Unknown { until } if until <= now) {
                peer.place(Side::Outside);
                changed = true;
            }
        }
        if changed {
            self.look_outside();
        }
        changed
    }

    /// The mates.
    pub(in crate::core) fn mates(&self) -> impl Iterator<Item = PeerId> {
        self.neighbours
            .values()
            .filter(|p| p.is_mate())
            .map(|p| p.id)
    }
}

fn fetches_any(peer: &Neighbour) -> bool {
    !peer.fetches.is_empty()
}
