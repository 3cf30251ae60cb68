//! Temporary protection of blocks that nothing pins yet.
//!
//! Time is counted in guards: taking one begins a new epoch, and every put or touch stamps its block with the epoch of that
//! moment. A block may be collected only if its stamp is older than the oldest guard that is still held. So a guard costs
//! nothing for each block, and protects a little more than it must: all that anybody put or touched since it was taken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The epochs of a store and the guards that are held.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    epoch: AtomicU32,
    held: Mutex<BTreeMap<u32, usize>>,
}

impl Guards {
    /// The current epoch, for a stamp.
    pub(crate) fn now(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn take(self: &Arc<Self>) -> Guard {
        let mut held = self.held();
        // 2^32 guards would need a year of 130 a second; from then on the last epoch serves all.
        let epoch = self.now().saturating_add(1);
        self.epoch.store(epoch, Ordering::SeqCst);
        *held.entry(epoch).or_default() += 1;
        drop(held);
        Guard {
            guards: Arc::clone(self),
            epoch,
        }
    }

    /// Whether a guard is held that was taken in the epoch of the stamp or before.
    pub(crate) fn protects(&self, stamp: u32) -> bool {
        self.held()
            .first_key_value()
            .is_some_and(|(oldest, _)| stamp >= *oldest)
    }

    pub(crate) fn count(&self) -> usize {
        self.held().values().sum()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, no block is deleted that was put or touched since it was taken.
///
/// Take it before the first put of a DAG and drop it when a pin holds the root.
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
