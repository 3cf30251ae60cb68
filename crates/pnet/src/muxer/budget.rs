//! What may lie unread on all connections together, and who has to wait when it is exceeded.
//!
//! A connection with little unread is always read: pings, acknowledgements and an honest peer whose streams are taken promptly pass
//! through a full budget. One with more is read only while the node as a whole is below its limit; the kernel's buffer and the
//! remote's window then hold the rest. It goes on when its own streams were read, or others' were.

use std::{sync::Arc, task::Waker};

use super::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, fence, lock};

/// What each connection may have unread without asking, in bytes.
pub(super) const FLOOR: usize = 64 * 1024;
const DEFAULT_LIMIT: usize = 32 * 1024 * 1024;
/// Streams of all connections together, beyond which a connection that has more than its floor gets no further one. An open stream costs
/// about 1 KiB with nothing on it (measured), so this is 32 MiB: 64 Kubo nodes with all the streams they may have.
pub(super) const STREAMS: usize = 32 * 1024;
/// Streams that each connection may have without asking.
pub(super) const STREAMS_FLOOR: usize = 64;

/// A limit for bytes that were received and not read, shared by all connections of the transports that were given clones of it.
///
/// Together they hold at most the limit, one read (64 KiB) a connection above it, and 64 KiB for each connection. It counts their streams as
/// well: 32,768, and 64 for each connection.
#[derive(Clone, Debug)]
pub struct ReceiveBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    used: AtomicUsize,
    streams: AtomicUsize,
    /// Somebody waits. Set before `used` is looked at once more, and looked at after `used` was lowered, each with a fence in between: or each
    /// side could miss the other on a machine that lets a load pass a store.
    contended: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl ReceiveBudget {
    /// At most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            used: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            contended: AtomicBool::new(false),
            wakers: Mutex::default(),
        }))
    }

    /// Bytes received and not read at the moment.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Acquire)
    }

    /// Streams open at the moment, on all connections.
    pub fn streams(&self) -> usize {
        self.0.streams.load(Ordering::Acquire)
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    pub(super) fn add_stream(&self) {
        self.0.streams.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn forget_streams(&self, count: usize) {
        self.0.streams.fetch_sub(count, Ordering::AcqRel);
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.used() > self.limit()
    }

    pub(super) fn add(&self, bytes: usize) {
        self.0.used.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if self.0.contended.load(Ordering::Relaxed) && !self.is_exceeded() {
            let woken = {
                let mut wakers = lock(&self.0.wakers);
                self.0.contended.store(false, Ordering::Relaxed);
                std::mem::take(&mut *wakers)
            };
            // Without the lock: the last waker of a task may end it, and with it a connection.
            woken.into_iter().for_each(Waker::wake);
        }
    }

    /// To be woken when the limit is kept again. Look once more afterwards.
    pub(super) fn wait(&self, waker: &Waker) {
        {
            let mut wakers = lock(&self.0.wakers);
            self.0.contended.store(true, Ordering::Relaxed);
            if !wakers.iter().any(|w| w.will_wake(waker)) {
                wakers.push(waker.clone());
            }
        }
        fence(Ordering::SeqCst);
    }
}

impl Default for ReceiveBudget {
    fn default() -> Self {
        Self::new(DEFAULT_LIMIT)
    }
}
