//! Closed while the owner does not release found blocks: no connection starts to read another message.

use std::sync::Arc;
use std::task::Context;

use super::sync::{AtomicBool, Mutex, Ordering, lock};
use super::wakers::{Place, Wakers};

/// One for all connections of the node.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    /// Of the streams that have a message to read.
    wakers: Mutex<Wakers>,
}

impl Gate {
    pub(crate) fn set(&self, closed: bool) {
        self.closed.store(closed, Ordering::Release);
        if !closed {
            let woken = lock(&self.wakers).take();
            woken.for_each(std::task::Waker::wake);
        }
    }
}

/// Where one stream waits before the gate. Left when it is dropped.
#[derive(Debug)]
pub(crate) struct Queue {
    gate: Arc<Gate>,
    place: Place,
}

impl Queue {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            place: Place::default(),
        }
    }

    /// Whether the stream may go on; it is woken otherwise when it may.
    pub(crate) fn is_open(&mut self, cx: &Context<'_>) -> bool {
        if !self.gate.closed.load(Ordering::Acquire) {
            return true;
        }
        let mut wakers = lock(&self.gate.wakers);
        // Whoever opens it takes the wakers after that: with this lock held it is seen here, or sees us.
        if !self.gate.closed.load(Ordering::Acquire) {
            return true;
        }
        wakers.wait(&mut self.place, cx.waker());
        false
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.place.is_used() {
            lock(&self.gate.wakers).leave(&mut self.place);
        }
    }
}
