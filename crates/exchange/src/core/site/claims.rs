//! Which mate said that it fetches which block from outside (SI-8).

use std::collections::{HashMap, VecDeque};

use gemba_block::Cid;

use crate::core::PeerKey;

/// Claims of one mate, and of all, that are remembered: a device has not more under way, however fast its line is. About 150 bytes each.
/// Those beyond are dropped and counted: what they name may come twice.
const OF_ONE: usize = 1024;
const OF_ALL: usize = 8192;

#[derive(Default)]
pub(super) struct Claims {
    by_block: HashMap<Cid, PeerKey>,
    of_mate: HashMap<PeerKey, usize>,
    /// In the order in which they were made; those that are gone are skipped.
    order: VecDeque<(Cid, PeerKey)>,
}

impl Claims {
    /// False if there is no room for it.
    pub(super) fn insert(&mut self, cid: Cid, by: PeerKey) -> bool {
        if self.of_mate.get(&by).is_some_and(|count| *count >= OF_ONE) {
            return false;
        }
        self.remove(&cid);
        self.by_block.insert(cid, by);
        *self.of_mate.entry(by).or_insert(0) += 1;
        self.order.push_back((cid, by));
        while self.by_block.len() > OF_ALL {
            let Some((oldest, mate)) = self.order.pop_front() else {
                break;
            };
            if self.by(&oldest) == Some(mate) {
                self.remove(&oldest);
            }
        }
        self.compact();
        true
    }

    pub(super) fn by(&self, cid: &Cid) -> Option<PeerKey> {
        self.by_block.get(cid).copied()
    }

    pub(super) fn any_of(&self, mate: PeerKey) -> bool {
        self.of_mate.contains_key(&mate)
    }

    pub(super) fn remove(&mut self, cid: &Cid) {
        let Some(by) = self.by_block.remove(cid) else {
            return;
        };
        if let Some(count) = self.of_mate.get_mut(&by) {
            *count -= 1;
            if *count == 0 {
                self.of_mate.remove(&by);
            }
        }
    }

    /// It is gone, or fetches nothing any more.
    pub(super) fn forget(&mut self, mate: PeerKey) {
        if self.of_mate.remove(&mate).is_some() {
            self.by_block.retain(|_, by| *by != mate);
        }
    }

    fn compact(&mut self) {
        if self.order.len() > 2 * OF_ALL {
            let by_block = &self.by_block;
            let mut seen = std::collections::HashSet::new();
            self.order
                .retain(|(cid, by)| by_block.get(cid) == Some(by) && seen.insert(*cid));
        }
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
    fn claims_are_bounded_and_go_with_their_mate() {
        let mut claims = Claims::default();
        let (one, two) = (PeerKey(1), PeerKey(2));
        let taken = (0..2 * OF_ONE as u32).filter(|n| claims.insert(cid(*n), one));
        assert_eq!(taken.count(), OF_ONE);
        assert!(claims.insert(cid(0), two), "the last word counts");
        assert_eq!(claims.by(&cid(0)), Some(two));
        assert!(claims.insert(cid(9999), one), "which left room");
        claims.forget(one);
        assert_eq!((claims.by(&cid(1)), claims.by(&cid(0))), (None, Some(two)));
        for mate in 3..20 {
            for n in 0..OF_ONE as u32 {
                claims.insert(cid(mate * 10_000 + n), PeerKey(mate));
            }
        }
        assert!(claims.by_block.len() <= OF_ALL && claims.order.len() <= 2 * OF_ALL + 1);
        assert!(claims.of_mate.values().sum::<usize>() == claims.by_block.len());
    }
}
