//! What the behaviour and the handlers of one peer share. Frames go through here and not through the swarm's event channel: a full
//! channel of one connection would stop every behaviour of the node.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use libp2p_swarm::ConnectionId;

use crate::wire::Frame;

/// Names one stream to a peer, so that nothing of an old one is taken for news of the present one.
pub(crate) type Epoch = u64;

/// Frames to one peer, and which stream they go on.
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    /// The connection is worth keeping.
    busy: AtomicBool,
}

#[derive(Default)]
struct Inner {
    /// At most two: the core waits for its `Written`.
    frames: VecDeque<Frame>,
    epoch: Epoch,
    /// The connection that is to have the stream of this epoch; none while there is to be no stream.
    writer: Option<ConnectionId>,
    /// One for each connection.
    wakers: HashMap<ConnectionId, Waker>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            busy: AtomicBool::new(true),
        }
    }
}

impl Outbox {
    /// Has a connection open a stream. What was meant for an older one is dropped.
    pub(crate) fn open(&self, on: ConnectionId) -> Epoch {
        let mut inner = lock(&self.inner);
        inner.begin(Some(on));
        inner.epoch
    }

    /// Has the stream reset, and drops what was meant for it.
    pub(crate) fn reset(&self) {
        lock(&self.inner).begin(None);
    }

    pub(crate) fn push(&self, frame: Frame) {
        let mut inner = lock(&self.inner);
        inner.frames.push_back(frame);
        inner.wake_writer();
    }

    /// The stream that `connection` is to have. Registers it to be woken when that changes, or there is a frame.
    pub(crate) fn look(&self, connection: ConnectionId, cx: &Context<'_>) -> Option<Epoch> {
        let mut inner = lock(&self.inner);
        match inner.wakers.get_mut(&connection) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                inner.wakers.insert(connection, cx.waker().clone());
            }
        }
        (inner.writer == Some(connection)).then_some(inner.epoch)
    }

    /// The next frame of this stream.
    pub(crate) fn pop(&self, epoch: Epoch) -> Option<Frame> {
        let mut inner = lock(&self.inner);
        if inner.epoch != epoch {
            return None;
        }
        inner.frames.pop_front()
    }

    /// The connection is gone.
    pub(crate) fn forget(&self, connection: ConnectionId) {
        lock(&self.inner).wakers.remove(&connection);
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        if self.busy.swap(busy, Ordering::Relaxed) != busy {
            // The swarm asks whether to keep the connection only when its task runs.
            for waker in lock(&self.inner).wakers.values() {
                waker.wake_by_ref();
            }
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn begin(&mut self, writer: Option<ConnectionId>) {
        self.wake_writer();
        self.epoch += 1;
        self.writer = writer;
        self.frames.clear();
        self.wake_writer();
    }

    fn wake_writer(&self) {
        if let Some(waker) = self.writer.and_then(|writer| self.wakers.get(&writer)) {
            waker.wake_by_ref();
        }
    }
}

/// Nothing here panics while it holds a lock, and every value stays consistent: a poisoned lock is as good as any.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
