//! The stream from the peer: RPCs one after the other until its end. Copies of known messages end here.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, FutureExt};

use super::clock::{Clock, Sleep};
use super::receive::{Place, Pool, Share};
use super::shared::lock;
use crate::Time;
use crate::seen::{Seen, Source};
use crate::wire::{Reader, Received, WireError, read_length};

/// Reads RPCs, digests and looks up their messages, on the connection's task.
pub(crate) struct Inbound<S> {
    stream: S,
    /// What was read and belongs to no complete frame yet.
    buffer: BytesMut,
    /// Length of the frame that is being read, once it is known.
    frame: Option<usize>,
    /// Memory of a large one, and where it is had.
    share: Option<Share>,
    place: Place,
    /// There is none for it now: nothing is read meanwhile.
    waits: bool,
    reader: Reader,
    shared: Shared,
    /// Over a frame that is incomplete.
    watch: Option<Watch>,
    /// Reading rests: too much of the peer waits for a verdict.
    pause: Option<Sleep>,
    /// New messages of frames that hold nothing else, to go up in one piece.
    batch: Option<Box<Received>>,
    /// Memory of those frames.
    shares: Vec<Share>,
    since: Time,
    ended: Option<InboundError>,
}

/// A slow peer must not hold memory for ever: a frame must be complete in time, and come forward while others wait for memory.
struct Watch {
    begun: Time,
    /// Bytes that were there at the last look.
    seen: usize,
    look: Sleep,
}

/// What all inbound streams of a connection share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) source: Source,
    pub(crate) clock: Clock,
    pub(crate) receive: Arc<Pool>,
    /// The connection finished a large frame before.
    pub(crate) proven: Arc<AtomicBool>,
}

/// Why a stream is not read any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InboundError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the stream ended")]
    End,
    #[error("the stream ended in the middle of an RPC")]
    Truncated,
    #[error("an RPC was not complete in time")]
    TooSlow,
    #[error("others wait for the memory that an incomplete RPC holds")]
    Crowded,
    #[error("the peer is banned")]
    Banned,
    #[error("the stream broke: {0}")]
    Io(std::io::Error),
}

impl InboundError {
    /// Whether the peer is to blame, and not the network.
    pub(crate) fn is_malformed(&self) -> bool {
        matches!(self, Self::Wire(_))
    }
}

/// What a stream gave.
pub(crate) enum Item {
    /// Something for the core, when it was there, and the memory that it takes.
    Received(Box<Received>, Time, Vec<Share>),
    /// No more comes.
    Ended(InboundError),
}

/// Read at a time. Frames up to this size lie in a buffer with others; what is kept of them is copied out.
const CHUNK: usize = 16 * 1024;
/// Read at one go, before the connection does something else.
const TURN: usize = 256 * 1024;
/// New messages that go up in one piece.
const BATCH: usize = 64;
/// Longest rest.
const REST: Duration = Duration::from_millis(250);
/// How often it is looked at who holds memory that others wait for, and what must have come since: 100 kbit/s.
const LOOK: Duration = Duration::from_secs(2);
const FORWARD: usize = 25_000;
/// While others wait, the one that has held memory longest gives it up after this, though it comes forward: a few that take all the time that
/// they may would keep out everybody else. 1 MiB at 1.4 Mbit/s.
const TERM: Duration = Duration::from_secs(6);

