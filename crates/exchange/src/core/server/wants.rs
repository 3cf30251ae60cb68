//! The wantlist of one peer: bounded, ordered, each want in one of four states.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use gemba_block::Cid;

use super::interest::Name;
use crate::wire::{Entry, WantKind};

/// As many wants as its owner allows. Every operation costs a logarithm of that, so that a flood is cheap to refuse.
#[derive(Default)]
pub(super) struct Wants {
    all: HashMap<Name, Want>,
    /// Highest priority first, then first come.
    queued: BTreeMap<(Reverse<i32>, u64), Name>,
    /// Lowest priority first: victims of an overflow.
    missing: BTreeMap<(i32, u64), Name>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) kind: WantKind,
    pub(super) send_dont_have: bool,
    /// The block was stored while it was looked up: a lookup that found nothing is repeated.
    pub(super) arrived_meanwhile: bool,
    priority: i32,
    seq: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be looked up.
    Queued,
    /// The owner looks it up.
    Loading,
    /// Not here; remembered until it arrives, is cancelled or the peer leaves.
    Missing,
    /// Loaded, in no message yet.
    Ready,
}

/// What became of a new want.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    New,
    /// It was there already and is now the stronger of both.
    Merged,
    /// It took the place of this one.
    Replaced(Name),
    /// The list is full of more important ones.
    Refused,
}

impl Wants {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    pub(super) fn cids(&self) -> impl Iterator<Item = &Cid> {
        self.all.keys().map(Name::as_ref)
    }

    /// Takes a want, if there are fewer than `limit` or one of them gives way. One that was answered DONT_HAVE and comes again is looked up again.
    /// `name` is `entry.cid`.
    pub(super) fn take(&mut self, entry: &Entry, name: Name, limit: usize) -> Taken {
        if let Some(want) = self.all.get(&entry.cid).copied() {
            self.merge(entry, want);
            return Taken::Merged;
        }
        if self.all.len() < limit {
            self.insert(entry, name);
            return Taken::New;
        }
        match self.victim(entry.priority) {
            Some(victim) => {
                self.remove(&victim);
                self.insert(entry, name);
                Taken::Replaced(victim)
            }
            None => Taken::Refused,
        }
    }

    pub(super) fn remove(&mut self, cid: &Cid) -> Option<State> {
        let want = self.all.remove(cid)?;
        self.unqueue(&want);
        if self.all.is_empty() && self.all.capacity() > 64 {
            self.all = HashMap::new();
        }
        Some(want.state)
    }

    /// Forgets all wants and returns their CIDs.
    pub(super) fn clear(&mut self) -> Vec<Name> {
        self.queued.clear();
        self.missing.clear();
        // Not only emptied: a flood leaves no large table behind.
        std::mem::take(&mut self.all).into_keys().collect()
    }

    /// Starts the lookup of the most important want.
    pub(super) fn start_next(&mut self) -> Option<(Cid, WantKind)> {
        let (_, name) = self.queued.pop_first()?;
        let want = self.all.get_mut(&name)?;
        want.state = State::Loading;
        want.arrived_meanwhile = false;
        Some((*name, want.kind))
    }

    /// The want whose lookup ended; `None` if it was cancelled meanwhile.
    pub(super) fn loading(&self, cid: &Cid) -> Option<Want> {
        self.all
            .get(cid)
            .filter(|w| w.state == State::Loading)
            .copied()
    }

    /// The block was stored. True if the want had been waiting for it.
    pub(super) fn arrived(&mut self, cid: &Cid) -> bool {
        match self.all.get_mut(cid) {
            Some(want) if want.state == State::Loading => {
                want.arrived_meanwhile = true;
                false
            }
            Some(want) if want.state == State::Missing => {
                self.requeue(cid);
                true
            }
            _ => false,
        }
    }

    pub(super) fn requeue(&mut self, cid: &Cid) {
        self.set(cid, State::Queued);
    }

    pub(super) fn requeue_as_block(&mut self, cid: &Cid) {
        if let Some(want) = self.all.get_mut(cid) {
            want.kind = WantKind::Block;
        }
        self.set(cid, State::Queued);
    }

    pub(super) fn missing(&mut self, cid: &Cid) {
        self.set(cid, State::Missing);
    }

    pub(super) fn ready(&mut self, cid: &Cid) {
        self.set(cid, State::Ready);
    }

    fn insert(&mut self, entry: &Entry, name: Name) {
        let want = Want {
            kind: entry.kind,
            send_dont_have: entry.send_dont_have,
            arrived_meanwhile: false,
            priority: entry.priority,
            seq: self.next,
            state: State::Queued,
        };
        self.next += 1;
        self.queued
            .insert((Reverse(want.priority), want.seq), Name::clone(&name));
        self.all.insert(name, want);
    }

