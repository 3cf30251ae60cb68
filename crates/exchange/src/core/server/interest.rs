//! Who wants which block, in any state, so that a block that is stored finds those who wait for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use gemba_block::Cid;

use crate::core::PeerKey;

/// The name of a wanted block. A CID takes 96 bytes and stands in several tables: it is held once, for all peers that want it.
pub(super) type Name = Arc<Cid>;

#[derive(Default)]
pub(super) struct Interest {
    by: HashMap<Name, Keys>,
    pairs: usize,
}

/// Never empty. Most blocks are wanted by one peer at a time, and a flood by nobody else.
enum Keys {
    One(PeerKey),
    Many(Vec<PeerKey>),
}

impl Interest {
    pub(super) fn of(&self, cid: &Cid) -> Vec<PeerKey> {
        match self.by.get(cid) {
            None => Vec::new(),
            Some(Keys::One(key)) => vec![*key],
            Some(Keys::Many(keys)) => keys.clone(),
        }
    }

    /// The name under which others want the block, or a new one.
    pub(super) fn name(&self, cid: &Cid) -> Name {
        match self.by.get_key_value(cid) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::new(*cid),
        }
    }

    /// Wants of all peers together.
    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    /// A peer wants a block that it did not want.
    pub(super) fn link(&mut self, name: Name, key: PeerKey) {
        match self.by.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(Keys::One(key))),
            Entry::Occupied(mut entry) => entry.get_mut().push(key),
        }
        self.pairs += 1;
    }

    pub(super) fn unlink(&mut self, cid: &Cid, key: PeerKey) {
        let Some(keys) = self.by.get_mut(cid) else {
            return;
        };
        let (found, empty) = keys.remove(key);
        self.pairs -= usize::from(found);
        if empty {
            self.by.remove(cid);
        }
        // A flood leaves no empty table behind.
        if self.by.capacity() > 1024 && self.by.len() < self.by.capacity() / 8 {
            self.by.shrink_to(self.by.len() * 2);
        }
    }
}

impl Keys {
    fn push(&mut self, key: PeerKey) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, key]),
            Self::Many(keys) => keys.push(key),
        }
    }

    /// Whether the peer was there, and whether nobody is left.
    fn remove(&mut self, key: PeerKey) -> (bool, bool) {
        match self {
            Self::One(only) => (*only == key, *only == key),
            Self::Many(keys) => {
                let at = keys.iter().position(|k| *k == key);
                if let Some(at) = at {
                    keys.swap_remove(at);
                }
                (at.is_some(), keys.is_empty())
            }
        }
    }
}
