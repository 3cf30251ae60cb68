//! What an application holds: the messages of a topic as a bounded stream, and the fate of a message of its own as a future.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures::channel::oneshot;
use futures::{FutureExt, Stream};

use crate::core::{PublishId, Receipt};
use crate::error::PublishError;
use crate::handler::lock;
use crate::message::{Message, Topic};

/// How a subscription is held, and what happens when its reader is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Most messages that wait to be read. Default 1,024.
    pub messages: usize,
    /// Most bytes of payload of those; at least one message is held. Default 8 MiB. The payload is shared with other subscriptions.
    pub bytes: usize,
    /// Who goes when it is full. Default the oldest.
    pub full: Full,
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            messages: 1024,
            bytes: 8 << 20,
            full: Full::DropOldest,
        }
    }
}

/// Who goes when a subscription is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Full {
    /// The oldest: for readers who want to know how things are.
    #[default]
    DropOldest,
    /// The newest: for readers who want to know how things came.
    DropNewest,
}

/// What a subscription gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are messages")]
pub enum Delivery {
    /// A message.
    Message(Message),
    /// So many messages were dropped at this place because the reader was slow.
    Lagged(u64),
}

/// The messages of one topic, until it is dropped. With the last subscription of a topic the node leaves it.
#[derive(Debug)]
pub struct Subscription {
    topic: Topic,
    queue: Arc<Queue>,
}

impl Subscription {
    /// Of which topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// What is there, without waiting.
    pub fn try_next(&mut self) -> Option<Delivery> {
        lock(&self.queue.inner).pop()
    }

    /// The next delivery; none when gossip has ended or the node left the topic.
    pub async fn recv(&mut self) -> Option<Delivery> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let mut inner = lock(&self.queue.inner);
        match inner.pop() {
            Some(delivery) => Poll::Ready(Some(delivery)),
            None if inner.ended => Poll::Ready(None),
            None => {
                inner.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = lock(&self.queue.inner);
        inner.gone = true;
        inner.items.clear();
        drop(inner);
        self.queue.bell.ring();
    }
}

/// The writing end.
pub(crate) struct Sender(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    inner: Mutex<Inner>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Inner {
    buffer: Buffer,
    items: VecDeque<Delivery>,
    messages: usize,
    bytes: usize,
    /// Dropped in front of all items.
    lagged: u64,
    reader: Option<Waker>,
    /// The reader is.
    gone: bool,
    /// The writer is.
    ended: bool,
}

pub(crate) fn channel(topic: Topic, buffer: Buffer, bell: Arc<Bell>) -> (Sender, Subscription) {
    let inner = Mutex::new(Inner {
        buffer,
        items: VecDeque::new(),
        messages: 0,
        bytes: 0,
        lagged: 0,
        reader: None,
        gone: false,
        ended: false,
    });
    let queue = Arc::new(Queue { inner, bell });
    (Sender(queue.clone()), Subscription { topic, queue })
}

impl Sender {
    /// Hands a message over; returns how many were dropped for it.
    pub(crate) fn send(&self, message: Message) -> u64 {
        let mut inner = lock(&self.0.inner);
        if inner.gone {
            return 0;
        }
        let dropped = inner.push(message);
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
        dropped
    }

    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.0.inner).gone
    }

