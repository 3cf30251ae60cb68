//! What budget and account are synchronised with. `tests/interleavings.rs` puts loom's in this place and goes through all interleavings.

pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard};

use std::sync::PoisonError;

/// Nothing here panics while it holds a lock: a poisoned one is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
