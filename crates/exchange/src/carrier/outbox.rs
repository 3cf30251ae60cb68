//! What waits to be sent to a peer, bounded, shared between the behaviour and the handlers of its connections.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use libp2p_swarm::ConnectionId;

/// Bytes that wait. Beyond it the stream is given up and begun anew, for what is said depends on what was said before (SI-4).
const BYTES: usize = 512 << 10;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Outbox(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    writer: Option<ConnectionId>,
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    overflown: bool,
    /// Of the handler that writes.
    waker: Option<Waker>,
}

impl Outbox {
    /// Queues the body of a message. False if there was no room: the stream breaks off.
    pub(super) fn push(&self, body: Vec<u8>) -> bool {
        let mut inner = self.lock();
        inner.bytes += body.len();
        inner.messages.push_back(body);
        if inner.bytes > BYTES {
            inner.clear();
            inner.overflown = true;
        }
        inner.wake();
        !inner.overflown
    }

    /// Says which connection writes. What waits was for the one before.
    pub(super) fn set_writer(&self, writer: Option<ConnectionId>) {
        let mut inner = self.lock();
        inner.writer = writer;
        inner.clear();
        inner.wake();
    }

    /// Whether this connection writes. Whoever asks is woken when that changes, or when something is to be written.
    pub(super) fn is_writer(&self, connection: ConnectionId, cx: &Context<'_>) -> bool {
        let mut inner = self.lock();
        let is_writer = inner.writer == Some(connection);
        if is_writer || inner.writer.is_none() {
            inner.waker = Some(cx.waker().clone());
        }
        is_writer
    }

    /// The next message, for the connection that writes.
    pub(super) fn next_message(&self) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        let body = inner.messages.pop_front()?;
        inner.bytes -= body.len();
        Some(body)
    }

    /// Whether messages were dropped, so that the stream has to be begun anew.
    pub(super) fn is_overflown(&self) -> bool {
        self.lock().overflown
    }

    /// What waits was for a stream that broke off.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
        self.overflown = false;
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_breaks_the_stream_off() {
        let outbox = Outbox::default();
        assert!(outbox.push(vec![1]));
        assert!(!outbox.push(vec![0; BYTES]));
        assert!(outbox.is_overflown() && outbox.next_message().is_none());
        outbox.forget();
        assert!(outbox.push(vec![2]) && !outbox.is_overflown());
        outbox.set_writer(None);
        assert_eq!(outbox.next_message(), None, "it was for another connection");
    }
}
