//! What was wanted a moment ago.

use std::collections::hash_map::RandomState;
use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher;

use gemba_block::Cid;

/// CIDs that were wanted a moment ago, to tell a late block from a wrong one. Keeps hashes only.
#[derive(Default)]
pub(super) struct Recent {
    set: HashSet<u64>,
    order: VecDeque<u64>,
    hasher: RandomState,
}

/// More than all peers together can have on their way.
const RECENT: usize = 16_384;

impl Recent {
    pub(super) fn insert(&mut self, cid: &Cid) {
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

    pub(super) fn contains(&self, cid: &Cid) -> bool {
        self.set.contains(&self.hasher.hash_one(cid))
    }
}
