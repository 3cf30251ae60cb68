//! Who wants which block, in any state, so that a block that is stored finds those who wait for it.

use std::collections::HashMap;

use gemba_block::Cid;

use crate::core::PeerKey;

#[derive(Default)]
pub(super) struct Interest {
    by: HashMap<Cid, Vec<PeerKey>>,
    pairs: usize,
}

impl Interest {
    pub(super) fn of(&self, cid: &Cid) -> Vec<PeerKey> {
        self.by.get(cid).cloned().unwrap_or_default()
    }

    /// Wants of all peers together.
    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    /// A peer wants a block that it did not want.
    pub(super) fn link(&mut self, cid: Cid, key: PeerKey) {
        self.by.entry(cid).or_default().push(key);
        self.pairs += 1;
    }

    pub(super) fn unlink(&mut self, cid: &Cid, key: PeerKey) {
        let Some(keys) = self.by.get_mut(cid) else {
            return;
        };
        if let Some(at) = keys.iter().position(|k| *k == key) {
            keys.swap_remove(at);
            self.pairs -= 1;
        }
        if keys.is_empty() {
            self.by.remove(cid);
        }
        // A flood leaves no empty table behind.
        if self.by.capacity() > 1024 && self.by.len() < self.by.capacity() / 8 {
            self.by.shrink_to(self.by.len() * 2);
        }
    }
}
