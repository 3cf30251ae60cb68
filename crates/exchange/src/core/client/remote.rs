//! What one peer was told that we want, and what it has to be told next.

use std::collections::{HashMap, VecDeque};

use gemba_block::Cid;

use crate::wire::{Entry, Message, WantKind};

/// Our wantlist at one peer. While a message is being written changes gather here, so that a slow stream carries few
/// large messages and this never grows beyond the wants themselves.
#[derive(Default)]
pub(super) struct Remote {
    /// What the peer remembers.
    known: HashMap<Cid, Said>,
    changes: HashMap<Cid, Change>,
    /// Order of `changes`. May name CIDs whose change was withdrawn; they are skipped.
    order: VecDeque<Cid>,
    writing: bool,
    /// The peer may have lost what it was told: the next message is a full wantlist.
    resend: bool,
    /// Wants that the peer should know and does not answer: it is asked whether it has the block, which it answers at once if it lost
    /// the want or sent the block and that was lost, and not before the block if it is on its way.
    probes: VecDeque<Cid>,
    /// Known wants that were answered DONT_HAVE, oldest first: kept so that the peer pushes, first to go for room.
    idle: VecDeque<Cid>,
}

#[derive(Clone, Copy)]
struct Said {
    kind: WantKind,
    seq: u64,
}

#[derive(Clone, Copy)]
enum Change {
    Want(Said),
    Cancel,
}

/// Wants that are only kept for a later push may use half of a list of 1024.
const IDLE: usize = 512;
/// Entries in one message (Kubo sends early at 256; a message of this many is about 45 KiB).
const MESSAGE_ENTRIES: usize = 1024;

impl Remote {
    pub(super) fn want(&mut self, cid: Cid, kind: WantKind, seq: u64) {
        let change = Change::Want(Said { kind, seq });
        if self.changes.insert(cid, change).is_none() {
            self.order.push_back(cid);
        }
        self.compact();
    }

    /// Withdraws a want, silently if the peer was never told.
    pub(super) fn cancel(&mut self, cid: &Cid) {
        if self.known.contains_key(cid) {
            if self.changes.insert(*cid, Change::Cancel).is_none() {
                self.order.push_back(*cid);
            }
        } else {
            self.changes.remove(cid);
        }
        self.compact();
    }

    /// The peer answered so that it forgot the want: it sent the block, or HAVE to a want-have.
    pub(super) fn answered(&mut self, cid: &Cid, with_block: bool) {
        let forgotten = self
            .known
            .get(cid)
            .is_some_and(|said| with_block || said.kind == WantKind::Have);
        if forgotten {
            self.known.remove(cid);
        }
    }

    /// The peer answered DONT_HAVE and remembers the want.
    pub(super) fn idle(&mut self, cid: Cid) {
        if !self.known.contains_key(&cid) {
            return;
        }
        self.idle.push_back(cid);
        if self.idle.len() > IDLE
            && let Some(oldest) = self.idle.pop_front()
            && oldest != cid
            && !matches!(self.changes.get(&oldest), Some(Change::Want(_)))
        {
            self.cancel(&oldest);
        }
    }

    pub(super) fn knows(&self, cid: &Cid) -> bool {
        self.known.contains_key(cid) || self.changes.contains_key(cid)
    }

    /// The peer was told, and not told otherwise, that the block itself is wanted.
    pub(super) fn holds_block_want(&self, cid: &Cid) -> bool {
        !self.changes.contains_key(cid)
            && matches!(self.known.get(cid), Some(said) if said.kind == WantKind::Block)
    }

    /// Asks again whether it has what it was told that we want.
    pub(super) fn probe(&mut self, cid: Cid) {
        // No more than there are wants, however long a stream takes nothing.
        let room = self.probes.len() < self.known.len();
        if room && self.known.contains_key(&cid) && !self.changes.contains_key(&cid) {
            self.probes.push_back(cid);
        }
    }

    /// Wants that the peer holds or will hold for us.
    pub(super) fn len(&self) -> usize {
        self.known.len() + self.changes.len()
    }

