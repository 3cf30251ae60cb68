//! Memory for frames on their way in: what all connections together may hold (specs/gossip.md GO-23).
//!
//! Small frames lie in the buffer of their connection, 32 KiB at most. The memory of a larger one is taken as a whole when its length is
//! read, or waited for; meanwhile the muxer's window tells the sender to wait. So nobody who has begun waits for another who has begun, and
//! all of them end: in time, or by being given up. Who never finished a large frame shares half of it with all others of that kind: any
//! number of peers that begin and stop do not keep out those that are known to finish.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use super::shared::lock;

/// What all large frames on their way in may take.
#[derive(Debug)]
pub(crate) struct Pool {
    proven: Part,
    newcomers: Part,
    /// Connections that wait, each once at most.
    wakers: Mutex<Vec<Waker>>,
}

#[derive(Debug)]
struct Part {
    limit: usize,
    used: AtomicUsize,
    /// Somebody waits for it.
    contended: AtomicBool,
}

/// Memory of one frame, given back on drop.
#[derive(Debug)]
pub struct Share {
    pool: Arc<Pool>,
    bytes: usize,
    proven: bool,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            proven: Part::new(limit - limit / 2),
            newcomers: Part::new(limit / 2),
            wakers: Mutex::default(),
        })
    }

    /// Takes memory for a frame; none registers to be woken when some comes back. One frame is always let through.
    pub(crate) fn take(
        self: &Arc<Self>,
        bytes: usize,
        proven: bool,
        cx: &Context<'_>,
    ) -> Option<Share> {
        let part = self.part(proven);
        if !part.take(bytes) {
            let mut wakers = lock(&self.wakers);
            part.contended.store(true, Ordering::Release);
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            drop(wakers);
            // Some may have come back in between.
            if !part.take(bytes) {
                return None;
            }
        }
        Some(Share {
            pool: self.clone(),
            bytes,
            proven,
        })
    }

    /// Bytes that are taken.
    pub(crate) fn used(&self) -> usize {
        let of = |part: &Part| part.used.load(Ordering::Acquire);
        of(&self.proven) + of(&self.newcomers)
    }

    fn part(&self, proven: bool) -> &Part {
        match proven {
            true => &self.proven,
            false => &self.newcomers,
        }
    }
}

impl Part {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            contended: AtomicBool::new(false),
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used| (used == 0 || used + bytes <= self.limit).then_some(used + bytes);
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .is_ok()
    }
}

impl Share {
    /// Others wait for memory of this kind.
    pub(crate) fn is_contended(&self) -> bool {
        self.pool
            .part(self.proven)
            .contended
            .load(Ordering::Acquire)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let part = self.pool.part(self.proven);
        part.used.fetch_sub(self.bytes, Ordering::AcqRel);
        let mut wakers = lock(&self.pool.wakers);
        for part in [&self.pool.proven, &self.pool.newcomers] {
            part.contended.store(false, Ordering::Release);
        }
        let waiting = std::mem::take(&mut *wakers);
        drop(wakers);
        for waker in waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn go_23_newcomers_take_half_and_leave_the_rest_to_those_who_finish() {
        let pool = Pool::new(8 * MIB);
        let newcomers: Vec<_> = (0..500)
            .filter_map(|_| pool.take(MIB, false, &cx()))
            .collect();
        assert_eq!((newcomers.len(), pool.used()), (4, 4 * MIB));
        assert!(newcomers[0].is_contended());
        let known: Vec<_> = (0..500)
            .filter_map(|_| pool.take(MIB, true, &cx()))
            .collect();
        assert_eq!((known.len(), pool.used()), (4, 8 * MIB));
        drop(newcomers);
        assert!(pool.take(MIB, false, &cx()).is_some());
        drop(known);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_frame_larger_than_the_pool_passes_alone() {
        let pool = Pool::new(MIB / 4);
        let first = pool.take(MIB, false, &cx()).unwrap();
        assert!(!first.is_contended());
        assert!(pool.take(MIB, false, &cx()).is_none());
        assert!(first.is_contended());
        drop(first);
        assert!(pool.take(MIB, false, &cx()).is_some());
    }
}
