//! Temporary protection of blocks that nothing pins yet.
//!
//! Time is counted in guards: taking one begins a new epoch, and every put or touch stamps its block with the epoch of that
//! moment; while a guard is held, every read does too. A block may be collected only if its stamp is older than the oldest guard
//! that is still held. So a guard costs nothing for each block, and protects a little more than it must: all that anybody put,
//! read or touched since it was taken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Largest epoch: stamps have 31 bits. 2^31 guards would need half a year of 130 a second; from then on the last one serves all.
const LAST_EPOCH: u32 = (1 << 31) - 1;

/// The epochs of a store and the guards that are held.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    epoch: AtomicU32,
    held: Mutex<BTreeMap<u32, usize>>,
    /// How many are held: reads look here, without the lock.
    count: AtomicUsize,
}

impl Guards {
    /// The current epoch, for a stamp.
    pub(crate) fn now(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Protects what is stamped from now on.
    pub(crate) fn take(self: &Arc<Self>) -> Guard {
        self.begin(self.held())
    }

    /// Protects what is stamped from now on, and all that is protected now: for a collection. A block may be stamped under a guard
    /// that is taken before the collection begins, and dropped before it ends, by somebody whose pin the collection has not seen.
    pub(crate) fn take_over(self: &Arc<Self>) -> Guard {
        let mut held = self.held();
        let Some((oldest, count)) = held.iter_mut().next() else {
            return self.begin(held);
        };
        *count += 1;
        self.count.fetch_add(1, Ordering::SeqCst);
        Guard {
            guards: Arc::clone(self),
            epoch: *oldest,
        }
    }

    fn begin(self: &Arc<Self>, mut held: MutexGuard<'_, BTreeMap<u32, usize>>) -> Guard {
        let epoch = (self.now() + 1).min(LAST_EPOCH);
        self.epoch.store(epoch, Ordering::SeqCst);
        *held.entry(epoch).or_default() += 1;
        self.count.fetch_add(1, Ordering::SeqCst);
        drop(held);
        Guard {
            guards: Arc::clone(self),
            epoch,
        }
    }

    /// Whether a guard is held that was taken in the epoch of the stamp or before.
    pub(crate) fn protects(&self, stamp: u32) -> bool {
        self.oldest().is_some_and(|oldest| stamp >= oldest)
    }

    /// The epoch of the oldest guard that is held: what is stamped with it or a later one is protected.
    pub(crate) fn oldest(&self) -> Option<u32> {
        self.held().first_key_value().map(|(oldest, _)| *oldest)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether a guard is held. What is read from the moment on in which [`Self::take`] returned sees it.
    pub(crate) fn any(&self) -> bool {
        self.count() > 0
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, no block is deleted that was put, touched, or read with [`crate::Store::get`] since it was taken. Asking whether
/// a block is there protects nothing.
///
/// Take it before the first put of a DAG, or the first read of one that is to be pinned, and drop it when a pin holds the root.
#[derive(Debug)]
#[must_use = "protection ends when the guard is dropped"]
pub struct Guard {
    guards: Arc<Guards>,
    epoch: u32,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.guards.held();
        if let Some(count) = held.get_mut(&self.epoch) {
            *count -= 1;
            self.guards.count.fetch_sub(1, Ordering::SeqCst);
            if *count == 0 {
                held.remove(&self.epoch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_takes_over_what_is_protected() {
        let guards = Arc::new(Guards::default());
        let user = guards.take();
        let during = guards.now();
        let collection = guards.take_over();
        drop(user);
        assert!(guards.protects(during));
        drop(collection);
        assert!(!guards.protects(during));
        let collection = guards.take_over();
        assert!(!guards.protects(during) && guards.protects(guards.now()));
        drop(collection);
        assert_eq!(guards.count(), 0);
    }

    #[test]
    fn the_oldest_guard_decides() {
        let guards = Arc::new(Guards::default());
        let before = guards.now();
        assert!(!guards.protects(before));
        let first = guards.take();
        let during = guards.now();
        let second = guards.take();
        let later = guards.now();
        assert!(!guards.protects(before) && guards.protects(during) && guards.protects(later));
        drop(first);
        assert!(!guards.protects(during) && guards.protects(later));
        drop(second);
        assert!(!guards.protects(later));
        assert_eq!(guards.count(), 0);
    }
}
