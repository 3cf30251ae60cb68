//! One inbound stream: messages one after the other until its end, whatever protocol version it negotiated.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::{AsyncRead, AsyncWrite, FutureExt, Stream};
use futures_timer::Delay;

use super::budget::{Budget, Seat, Share};
use super::gate::{Gate, Queue};
use super::shared::{Clock, Outbox};
use crate::core::Time;
use crate::wire::{self, DecodeError, Message};

/// Reads messages; decodes and hashes them on the connection's task, or large ones on a worker if the owner gave one.
pub(crate) struct Inbound<S> {
    stream: S,
    state: State,
    shared: Shared,
    queue: Queue,
    seat: Seat,
    /// Over the message that is being read.
    watch: Option<Watch>,
    /// Messages on the worker, in order of arrival. The next one is read meanwhile.
    decoding: VecDeque<oneshot::Receiver<Result<Received, DecodeError>>>,
}

/// A slow peer must not hold a buffer for ever: a message must be complete after its [`patience`], and while others wait for
/// memory it must come forward at each look, and its connection at [`LEAST`].
struct Watch {
    begun: Time,
    last: Seen,
    look: Delay,
}

/// What there was at a look.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    at: Time,
    /// Bytes of the message.
    message: usize,
    /// Bytes of all messages of the connection, since it began.
    connection: u64,
    /// Others wait for the memory.
    contended: bool,
}

/// What all inbound streams of a connection share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) budget: Arc<Budget>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) clock: Clock,
    pub(crate) worker: Option<Worker>,
}

/// Runs a job on another thread, soon.
pub type Worker = Arc<dyn Fn(Box<dyn FnOnce() + Send>) + Send + Sync>;

enum State {
    /// Reading the length prefix, byte by byte from the muxer's buffer.
    Length { bytes: [u8; 5], have: usize },
    /// Length known, waiting for room in the budget.
    Waiting { len: usize },
    /// Reading the body. The buffer has room for all of it and grows as it fills: who announces much and sends little costs little.
    Body {
        buffer: Vec<u8>,
        len: usize,
        have: usize,
        share: Share,
    },
    /// Ended or reset.
    Done,
}

/// A decoded message and the receive memory that it holds.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) message: Message,
    pub(crate) share: Share,
}

/// Why a stream was reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InboundError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the stream ended in the middle of a message")]
    Truncated,
    #[error("a message was not complete in time")]
    TooSlow,
    #[error("the stream broke: {0}")]
    Io(std::io::Error),
    #[error("the worker that decodes is gone")]
    NoWorker,
}

impl InboundError {
    /// Whether the peer said what nobody may say.
    pub(crate) fn is_malformed(&self) -> bool {
        matches!(self, Self::Decode(_))
    }
}

/// Partial messages from this size on count as progress. Smaller ones are complete at once or are no blocks.
const PROGRESS_FROM: usize = 16 * 1024;

const START: State = State::Length {
    bytes: [0; 5],
    have: 0,
};

/// Messages of one stream on the worker at a time: one is hashed while the next is read.
const DECODING: usize = 2;
/// Smaller messages are decoded quicker than handed over.
const WORKER_FROM: usize = 32 * 1024;

/// What reading came to.
enum Read {
    Message(Bytes, Share),
    End,
}

impl<S> Inbound<S> {
    pub(crate) fn new(stream: S, shared: Shared) -> Self {
        Self {
            stream,
            state: START,
            queue: Queue::new(shared.gate.clone()),
            seat: Seat::new(shared.budget.clone()),
            shared,
            watch: None,
            decoding: VecDeque::new(),
        }
    }
}

