//! What waits to be sent to a peer, bounded, shared between the behaviour and the handlers of its connections.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use libp2p_swarm::ConnectionId;

use crate::name::Name;

/// Messages that wait; beyond it the oldest goes. A peer that misses one is compared with again within minutes (specs/names.md NA-22).
const MESSAGES: usize = 64;
/// Bytes of those.
const BYTES: usize = 256 << 10;
/// Questions that wait.
const QUESTIONS: usize = 64;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    writer: Option<ConnectionId>,
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    questions: VecDeque<Name>,
    /// Of the handler that writes.
    waker: Option<Waker>,
}

impl Outbox {
    /// Queues the body of a message; returns how many gave way to it.
    pub(crate) fn push(&self, body: Vec<u8>) -> u64 {
        let mut inner = self.lock();
        inner.bytes += body.len();
        inner.messages.push_back(body);
        let mut dropped = 0;
        while inner.messages.len() > MESSAGES || inner.bytes > BYTES {
            let Some(oldest) = inner.messages.pop_front() else {
                break;
            };
            inner.bytes -= oldest.len();
            dropped += 1;
        }
        inner.wake();
        dropped
    }

    /// Queues a question; gives back the one that has no room.
    pub(crate) fn ask(&self, name: Name) -> Option<Name> {
        let mut inner = self.lock();
        if inner.questions.len() >= QUESTIONS {
            return Some(name);
        }
        inner.questions.push_back(name);
        inner.wake();
        None
    }

    /// Says which connection writes. What waits is for the one before and is dropped; returns the questions that were never asked.
    pub(crate) fn set_writer(&self, writer: Option<ConnectionId>) -> VecDeque<Name> {
        let mut inner = self.lock();
        inner.wake();
        let is_first = inner.writer.is_none();
        inner.writer = writer;
        if is_first {
            return VecDeque::new();
        }
        inner.messages.clear();
        inner.bytes = 0;
        std::mem::take(&mut inner.questions)
    }

    /// Whether this connection writes. Whoever asks is woken when that changes, or when something is to be written.
    pub(crate) fn is_writer(&self, connection: ConnectionId, cx: &Context<'_>) -> bool {
        let mut inner = self.lock();
        let is_writer = inner.writer == Some(connection);
        if is_writer || inner.writer.is_none() {
            inner.waker = Some(cx.waker().clone());
        }
        is_writer
    }

    /// The next message, for the connection that writes.
    pub(crate) fn next_message(&self) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        let body = inner.messages.pop_front()?;
        inner.bytes -= body.len();
        Some(body)
    }

    /// The next question, likewise.
    pub(crate) fn next_question(&self) -> Option<Name> {
        self.lock().questions.pop_front()
    }

    /// What waits was for a stream that broke off: the owner tells it anew.
    pub(crate) fn forget_messages(&self) {
        let mut inner = self.lock();
        inner.messages.clear();
        inner.bytes = 0;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
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
    fn the_oldest_gives_way_and_what_waits_goes_with_its_connection() {
        let outbox = Outbox::default();
        let (one, two) = (
            ConnectionId::new_unchecked(1),
            ConnectionId::new_unchecked(2),
        );
        assert!(outbox.set_writer(Some(one)).is_empty());
        let dropped: u64 = (0..=MESSAGES).map(|n| outbox.push(vec![n as u8])).sum();
        assert_eq!(dropped, 1);
        assert_eq!(outbox.next_message(), Some(vec![1]));
        assert_eq!(outbox.push(vec![0; BYTES]), MESSAGES as u64 - 1);
        let name = Name::from(libp2p_identity::PeerId::random());
        assert!((0..QUESTIONS).all(|_| outbox.ask(name).is_none()));
        assert_eq!(outbox.ask(name), Some(name));
        assert_eq!(outbox.set_writer(Some(two)).len(), QUESTIONS);
        assert_eq!(
            (outbox.next_message(), outbox.next_question()),
            (None, None)
        );
    }
}