    /// Messages and bytes that wait.
    pub(crate) fn load(&self) -> (usize, usize) {
        let inner = lock(&self.0.inner);
        (inner.messages, inner.bytes)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut inner = lock(&self.0.inner);
        inner.ended = true;
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Inner {
    fn pop(&mut self) -> Option<Delivery> {
        if self.lagged > 0 {
            return Some(Delivery::Lagged(std::mem::take(&mut self.lagged)));
        }
        let item = self.items.pop_front()?;
        if let Delivery::Message(message) = &item {
            self.messages -= 1;
            self.bytes -= message.data.len();
        }
        Some(item)
    }

    fn has_room(&self, len: usize) -> bool {
        self.messages == 0
            || (self.messages < self.buffer.messages && self.bytes + len <= self.buffer.bytes)
    }

    fn push(&mut self, message: Message) -> u64 {
        let len = message.data.len();
        let mut dropped = 0;
        if self.buffer.full == Full::DropNewest && !self.has_room(len) {
            match self.items.back_mut() {
                Some(Delivery::Lagged(n)) => *n += 1,
                _ => self.items.push_back(Delivery::Lagged(1)),
            }
            return 1;
        }
        while !self.has_room(len) {
            match self.items.pop_front() {
                Some(Delivery::Message(oldest)) => {
                    self.messages -= 1;
                    self.bytes -= oldest.data.len();
                    dropped += 1;
                }
                Some(Delivery::Lagged(n)) => self.lagged += n,
                None => break,
            }
        }
        self.lagged += dropped;
        self.messages += 1;
        self.bytes += len;
        self.items.push_back(Delivery::Message(message));
        dropped
    }
}

/// Has the behaviour look after what applications dropped.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    inner: Mutex<BellInner>,
}

#[derive(Debug, Default)]
struct BellInner {
    rung: bool,
    /// Futures of these were dropped. Bounded by the number of own messages on their way.
    withdrawn: Vec<PublishId>,
    waker: Option<Waker>,
}

impl Bell {
    fn ring(&self) {
        let mut inner = lock(&self.inner);
        inner.rung = true;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    fn withdraw(&self, publish: PublishId) {
        lock(&self.inner).withdrawn.push(publish);
        self.ring();
    }

    /// What was withdrawn, if it rang.
    pub(crate) fn heard(&self, waker: &Waker) -> Option<Vec<PublishId>> {
        let mut inner = lock(&self.inner);
        match &mut inner.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        let rung = std::mem::take(&mut inner.rung);
        rung.then(|| std::mem::take(&mut inner.withdrawn))
    }
}

/// What becomes of a message of one's own. Resolves when neighbours' lanes took it, or with why they did not, and never later than its
/// [`crate::Mode`] says.
///
/// A message that waits is given up when its future is dropped; see [`Publishing::detach`].
#[derive(Debug)]
#[must_use = "a message that waits is given up when this is dropped: await it, or detach it"]
pub struct Publishing {
    id: PublishId,
    answer: Option<oneshot::Receiver<Result<Receipt, PublishError>>>,
    bell: Arc<Bell>,
}

impl Publishing {
    pub(crate) fn new(
        id: PublishId,
        answer: oneshot::Receiver<Result<Receipt, PublishError>>,
        bell: Arc<Bell>,
    ) -> Self {
        Self {
            id,
            answer: Some(answer),
            bell,
        }
    }

    /// Lets the message go its way without anybody who wants to know.
    pub fn detach(mut self) {
        self.answer = None;
    }
}

impl Future for Publishing {
    type Output = Result<Receipt, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Err(PublishError::Closed));
        };
        let result = futures::ready!(answer.poll_unpin(cx));
        self.answer = None;
        Poll::Ready(result.unwrap_or(Err(PublishError::Closed)))
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.bell.withdraw(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;

    fn message(n: u8, len: usize) -> Message {
        Message {
            id: MessageId::new(vec![n]),
            source: None,
            seqno: None,
            topic: Topic::new("t").unwrap(),
            data: vec![n; len].into(),
            received_from: None,
        }
    }

    fn read(subscription: &mut Subscription) -> Vec<Result<u8, u64>> {
        std::iter::from_fn(|| subscription.try_next())
            .map(|delivery| match delivery {
                Delivery::Message(message) => Ok(message.data[0]),
                Delivery::Lagged(n) => Err(n),
            })
            .collect()
    }

    fn pair(messages: usize, bytes: usize, full: Full) -> (Sender, Subscription) {
        let buffer = Buffer {
            messages,
            bytes,
            full,
        };
        channel(Topic::new("t").unwrap(), buffer, Arc::default())
    }

    #[test]
    fn a_slow_reader_is_told_where_and_how_many() {
        let (sender, mut subscription) = pair(3, 1000, Full::DropOldest);
        for n in 1..=7 {
            sender.send(message(n, 10));
        }
        assert_eq!(read(&mut subscription), [Err(4), Ok(5), Ok(6), Ok(7)]);

        let (sender, mut subscription) = pair(3, 1000, Full::DropNewest);
        for n in 1..=7 {
            sender.send(message(n, 10));
        }
        assert_eq!(
            subscription.try_next(),
            Some(Delivery::Message(message(1, 10)))
        );
        sender.send(message(8, 10));
        assert_eq!(read(&mut subscription), [Ok(2), Ok(3), Err(4), Ok(8)]);
    }

    #[test]
    fn bytes_are_bounded_too_and_one_message_always_fits() {
        let (sender, mut subscription) = pair(100, 100, Full::DropOldest);
        sender.send(message(1, 60));
        sender.send(message(2, 60));
        sender.send(message(3, 500));
        assert_eq!(sender.load(), (1, 500));
        assert_eq!(read(&mut subscription), [Err(2), Ok(3)]);
        assert_eq!(sender.load(), (0, 0));
    }
}