impl<S> Inbound<S> {
    /// A message is there, and there is no room for it.
    pub(crate) fn waits_for_room(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Inbound<S> {
    type Item = Result<Received, InboundError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.advance(cx);
        if let Poll::Ready(None | Some(Err(_))) = next {
            // Dropping the stream resets it; after its proper end there is nothing left to reset.
            self.state = State::Done;
            self.watch = None;
            self.decoding.clear();
        }
        next
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Inbound<S> {
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Received, InboundError>>> {
        loop {
            if let Some(front) = self.decoding.front_mut()
                && let Poll::Ready(decoded) = front.poll_unpin(cx)
            {
                self.decoding.pop_front();
                let decoded = decoded.map_err(|oneshot::Canceled| InboundError::NoWorker);
                return Poll::Ready(Some(decoded.and_then(|d| Ok(d?))));
            }
            if matches!(self.state, State::Done) && self.decoding.is_empty() {
                return Poll::Ready(None);
            }
            if matches!(self.state, State::Done) || self.decoding.len() >= DECODING {
                return Poll::Pending;
            }
            match futures::ready!(self.read(cx)) {
                Ok(Read::Message(body, share)) => {
                    if let Some(received) = self.decode(body, share) {
                        return Poll::Ready(Some(received));
                    }
                }
                Ok(Read::End) => self.state = State::Done,
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Read, InboundError>> {
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(Ok(Read::End)),
                State::Length { bytes, have } => {
                    let byte = &mut bytes[*have..=*have];
                    match Pin::new(&mut self.stream).poll_read(cx, byte) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(0)) if *have == 0 => return self.close(cx),
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(InboundError::Truncated)),
                        Poll::Ready(Ok(_)) => *have += 1,
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Err(InboundError::Io(error)));
                        }
                    }
                    match wire::read_length(&bytes[..*have]) {
                        Ok(None) => {}
                        Ok(Some((len, _))) => self.state = State::Waiting { len },
                        Err(error) => return Poll::Ready(Err(error.into())),
                    }
                }
                State::Waiting { len } => {
                    let len = *len;
                    if !self.queue.is_open(cx) {
                        return Poll::Pending;
                    }
                    let Some(share) = self.seat.take(len, cx) else {
                        return Poll::Pending;
                    };
                    self.state = State::Body {
                        buffer: Vec::with_capacity(len),
                        len,
                        have: 0,
                        share,
                    };
                }
                State::Body {
                    buffer,
                    len,
                    have,
                    share,
                } => {
                    if have == len {
                        return Poll::Ready(Ok(self.complete()));
                    }
                    if *have == buffer.len() {
                        buffer.resize((*have + STEP).min(*len), 0);
                    }
                    match Pin::new(&mut self.stream).poll_read(cx, &mut buffer[*have..]) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(InboundError::Truncated)),
                        Poll::Ready(Ok(n)) => {
                            *have += n;
                            share.arrived(n);
                            if *len >= PROGRESS_FROM {
                                self.shared.outbox.read(self.shared.clock.now(), n);
                            }
                        }
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Err(InboundError::Io(error)));
                        }
                        Poll::Pending => {
                            let seen = Seen {
                                at: self.shared.clock.now(),
                                message: *have,
                                connection: share.arrived_in_all(),
                                contended: share.is_contended(),
                            };
                            let watch = self.watch.get_or_insert_with(|| Watch::new(seen));
                            futures::ready!(watch.poll(*len, seen, cx));
                            return Poll::Ready(Err(InboundError::TooSlow));
                        }
                    }
                }
            }
        }
    }

    /// The remote closed its half between two messages: close ours.
    fn close(&mut self, cx: &mut Context<'_>) -> Poll<Result<Read, InboundError>> {
        match Pin::new(&mut self.stream).poll_close(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(Ok(Read::End)),
        }
    }

    fn complete(&mut self) -> Read {
        self.watch = None;
        match std::mem::replace(&mut self.state, START) {
            State::Body { buffer, share, .. } => Read::Message(Bytes::from(buffer), share),
            _ => Read::End,
        }
    }

    /// Decodes here, or hands over to the worker. Behind a message on the worker everything waits its turn there: a
    /// cancel must not overtake its want.
    fn decode(&mut self, body: Bytes, share: Share) -> Option<Result<Received, InboundError>> {
        let large = body.len() >= WORKER_FROM;
        let job = move || {
            let message = wire::decode(body)?;
            Ok(Received { message, share })
        };
        match &self.shared.worker {
            Some(worker) if large || !self.decoding.is_empty() => {
                let (answer, decoded) = oneshot::channel();
                self.decoding.push_back(decoded);
                worker(Box::new(move || {
                    // Nobody waits if the stream was reset meanwhile.
                    let _ = answer.send(job());
                }));
                None
            }
            _ => Some(job().map_err(InboundError::Decode)),
        }
    }
}

