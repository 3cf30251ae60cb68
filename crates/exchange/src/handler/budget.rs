//! Receive memory: what one connection may hold, and what all connections together may.
//!
//! The length of a message is known before its bytes come, so its memory is taken as a whole or waited for; meanwhile the muxer's
//! window tells the sender to wait. Small messages (wantlists, presences) always pass within a connection's floor. Large ones carry
//! blocks: those of a peer that was asked draw on the pool of the node, those of a peer that was not on a small part of it, so that
//! strangers cannot keep out what was asked for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use super::shared::lock;

/// What every connection may hold without asking the pool, in bytes: many wantlists, or a Kubo's response of 16 KiB a few times.
const FLOOR: usize = 64 * 1024;
/// Strangers get this part of the pool.
const STRANGERS: usize = 4;

/// Receive memory of the node beyond the connections' floors.
#[derive(Debug)]
pub(crate) struct Pool {
    asked: Part,
    strangers: Part,
    /// Somebody waits.
    contended: AtomicBool,
    /// Connections that wait. Each has at most one entry.
    wakers: Mutex<Vec<Waker>>,
}

#[derive(Debug)]
struct Part {
    limit: usize,
    used: AtomicUsize,
}

/// Where the bytes of a share are accounted besides their connection.
#[derive(Clone, Copy)]
enum From {
    Floor,
    Asked,
    Strangers,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            asked: Part::new(limit),
            strangers: Part::new(limit / STRANGERS),
            contended: AtomicBool::new(false),
            wakers: Mutex::default(),
        })
    }

    /// Somebody waits for memory: what does not come forward should be given up.
    pub(crate) fn is_contended(&self) -> bool {
        self.contended.load(Ordering::Relaxed)
    }

    /// Bytes taken beyond the floors.
    pub(crate) fn used(&self) -> usize {
        self.asked.used.load(Ordering::Relaxed) + self.strangers.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize, from: From, cx: &Context<'_>) -> bool {
        let part = match from {
            From::Floor => return true,
            From::Asked => &self.asked,
            From::Strangers => &self.strangers,
        };
        if part.take(bytes) {
            return true;
        }
        {
            let mut wakers = lock(&self.wakers);
            self.contended.store(true, Ordering::Relaxed);
            if !wakers.iter().any(|w| w.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
        }
        // Some may have come back in between.
        part.take(bytes)
    }

    fn give_back(&self, bytes: usize, from: From) {
        let part = match from {
            From::Floor => return,
            From::Asked => &self.asked,
            From::Strangers => &self.strangers,
        };
        part.used.fetch_sub(bytes, Ordering::AcqRel);
        if self.is_contended() {
            let mut wakers = lock(&self.wakers);
            self.contended.store(false, Ordering::Relaxed);
            for waker in wakers.drain(..) {
                waker.wake();
            }
        }
    }
}

impl Part {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// One message is always let through.
    fn take(&self, bytes: usize) -> bool {
        let fits = |used| (used == 0 || used + bytes <= self.limit).then_some(used + bytes);
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .is_ok()
    }
}

/// Receive memory of one connection. A share comes back when its message was processed.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    pool: Arc<Pool>,
    waker: Mutex<Option<Waker>>,
}

impl Budget {
    pub(crate) fn new(limit: usize, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            pool,
            waker: Mutex::new(None),
        })
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Takes `bytes`; `asked` says whether the peer owes us blocks. One message is always let through. `None` registers to be
    /// woken when memory comes back.
    pub(crate) fn take(
        self: &Arc<Self>,
        bytes: usize,
        asked: bool,
        cx: &Context<'_>,
    ) -> Option<Share> {
        if !self.fits(bytes) {
            *lock(&self.waker) = Some(cx.waker().clone());
            // A share may have come back in between.
            if !self.fits(bytes) {
                return None;
            }
        }
        let from = match self.used.load(Ordering::Acquire) + bytes <= FLOOR {
            true => From::Floor,
            false if asked => From::Asked,
            false => From::Strangers,
        };
        if !self.pool.take(bytes, from, cx) {
            return None;
        }
        // Only the connection's own task takes, so the sum cannot have grown in between.
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Some(Share {
            budget: self.clone(),
            bytes,
            from,
        })
    }

    fn fits(&self, bytes: usize) -> bool {
        let used = self.used.load(Ordering::Acquire);
        used == 0 || used + bytes <= self.limit
    }
}

/// A part of a [`Budget`], given back on drop.
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
    from: From,
}

impl Share {
    /// Others wait for memory of the kind that this one holds.
    pub(crate) fn is_contended(&self) -> bool {
        !matches!(self.from, From::Floor) && self.budget.pool().is_contended()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
        if let Some(waker) = lock(&self.budget.waker).take() {
            waker.wake();
        }
        self.budget.pool.give_back(self.bytes, self.from);
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({})", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(futures::task::noop_waker_ref())
    }

    const MIB: usize = 1 << 20;

    /// Threat X1: 500 peers that each send the most they may hold together no more than pool and floors.
    #[test]
    fn x1_many_connections_share_one_pool() {
        let pool = Pool::new(32 * MIB);
        let mut shares = Vec::new();
        for peer in 0..500 {
            let budget = Budget::new(8 * MIB, pool.clone());
            shares.extend(budget.take(FLOOR, false, &cx()));
            for _ in 0..4 {
                shares.extend(budget.take(4 * MIB, peer % 2 == 0, &cx()));
            }
        }
        let held: usize = shares.iter().map(|s| s.bytes).sum();
        assert!(held <= 32 * MIB + 8 * MIB + 500 * FLOOR, "{held}");
        assert_eq!(pool.used(), held - 500 * FLOOR);
        assert!(pool.is_contended());
        shares.clear();
        assert_eq!(pool.used(), 0);
        assert!(!pool.is_contended());
    }

    #[test]
    fn x1_strangers_do_not_keep_out_what_was_asked_for() {
        let pool = Pool::new(32 * MIB);
        let strangers: Vec<_> = (0..100)
            .filter_map(|_| Budget::new(8 * MIB, pool.clone()).take(4 * MIB, false, &cx()))
            .collect();
        assert_eq!(strangers.len(), 2);
        let asked = Budget::new(8 * MIB, pool.clone());
        assert!(asked.take(4 * MIB, true, &cx()).is_some());
    }

    #[test]
    fn a_message_larger_than_the_pool_passes_alone() {
        let pool = Pool::new(MIB);
        let budget = Budget::new(MIB, pool.clone());
        let first = budget.take(4 * MIB, true, &cx()).unwrap();
        assert!(budget.take(4 * MIB, true, &cx()).is_none());
        drop(first);
        assert!(budget.take(4 * MIB, true, &cx()).is_some());
    }
}
