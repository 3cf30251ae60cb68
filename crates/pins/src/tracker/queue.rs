//! Whose turn is next: what somebody asked for in person first, but not for ever; each lane in the order of asking.

use super::op::Operation;
use cid::Cid;
use std::collections::BTreeSet;

/// Of so many starts in a row from the first lane one goes to the second, if somebody waits there.
const ROW: u32 = 4;

/// Those that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Queue {
    recent: BTreeSet<(u64, Cid)>,
    others: BTreeSet<(u64, Cid)>,
    next: u64,
    row: u32,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    number: u64,
    recent: bool,
}

impl Queue {
    /// At the end of its lane.
    pub(super) fn push(&mut self, cid: Cid, recent: bool) -> Place {
        let number = self.next;
        self.next += 1;
        self.lane(recent).insert((number, cid));
        Place { number, recent }
    }

    /// Takes it out.
    pub(super) fn remove(&mut self, cid: Cid, place: Place) {
        self.lane(place.recent).remove(&(place.number, cid));
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<Cid> {
        let others_turn = self.row + 1 >= ROW && !self.others.is_empty();
        if !others_turn && let Some((_, cid)) = self.recent.pop_first() {
            self.row = (self.row + 1).min(ROW);
            return Some(cid);
        }
        self.row = 0;
        self.others.pop_first().map(|(_, cid)| cid)
    }

    /// The one that has to give way to somebody who asks in person: the last of the others.
    pub(super) fn last_of_others(&self) -> Option<Cid> {
        self.others.last().map(|(_, cid)| *cid)
    }

    pub(super) fn len(&self) -> usize {
        self.recent.len() + self.others.len()
    }

    fn lane(&mut self, recent: bool) -> &mut BTreeSet<(u64, Cid)> {
        if recent {
            &mut self.recent
        } else {
            &mut self.others
        }
    }
}

/// Whether it goes before the others.
pub(super) fn is_recent(op: &Operation, tries: u32) -> bool {
    op.recent && op.attempts < tries
}