/// By how much the buffer of a message grows at a time. `vec![0; len]` would take fresh pages from the system for each message with some
/// allocators; this takes memory that was used before, and clears it just before it is filled.
const STEP: usize = 64 << 10;

/// Time between two looks at an unfinished message.
const LOOK: Duration = Duration::from_secs(2);

/// Slowest connection that keeps memory for which others wait, in bytes a second: what the core waits for, too. It is the connection's,
/// since a Kubo on a slow line sends eight messages at a time.
const LEAST: u64 = 8 * 1024;

impl Watch {
    fn new(now: Seen) -> Self {
        Self {
            begun: now.at,
            // The first bytes of a message are progress, whenever they came.
            last: Seen { message: 0, ..now },
            look: Delay::new(LOOK),
        }
    }

    /// Ready when the message of `len` bytes is to be given up.
    fn poll(&mut self, len: usize, now: Seen, cx: &mut Context<'_>) -> Poll<()> {
        while self.look.poll_unpin(cx).is_ready() {
            if self.look(len, now) {
                return Poll::Ready(());
            }
            self.look.reset(LOOK);
        }
        Poll::Pending
    }

    /// Whether the message is to be given up.
    fn look(&mut self, len: usize, now: Seen) -> bool {
        let last = std::mem::replace(&mut self.last, now);
        let still = now.message == last.message;
        let millis = now.at.saturating_sub(last.at).as_millis();
        let came = u128::from(now.connection - last.connection);
        let slow = came * 1000 < millis * u128::from(LEAST);
        now.at >= self.begun + patience(len) || (now.contended && (still || slow))
    }
}