    /// A want-block wins over a want-have, a wish for DONT_HAVE over silence (boxo `addEntry`).
    fn merge(&mut self, entry: &Entry, old: Want) {
        self.unqueue(&old);
        if let Some(want) = self.all.get_mut(&entry.cid) {
            want.kind = want.kind.max(entry.kind);
            want.send_dont_have |= entry.send_dont_have;
            want.priority = entry.priority;
        }
        let state = match old.state {
            State::Missing => State::Queued,
            state => state,
        };
        self.set(&entry.cid, state);
    }

    /// Missing ones first, then a queued one that is not more important than the newcomer (boxo `handleOverflow`).
    fn victim(&self, priority: i32) -> Option<Name> {
        if let Some((_, name)) = self.missing.first_key_value() {
            return Some(Name::clone(name));
        }
        let ((Reverse(lowest), _), name) = self.queued.last_key_value()?;
        (priority > *lowest).then(|| Name::clone(name))
    }

    fn set(&mut self, cid: &Cid, state: State) {
        let Some((name, want)) = self.all.get_key_value(cid) else {
            return;
        };
        let (name, want) = (Name::clone(name), *want);
        self.unqueue(&want);
        match state {
            State::Queued => {
                self.queued.insert((Reverse(want.priority), want.seq), name);
            }
            State::Missing => {
                self.missing.insert((want.priority, want.seq), name);
            }
            State::Loading | State::Ready => {}
        }
        if let Some(want) = self.all.get_mut(cid) {
            want.state = state;
        }
    }

    fn unqueue(&mut self, want: &Want) {
        self.queued.remove(&(Reverse(want.priority), want.seq));
        self.missing.remove(&(want.priority, want.seq));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use gemba_block::Block;

    fn entry(n: u32, priority: i32) -> Entry {
        Entry {
            cid: *Block::raw(n.to_be_bytes().to_vec()).unwrap().cid(),
            priority,
            cancel: false,
            kind: WantKind::Block,
            send_dont_have: false,
        }
    }

    fn take(wants: &mut Wants, entry: &Entry, limit: usize) -> Taken {
        wants.take(entry, Name::new(entry.cid), limit)
    }

    fn replaced(n: u32) -> Taken {
        Taken::Replaced(Name::new(entry(n, 0).cid))
    }

    #[test]
    fn highest_priority_is_looked_up_first_then_first_come() {
        let mut wants = Wants::default();
        for (n, priority) in [(1, 5), (2, 9), (3, 5), (4, -1)] {
            assert_eq!(take(&mut wants, &entry(n, priority), 8), Taken::New);
        }
        let order: Vec<_> = std::iter::from_fn(|| wants.start_next())
            .map(|(cid, _)| cid)
            .collect();
        assert_eq!(order, [2, 1, 3, 4].map(|n| entry(n, 0).cid));
    }

    #[test]
    fn overflow_replaces_missing_wants_then_less_important_ones() {
        let mut wants = Wants::default();
        take(&mut wants, &entry(1, 100), 2);
        take(&mut wants, &entry(2, 5), 2);
        let (first, _) = wants.start_next().unwrap();
        wants.missing(&first);
        assert_eq!(
            take(&mut wants, &entry(3, 1), 2),
            replaced(1),
            "missing goes first, whatever its priority"
        );
        assert_eq!(take(&mut wants, &entry(4, 1), 2), Taken::Refused);
        assert_eq!(take(&mut wants, &entry(4, 2), 2), replaced(3));
        assert_eq!(wants.len(), 2);
    }

    #[test]
    fn a_want_that_is_looked_up_is_no_victim() {
        let mut wants = Wants::default();
        take(&mut wants, &entry(1, 0), 1);
        wants.start_next().unwrap();
        assert_eq!(take(&mut wants, &entry(2, 9), 1), Taken::Refused);
    }

    #[test]
    fn block_wins_over_have_in_either_order() {
        let mut wants = Wants::default();
        let have = |n| Entry {
            kind: WantKind::Have,
            ..entry(n, 1)
        };
        take(&mut wants, &have(1), 4);
        assert_eq!(take(&mut wants, &entry(1, 1), 4), Taken::Merged);
        take(&mut wants, &entry(2, 1), 4);
        assert_eq!(take(&mut wants, &have(2), 4), Taken::Merged);
        assert_eq!(wants.start_next().unwrap().1, WantKind::Block);
        assert_eq!(wants.start_next().unwrap().1, WantKind::Block);
    }
}