thread_local! {
    /// Where streams read into: cleared once and not for each read.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

impl<S: AsyncRead + Unpin> Inbound<S> {
    pub(crate) fn new(stream: S, shared: Shared) -> Self {
        let digester = lock(&shared.seen).digester();
        Self {
            stream,
            buffer: BytesMut::new(),
            frame: None,
            share: None,
            place: shared.receive.place(shared.source),
            waits: false,
            reader: Reader::new(digester),
            shared,
            watch: None,
            pause: None,
            batch: None,
            shares: Vec::new(),
            since: Time::ZERO,
            ended: None,
        }
    }

    /// After [`Item::Ended`] it is not to be polled again, but dropped, which resets the stream.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        let mut turn = 0;
        loop {
            if self.ended.is_none()
                && let Err(error) = self.take_frames(cx)
            {
                self.ended = Some(error);
            }
            if let Some(received) = self.take_batch() {
                return Poll::Ready(received);
            }
            if let Some(error) = self.ended.take() {
                return Poll::Ready(Item::Ended(error));
            }
            if self.pause.is_some() || self.waits {
                return Poll::Pending;
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.fill(cx) {
                Poll::Ready(Ok(n)) => turn += n,
                Poll::Ready(Err(error)) => self.ended = Some(error),
                Poll::Pending => self.ended = Some(futures::ready!(self.poll_watch(cx))),
            }
        }
    }

    /// Goes through the complete frames, until one of them has more than new messages in it.
    fn take_frames(&mut self, cx: &mut Context<'_>) -> Result<(), InboundError> {
        while self.may_read(cx)? {
            if !self.take_run()? {
                let Some(frame) = self.next_frame(cx)? else {
                    break;
                };
                self.on_frame(&frame)?;
            }
            let full =
                |batch: &Received| batch.candidates.len() >= BATCH || !holds_only_messages(batch);
            if self.batch.as_deref().is_some_and(full) {
                break;
            }
        }
        Ok(())
    }

    /// Goes through the small frames that come first and hold nothing but messages. False if there is none.
    fn take_run(&mut self) -> Result<bool, InboundError> {
        if self.frame.is_some() || self.reader.scan_run(&self.buffer) == 0 {
            return Ok(false);
        }
        let (used, now) = self.sight(Reader::sight_run)?;
        let received = self.reader.finish_run(&self.buffer);
        self.buffer.advance(used);
        self.watch = None;
        self.keep(received, now, None);
        Ok(true)
    }

    fn on_frame(&mut self, frame: &Bytes) -> Result<(), InboundError> {
        // Held until the core took what is in it.
        let share = self.share.take();
        self.reader.scan(frame)?;
        if share.is_some() {
            self.shared.proven.store(true, Ordering::Relaxed);
        }
        let ((), now) = self.sight(Reader::sight)?;
        let mut received = self.reader.finish(frame);
        if frame.len() <= CHUNK {
            // The buffer holds other frames too: a message that is kept must not keep them.
            for candidate in &mut received.candidates {
                let field = &mut candidate.message.field;
                *field = Bytes::copy_from_slice(field);
            }
        }
        self.keep(received, now, share);
        Ok(())
    }

    /// Looks up what the reader found. No more is read for a while when too much of the peer waits for a verdict.
    fn sight<T>(
        &mut self,
        look: impl FnOnce(&mut Reader, &mut Seen, Source, Time) -> T,
    ) -> Result<(T, Time), InboundError> {
        let (source, now) = (self.shared.source, self.shared.clock.now());
        let mut seen = lock(&self.shared.seen);
        let found = look(&mut self.reader, &mut seen, source, now);
        if !seen.admits(source) {
            return Err(InboundError::Banned);
        }
        if seen.room(source) == 0 {
            self.pause = Some(self.shared.clock.sleep(REST));
        }
        Ok((found, now))
    }

    fn keep(&mut self, received: Received, now: Time, share: Option<Share>) {
        if received.is_empty() {
            return;
        }
        self.shares.extend(share);
        match &mut self.batch {
            Some(batch) => append(batch, received),
            None => {
                self.since = now;
                self.batch = Some(Box::new(received));
            }
        }
    }

    /// The next complete frame.
    fn next_frame(&mut self, cx: &Context<'_>) -> Result<Option<Bytes>, InboundError> {
        let len = match self.frame {
            Some(len) => len,
            None => {
                let Some((len, at)) = read_length(&self.buffer)? else {
                    return Ok(None);
                };
                if len <= CHUNK && self.buffer.len() < at + len {
                    // Its length stays in front of it, so that it can begin a run.
                    return Ok(None);
                }
                let _ = self.buffer.split_to(at);
                self.frame = Some(len);
                len
            }
        };
        if len > CHUNK && self.share.is_none() && !self.make_room(len, cx) {
            return Ok(None);
        }
        if self.buffer.len() < len {
            return Ok(None);
        }
        (self.frame, self.watch) = (None, None);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Takes memory for a large frame. False if there is none now.
    fn make_room(&mut self, len: usize, cx: &Context<'_>) -> bool {
        let proven = self.shared.proven.load(Ordering::Relaxed);
        self.share = self.place.take(len, proven, cx);
        self.waits = self.share.is_none();
        if self.waits {
            return false;
        }
        // Its time begins now.
        self.watch = None;
        // A place of its own; the system takes pages for it only as they fill.
        let mut buffer = BytesMut::with_capacity(len);
        buffer.extend_from_slice(&self.buffer);
        self.buffer = buffer;
        true
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, InboundError>> {
        // Of a large frame nothing behind it, so that its buffer is its own.
        let most = match self.frame {
            Some(len) if len > CHUNK => (len - self.buffer.len()).min(CHUNK),
            _ => CHUNK,
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let into = &mut scratch[..most];
            match Pin::new(&mut self.stream).poll_read(cx, into) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(0)) if self.buffer.is_empty() && self.frame.is_none() => {
                    Poll::Ready(Err(InboundError::End))
                }
                Poll::Ready(Ok(0)) => Poll::Ready(Err(InboundError::Truncated)),
                Poll::Ready(Ok(n)) => {
                    self.buffer.extend_from_slice(&into[..n]);
                    Poll::Ready(Ok(n))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(InboundError::Io(error))),
            }
        })
    }

    /// Whether the peer's messages have room to wait for their verdict; looked at again after a rest.
    fn may_read(&mut self, cx: &mut Context<'_>) -> Result<bool, InboundError> {
        let Some(pause) = &mut self.pause else {
            return Ok(true);
        };
        if pause.poll_unpin(cx).is_pending() {
            return Ok(false);
        }
        self.pause = None;
        match lock(&self.shared.seen).admits(self.shared.source) {
            true => Ok(true),
            false => Err(InboundError::Banned),
        }
    }

    /// Ready when an incomplete frame is to be given up.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<InboundError> {
        if self.frame.is_none() && self.buffer.is_empty() {
            if self.buffer.capacity() > 0 {
                // Nothing is on its way: an idle stream holds no memory.
                self.buffer = BytesMut::new();
            }
            return Poll::Pending;
        }
        let (clock, have) = (&self.shared.clock, self.buffer.len());
        let patience = patience(self.frame.unwrap_or_default());
        let step = match self.share {
            Some(_) => LOOK,
            None => patience,
        };
        let watch = self.watch.get_or_insert_with(|| Watch {
            begun: clock.now(),
            seen: have,
            look: clock.sleep(step),
        });
        loop {
            futures::ready!(watch.look.poll_unpin(cx));
            let held = clock.now().saturating_sub(watch.begun);
            let share = self.share.as_ref();
            let crowded = share.is_some_and(Share::is_contended);
            let had_its_term = held >= TERM && share.is_some_and(Share::is_eldest);
            let ended = if held >= patience {
                InboundError::TooSlow
            } else if crowded && (had_its_term || have < watch.seen + FORWARD) {
                InboundError::Crowded
            } else {
                watch.seen = have;
                watch.look = clock.sleep(step);
                continue;
            };
            // It is known to finish no more.
            self.shared.proven.store(false, Ordering::Relaxed);
            return Poll::Ready(ended);
        }
    }

    fn take_batch(&mut self) -> Option<Item> {
        let batch = self.batch.take()?;
        let shares = std::mem::take(&mut self.shares);
        Some(Item::Received(batch, self.since, shares))
    }
}

