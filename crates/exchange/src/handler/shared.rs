//! What the behaviour and the handlers of one peer share. Messages go through here and not through the swarm's event
//! channel: a full channel of one connection would stop every behaviour of the node.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use libp2p_swarm::ConnectionId;

use super::sync::lock;
use crate::config::Line;
use crate::core::{Lane, SpareStream, Time};
use crate::wire::Message;

/// Messages to one peer and what its connections report without an event.
#[derive(Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    /// The connection is worth keeping.
    busy: AtomicBool,
    /// When the last byte of a large unfinished message was read, in milliseconds since start.
    read_at: AtomicU64,
    /// Bytes of such messages that were not told of.
    read: AtomicUsize,
    /// The peer is reached without the uplink.
    near: AtomicBool,
}

#[derive(Default)]
struct Inner {
    /// At most one message: the core waits for its `RequestSent`.
    requests: VecDeque<Message>,
    /// At most two messages and 1 MiB: the core waits for credit.
    responses: VecDeque<Message>,
    /// What is on its way as a response is to be dropped.
    give_up: bool,
    /// Responses go on a new stream.
    renew: bool,
    /// What to do with a second request stream.
    spare: Option<SpareStream>,
    /// The one connection that writes.
    writer: Option<ConnectionId>,
    held: Held,
    wakers: HashMap<ConnectionId, Waker>,
}

/// For how long a budget kept us from writing a response.
#[derive(Default)]
struct Held {
    /// Not told of yet.
    time: Duration,
    since: Option<Time>,
}

impl Outbox {
    pub(crate) fn push(&self, lane: Lane, message: Message) {
        let mut inner = lock(&self.inner);
        inner.queue(lane).push_back(message);
        inner.wake_writer();
    }

    /// A response that was not written goes to the front for the connection that writes next.
    pub(crate) fn give_back(&self, message: Message) {
        let mut inner = lock(&self.inner);
        inner.responses.push_front(message);
        inner.wake_writer();
    }

    /// Has the connection that writes drop all responses.
    pub(crate) fn give_up_responses(&self) {
        let mut inner = lock(&self.inner);
        inner.give_up = true;
        inner.wake_writer();
    }

    /// The responses that `connection` is to drop, beside the one that it writes.
    pub(crate) fn take_given_up(&self, connection: ConnectionId) -> Option<VecDeque<Message>> {
        let mut inner = lock(&self.inner);
        if inner.writer != Some(connection) || !std::mem::take(&mut inner.give_up) {
            return None;
        }
        Some(std::mem::take(&mut inner.responses))
    }

    /// Has the connection that writes go on with responses on a new stream.
    pub(crate) fn renew_responses(&self) {
        let mut inner = lock(&self.inner);
        inner.renew = true;
        inner.wake_writer();
    }

    /// Whether `connection` is to go on with responses on a new stream.
    pub(crate) fn take_renewed(&self, connection: ConnectionId) -> bool {
        let mut inner = lock(&self.inner);
        inner.writer == Some(connection) && std::mem::take(&mut inner.renew)
    }

    /// Has the connection that writes open, use or drop a second request stream. What was meant for the first is dropped when the
    /// second is used: the core repeats it.
    pub(crate) fn set_spare(&self, action: SpareStream) {
        let mut inner = lock(&self.inner);
        if action == SpareStream::Use {
            inner.requests.clear();
        }
        inner.spare = Some(action);
        inner.wake_writer();
    }

    /// What `connection` is to do with a second request stream.
    pub(crate) fn take_spare(&self, connection: ConnectionId) -> Option<SpareStream> {
        let mut inner = lock(&self.inner);
        match inner.writer == Some(connection) {
            true => inner.spare.take(),
            false => None,
        }
    }

    /// Chooses the connection that writes. What was meant for the old request stream is dropped: the core repeats it.
    pub(crate) fn set_writer(&self, writer: Option<ConnectionId>) {
        let mut inner = lock(&self.inner);
        inner.writer = writer;
        inner.requests.clear();
        (inner.renew, inner.spare) = (false, None);
        inner.wake_writer();
    }

    /// The peer is gone: nothing is left for whoever comes later.
    pub(crate) fn clear(&self) {
        let mut inner = lock(&self.inner);
        inner.requests.clear();
        inner.responses.clear();
        inner.give_up = false;
        (inner.renew, inner.spare) = (false, None);
        inner.writer = None;
    }

    pub(crate) fn forget(&self, connection: ConnectionId) {
        lock(&self.inner).wakers.remove(&connection);
    }

    /// The next message, if `connection` is the one that writes. Registers to be woken otherwise.
    pub(crate) fn pop(
        &self,
        connection: ConnectionId,
        lane: Lane,
        cx: &Context<'_>,
    ) -> Option<Message> {
        let mut inner = lock(&self.inner);
        if inner.writer == Some(connection)
            && let Some(message) = inner.queue(lane).pop_front()
        {
            return Some(message);
        }
        match inner.wakers.get_mut(&connection) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                inner.wakers.insert(connection, cx.waker().clone());
            }
        }
        None
    }

    /// Says by which line the peer is reached; the far one, before.
    pub(crate) fn set_line(&self, line: Line) {
        self.near.store(line == Line::Near, Ordering::Relaxed);
    }

    pub(crate) fn line(&self) -> Line {
        match self.near.load(Ordering::Relaxed) {
            true => Line::Near,
            false => Line::Far,
        }
    }

    /// From now on a budget keeps us from writing a response.
    pub(crate) fn hold(&self, now: Time) {
        lock(&self.inner).held.since = Some(now);
    }

    /// It is written again.
    pub(crate) fn go_on(&self, now: Time) {
        let held = &mut lock(&self.inner).held;
        held.time += held
            .since
            .take()
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
    }

    /// For how long that was so since the last call.
    pub(crate) fn take_held(&self, now: Time) -> Duration {
        let held = &mut lock(&self.inner).held;
        let mut time = std::mem::take(&mut held.time);
        if let Some(since) = &mut held.since {
            time += now.saturating_sub(*since);
            *since = now.max(*since);
        }
        time
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        if self.busy.swap(busy, Ordering::Relaxed) != busy {
            // The swarm asks whether to keep the connection only when its task runs.
            lock(&self.inner).wake_all();
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    pub(crate) fn read(&self, at: Time, bytes: usize) {
        self.read_at
            .fetch_max(at.as_millis() as u64, Ordering::Relaxed);
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn read_at(&self) -> Time {
        Duration::from_millis(self.read_at.load(Ordering::Relaxed))
    }

    /// When the last byte of a large message was read, if any ever was, and how many since the last call.
    pub(crate) fn take_read(&self) -> Option<(Time, usize)> {
        let at = self.read_at();
        (!at.is_zero()).then(|| (at, self.read.swap(0, Ordering::Relaxed)))
    }
}

impl Inner {
    fn queue(&mut self, lane: Lane) -> &mut VecDeque<Message> {
        match lane {
            Lane::Request => &mut self.requests,
            Lane::Response => &mut self.responses,
        }
    }

    fn wake_writer(&self) {
        if let Some(waker) = self.writer.and_then(|writer| self.wakers.get(&writer)) {
            waker.wake_by_ref();
        }
    }

    fn wake_all(&self) {
        for waker in self.wakers.values() {
            waker.wake_by_ref();
        }
    }
}

/// The one clock of the driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> Time {
        self.0.elapsed()
    }
}