/// As long as a sender may take: 2 s and its size at 100 kbit/s, between 10 s and 2 min (wire/05: boxo's send limit).
pub(crate) fn patience(bytes: usize) -> Duration {
    let seconds = 2 + bytes as u64 / 12_500;
    Duration::from_secs(seconds.clamp(10, 120))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::sync::Mutex;

    use futures::StreamExt;
    use futures::executor::block_on;
    use futures::task::noop_waker;
    use gemba_block::Block;

    use super::*;
    use crate::wire::{MAX_MESSAGE_BYTES, Version, encode};

    /// A peer that sends these pieces, and then ends or says nothing more.
    struct Script {
        pieces: VecDeque<Vec<u8>>,
        ends: bool,
        closed: Arc<Mutex<bool>>,
    }

    impl AsyncRead for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let Some(mut piece) = self.pieces.pop_front() else {
                return match self.ends {
                    true => Poll::Ready(Ok(0)),
                    false => Poll::Pending,
                };
            };
            let n = piece.len().min(out.len());
            out[..n].copy_from_slice(&piece[..n]);
            let rest = piece.split_off(n);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
            Poll::Ready(Ok(n))
        }
    }

    impl AsyncWrite for Script {
        fn poll_write(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            _bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            panic!("nothing is ever answered on the stream that asks");
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            *self.closed.lock().unwrap() = true;
            Poll::Ready(Ok(()))
        }
    }

    fn shared(limit: usize) -> Shared {
        Shared {
            budget: Budget::new(
                limit,
                super::super::budget::Pool::new(1 << 30),
                Arc::default(),
            ),
            gate: Arc::default(),
            outbox: Arc::default(),
            clock: Clock::start(),
            worker: None,
        }
    }

    fn reader(pieces: Vec<Vec<u8>>, ends: bool, shared: &Shared) -> Inbound<Script> {
        let script = Script {
            pieces: pieces.into(),
            ends,
            closed: Arc::default(),
        };
        Inbound::new(script, shared.clone())
    }

    fn framed(block: &Block) -> Vec<u8> {
        let message = Message {
            blocks: vec![block.clone()],
            ..Message::default()
        };
        encode(&message, Version::V1_2).unwrap().to_vec()
    }

    fn read_all(inbound: Inbound<Script>) -> Vec<Result<Received, InboundError>> {
        block_on(inbound.collect())
    }

    #[test]
    fn any_number_of_messages_in_any_pieces_then_a_proper_end() {
        let blocks: Vec<_> = (0..20_u8)
            .map(|n| Block::raw(vec![n; 1 + 300 * usize::from(n)]).unwrap())
            .collect();
        let bytes: Vec<u8> = blocks.iter().flat_map(framed).collect();
        for size in [1, 7, 1000, bytes.len()] {
            let pieces = bytes.chunks(size).map(<[u8]>::to_vec).collect();
            let inbound = reader(pieces, true, &shared(8 << 20));
            let closed = inbound.stream.closed.clone();
            let got: Vec<_> = read_all(inbound)
                .into_iter()
                .map(|r| r.unwrap().message.blocks.remove(0))
                .collect();
            assert_eq!(got, blocks);
            assert!(*closed.lock().unwrap());
        }
    }

    #[test]
    fn x4_a_length_bomb_is_refused_and_takes_no_memory() {
        let shared = shared(8 << 20);
        let bomb = (MAX_MESSAGE_BYTES as u64 + 1).to_le_bytes();
        let mut prefix = Vec::new();
        prost::encoding::encode_varint(u64::from_le_bytes(bomb), &mut prefix);
        let got = read_all(reader(vec![prefix], false, &shared));
        assert!(matches!(
            got[..],
            [Err(InboundError::Decode(DecodeError::TooLong(_)))]
        ));
        assert!(
            Seat::new(shared.budget.clone())
                .take(8 << 20, &waker_context())
                .is_some()
        );
    }

    #[test]
    fn truncated_and_garbled_messages_end_their_stream_with_an_error() {
        let whole = framed(&Block::raw(vec![1; 1000]).unwrap());
        let shared = shared(8 << 20);
        for cut in [1, 2, 3, 500, whole.len() - 1] {
            let got = read_all(reader(vec![whole[..cut].to_vec()], true, &shared));
            assert!(
                matches!(got[..], [Err(InboundError::Truncated)]),
                "cut at {cut}"
            );
        }
        let mut wrong_prefix = whole.clone();
        let at = wrong_prefix
            .windows(4)
            .position(|w| w == [1, 0x55, 0x12, 0x20]);
        wrong_prefix[at.unwrap() + 2] = 0x7f;
        let got = read_all(reader(vec![wrong_prefix, whole], true, &shared));
        assert_eq!(got.len(), 1, "nothing after the error is read");
        assert!(got[0].as_ref().is_err_and(InboundError::is_malformed));
        assert!(
            Seat::new(shared.budget.clone())
                .take(8 << 20, &waker_context())
                .is_some(),
            "all memory came back"
        );
    }

    #[test]
    fn r_more_messages_than_the_budget_holds_wait_until_earlier_ones_are_processed() {
        let block = Block::raw(vec![1; 600_000]).unwrap();
        let shared = shared(1 << 20);
        let mut one = reader(vec![framed(&block)], true, &shared);
        let mut two = reader(vec![framed(&block)], true, &shared);
        let first = block_on(one.next()).unwrap().unwrap();
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(two.poll_next_unpin(&mut cx).is_pending());
        drop(first);
        assert!(block_on(two.next()).unwrap().is_ok());
    }

    #[test]
    fn a_closed_gate_stops_before_the_body_and_opens_again() {
        let block = Block::raw(vec![1; 1000]).unwrap();
        let shared = shared(1 << 20);
        shared.gate.set(true);
        let mut inbound = reader(vec![framed(&block)], true, &shared);
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(inbound.poll_next_unpin(&mut cx).is_pending());
        shared.gate.set(false);
        assert!(block_on(inbound.next()).unwrap().is_ok());
    }

    #[test]
    fn with_a_worker_messages_keep_their_order_and_errors_come_through() {
        let (jobs, done) = std::sync::mpsc::sync_channel::<Box<dyn FnOnce() + Send>>(16);
        let thread = std::thread::spawn(move || done.into_iter().for_each(|job| job()));
        let shared = Shared {
            worker: Some(Arc::new(move |job| jobs.send(job).unwrap())),
            ..shared(64 << 20)
        };
        let blocks: Vec<_> = (0..30_u8)
            .map(|n| {
                let size = if n % 3 == 0 { 200_000 } else { 50 };
                Block::raw(vec![n; size]).unwrap()
            })
            .collect();
        let mut pieces: Vec<_> = blocks.iter().map(framed).collect();
        pieces.push(vec![3, 0x0a, 0x05, 0x00]);
        let got = read_all(reader(pieces, true, &shared));
        let (last, good) = got.split_last().unwrap();
        let good: Vec<_> = good
            .iter()
            .map(|r| r.as_ref().unwrap().message.blocks[0].clone())
            .collect();
        assert_eq!(good, blocks);
        assert!(last.as_ref().is_err_and(InboundError::is_malformed));
        drop(shared);
        drop(got);
        thread.join().unwrap();
    }

    #[test]
    fn only_large_unfinished_messages_count_as_progress() {
        let shared = shared(8 << 20);
        std::thread::yield_now();
        let small = framed(&Block::raw(vec![1; 5000]).unwrap());
        let large = framed(&Block::raw(vec![1; 50_000]).unwrap());
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        while shared.clock.now().as_millis() < 2 {
            std::hint::spin_loop();
        }
        let mut trickle = reader(vec![small[..100].to_vec()], false, &shared);
        assert!(trickle.poll_next_unpin(&mut cx).is_pending());
        assert!(shared.outbox.take_read().is_none());
        let mut flow = reader(vec![large[..100].to_vec()], false, &shared);
        assert!(flow.poll_next_unpin(&mut cx).is_pending());
        // Without the two bytes of its length.
        assert!(
            shared
                .outbox
                .take_read()
                .is_some_and(|(_, bytes)| bytes == 97)
        );
    }

    #[test]
    fn patience_is_two_seconds_and_the_size_at_100_kbit_within_bounds() {
        assert_eq!(patience(0), Duration::from_secs(10));
        assert_eq!(patience(500_000), Duration::from_secs(42));
        assert_eq!(patience(MAX_MESSAGE_BYTES), Duration::from_secs(120));
    }

    /// EX-23: four members that sent a byte in 1.5 s kept all receive memory for two minutes, and again.
    #[test]
    fn x1_a_trickle_keeps_no_memory_for_which_others_wait() {
        let seen = |seconds: u64, message, contended| Seen {
            at: Duration::from_secs(seconds),
            message,
            connection: 1_000_000 + message as u64,
            contended,
        };
        let len = MAX_MESSAGE_BYTES;
        let given_up_after = |rate: usize, contended| {
            let mut watch = Watch::new(seen(0, 0, contended));
            (2..300)
                .step_by(2)
                .find(|s| watch.look(len, seen(*s, rate * *s as usize, contended)))
        };
        assert_eq!(given_up_after(1, true), Some(2));
        assert_eq!(given_up_after(8191, true), Some(2));
        assert_eq!(given_up_after(8192, true), Some(120));
        assert_eq!(given_up_after(1, false), Some(120));
    }

    /// Eight messages at a time on a line of 100 kbit/s are slow one by one, and no reason to give any of them up.
    #[test]
    fn a_slow_line_may_carry_several_messages() {
        let at = |seconds, message, connection| Seen {
            at: Duration::from_secs(seconds),
            message,
            connection,
            contended: true,
        };
        let mut watch = Watch::new(at(0, 0, 0));
        assert!(!watch.look(256 << 10, at(2, 3_000, 24_000)));
        // What stands still is given up, whatever comes beside it.
        assert!(watch.look(256 << 10, at(4, 3_000, 48_000)));
    }

    fn waker_context() -> Context<'static> {
        Context::from_waker(futures::task::noop_waker_ref())
    }
}