impl<S> Drop for Inbound<S> {
    fn drop(&mut self) {
        // What was entered and does not reach the core is new again when another sends it.
        if let Some(batch) = self.batch.take() {
            let mut seen = lock(&self.shared.seen);
            batch.marks().for_each(|mark| seen.forget(mark));
        }
    }
}

/// Whether another frame can be appended without changing the order of anything.
fn holds_only_messages(received: &Received) -> bool {
    received.subscriptions.is_empty()
        && received.control.is_empty()
        && received.ping.is_none()
        && received.pong.is_none()
}

fn append(batch: &mut Received, more: Received) {
    batch.subscriptions.extend(more.subscriptions);
    batch.candidates.extend(more.candidates);
    batch.refused.extend(more.refused);
    batch.control = more.control;
    batch.known.duplicates += more.known.duplicates;
    batch.known.invalid += more.known.invalid;
    batch.known.shed += more.known.shed;
    batch.ping = more.ping;
    batch.pong = more.pong;
    batch.ignored += more.ignored;
    batch.bytes += more.bytes;
}

/// As long as a sender may take: 2 s and its size at 100 kbit/s, 10 s at least.
fn patience(bytes: usize) -> Duration {
    Duration::from_secs((2 + bytes as u64 / 12_500).max(10))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read;
    use std::task::Waker;

    use super::super::clock::HandClock;
    use super::*;
    use crate::Config;

    /// What has come of a stream so far.
    #[derive(Clone, Default)]
    struct Line(Arc<Mutex<VecDeque<u8>>>);

    impl AsyncRead for Line {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut [u8],
        ) -> Poll<std::io::Result<usize>> {
            match lock(&self.0).read(into) {
                Ok(0) => Poll::Pending,
                read => Poll::Ready(read),
            }
        }
    }

    /// An RPC of one message of nothing, a MiB less 8 bytes.
    fn large() -> Vec<u8> {
        let body = (1 << 20) - 8;
        let mut rpc = Vec::new();
        for (at, len) in [(0, body + 4), (1, body)] {
            rpc.extend(std::iter::repeat_n(0x12, at));
            let len = len as u32;
            rpc.extend([len as u8 | 0x80, (len >> 7) as u8 | 0x80, (len >> 14) as u8]);
        }
        rpc.resize(rpc.len() + body, 0);
        rpc
    }

    /// Eight peers at 100 kbit/s held all memory for a minute and a half at a time, and were known to finish after that.
    #[test]
    fn go_23_who_is_slow_gives_way_to_who_waits() {
        let hand = HandClock::default();
        let seen = Arc::new(Mutex::new(Seen::new(Config::default().seen(), [7; 32])));
        let receive = Pool::new(2 << 20);
        let proven: Arc<AtomicBool> = Arc::default();
        let open = |n: u8, proven: &Arc<AtomicBool>| {
            let id = [&[0x12, 0x20][..], &[n; 32]].concat();
            let peer = libp2p_identity::PeerId::from_bytes(&id).unwrap();
            let line = Line::default();
            let shared = Shared {
                source: lock(&seen).join(peer),
                seen: seen.clone(),
                clock: Clock::Hand(hand.clone()),
                receive: receive.clone(),
                proven: proven.clone(),
            };
            (line.clone(), Inbound::new(line, shared))
        };
        let mut cx = Context::from_waker(Waker::noop());
        proven.store(true, Ordering::Relaxed);
        let (drip, mut slow) = open(1, &proven);
        let (all, mut honest) = open(2, &Arc::new(AtomicBool::new(true)));
        let mut rest = large().into_iter();
        lock(&all.0).extend(large());
        for second in 0..10 {
            lock(&drip.0).extend(rest.by_ref().take(20_000));
            if let Poll::Ready(end) = slow.poll(&mut cx) {
                assert!(matches!(end, Item::Ended(InboundError::Crowded)));
                assert!(!proven.load(Ordering::Relaxed));
                assert!(second >= 6, "{second}");
                break;
            }
            assert!(honest.poll(&mut cx).is_pending(), "{second}");
            hand.turn(Duration::from_secs(1));
        }
        drop(slow);
        // A stream is read in turns.
        let read = std::iter::repeat_with(|| honest.poll(&mut cx)).take(10);
        let read = read.filter(Poll::is_ready).count();
        assert_eq!(read, 1);
    }
}