    /// Nothing is wanted of the peer.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_work(&self) -> bool {
        !self.writing && (self.resend || !self.changes.is_empty() || !self.probes.is_empty())
    }

    pub(super) fn written(&mut self) {
        self.writing = false;
    }

    /// Everything was perhaps lost: start with a full wantlist. True if there is anything to repeat.
    pub(super) fn lost(&mut self) -> bool {
        self.writing = false;
        self.resend = !self.known.is_empty() || self.resend;
        self.probes.clear();
        self.resend
    }

    /// The next message.
    pub(super) fn take(&mut self) -> Option<Message> {
        if !self.has_work() {
            return None;
        }
        let mut message = Message::default();
        if std::mem::take(&mut self.resend) {
            message.full = true;
            message.entries = self.full();
        }
        while message.entries.len() < MESSAGE_ENTRIES
            && let Some(cid) = self.order.pop_front()
        {
            let Some(change) = self.changes.remove(&cid) else {
                continue;
            };
            match change {
                Change::Want(said) => {
                    self.known.insert(cid, said);
                    message.entries.push(entry(cid, said));
                }
                Change::Cancel => {
                    // A full list just left it out.
                    if self.known.remove(&cid).is_some() && !message.full {
                        message.entries.push(cancel(cid));
                    }
                }
            }
        }
        while message.entries.len() < MESSAGE_ENTRIES
            && let Some(cid) = self.probes.pop_front()
        {
            // Not what was cancelled, answered or just told meanwhile.
            if let Some(said) = self.known.get(&cid)
                && !message.entries.iter().any(|entry| entry.cid == cid)
            {
                let kind = WantKind::Have;
                message.entries.push(entry(cid, Said { kind, ..*said }));
            }
        }
        if message.is_empty() {
            return None;
        }
        self.writing = true;
        Some(message)
    }

    /// All that is known, in the order it was wanted, without what is being cancelled.
    fn full(&mut self) -> Vec<Entry> {
        let mut list: Vec<_> = self
            .known
            .iter()
            .filter(|(cid, _)| !matches!(self.changes.get(*cid), Some(Change::Cancel)))
            .map(|(cid, said)| (*cid, *said))
            .collect();
        list.sort_by_key(|(_, said)| said.seq);
        list.into_iter()
            .map(|(cid, said)| entry(cid, said))
            .collect()
    }

    fn compact(&mut self) {
        if self.order.len() > 2 * self.changes.len() + 64 {
            let mut seen = std::collections::HashSet::new();
            let changes = &self.changes;
            self.order
                .retain(|cid| changes.contains_key(cid) && seen.insert(*cid));
        }
        if self.idle.len() > 2 * IDLE {
            self.idle.drain(..IDLE);
        }
    }
}

fn entry(cid: Cid, said: Said) -> Entry {
    Entry {
        cid,
        // Earlier wants first. Priorities are compared within one peer only.
        priority: i32::MAX - i32::try_from(said.seq % (1 << 30)).unwrap_or(0),
        cancel: false,
        kind: said.kind,
        send_dont_have: true,
    }
}

fn cancel(cid: Cid) -> Entry {
    Entry {
        cid,
        priority: 0,
        cancel: true,
        kind: WantKind::Block,
        send_dont_have: false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use gemba_block::Block;

    fn cid(n: u32) -> Cid {
        *Block::raw(n.to_be_bytes().to_vec()).unwrap().cid()
    }

    #[test]
    fn a_want_withdrawn_before_it_was_sent_is_never_sent() {
        let mut remote = Remote::default();
        remote.want(cid(1), WantKind::Have, 1);
        remote.cancel(&cid(1));
        assert!(remote.take().is_none());
        assert_eq!(remote.len(), 0);
    }

    #[test]
    fn changes_gather_while_a_message_is_written() {
        let mut remote = Remote::default();
        remote.want(cid(1), WantKind::Have, 1);
        assert_eq!(remote.take().unwrap().entries.len(), 1);
        remote.want(cid(2), WantKind::Have, 2);
        remote.want(cid(3), WantKind::Block, 3);
        remote.cancel(&cid(1));
        assert!(remote.take().is_none());
        remote.written();
        let message = remote.take().unwrap();
        assert_eq!(message.entries.len(), 3);
        assert!(message.entries.iter().any(|e| e.cancel && e.cid == cid(1)));
        assert!(!message.full);
    }

    #[test]
    fn after_a_lost_stream_the_whole_list_is_said_again_without_what_was_cancelled() {
        let mut remote = Remote::default();
        for n in 0..3 {
            remote.want(cid(n), WantKind::Block, u64::from(n));
        }
        remote.take().unwrap();
        remote.cancel(&cid(1));
        assert!(remote.lost());
        let message = remote.take().unwrap();
        assert!(message.full);
        let cids: Vec<_> = message.entries.iter().map(|e| e.cid).collect();
        assert_eq!(cids, [cid(0), cid(2)]);
    }

    #[test]
    fn wants_kept_for_a_push_are_bounded() {
        let mut remote = Remote::default();
        for n in 0..2 * IDLE as u32 {
            remote.want(cid(n), WantKind::Have, u64::from(n));
            remote.take();
            remote.written();
            remote.idle(cid(n));
        }
        let cancels: usize = std::iter::from_fn(|| {
            let message = remote.take();
            remote.written();
            message
        })
        .map(|m| m.entries.iter().filter(|e| e.cancel).count())
        .sum();
        // Each step's message carries the cancel of the step before.
        assert!(cancels <= 1);
        assert!(remote.known.len() <= IDLE + 1);
    }
}
