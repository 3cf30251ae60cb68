//! Connections: bytes that take their time, in order; windows that fill; silence in all its forms.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::plan::Links;
use super::world::What;
use crate::Time;
use crate::hash::Dice;
use crate::wire::{Frame, Reader};

/// Payload of a TCP packet.
const PACKET: usize = 1448;
/// The shortest time after which TCP sends again what was not confirmed (Linux).
const TIMEOUT: Duration = Duration::from_millis(200);

/// A connection between two nodes, or the wish for one.
pub(super) struct Link {
    pub(super) ends: [u32; 2],
    /// Which end dials.
    pub(super) dialer: usize,
    /// The connection that each end believes to have.
    pub(super) known: [bool; 2],
    /// Counts connections: news of an older one is no news.
    pub(super) generation: u32,
    /// It is to be there.
    pub(super) wanted: bool,
    /// A dial is on its way.
    pub(super) dialling: bool,
    pub(super) latency: Duration,
    /// Nothing passes in this direction, until there is another connection.
    pub(super) cut: [bool; 2],
    /// Nothing passes for now; what is sent meanwhile arrives afterwards.
    pub(super) blocked: bool,
    pub(super) limbo: Vec<What>,
    /// The stream that end 0 writes, and that of end 1.
    pub(super) pipes: [Pipe; 2],
}

/// One stream, in one direction.
pub(super) struct Pipe {
    /// Counts streams: news of an older one is no news.
    pub(super) epoch: u32,
    pub(super) state: PipeState,
    /// Since when it is not open although the connection stands.
    pub(super) closed_since: Time,
    /// What is written goes nowhere, until there is another stream.
    pub(super) deaf: bool,
    /// Frames that the writer's connection holds: the window is full.
    pub(super) waiting: VecDeque<(Frame, Box<[u32]>)>,
    /// Bytes that were written and that the writer does not know to be read.
    unread: usize,
    /// Bytes that were read, and when the writer learns of it.
    returns: VecDeque<(Time, usize)>,
    /// When the last byte arrives.
    arrives: Time,
    /// The reader does not read before.
    pub(super) rests: Time,
    pub(super) reader: Option<Reader>,
    /// Bytes that ever arrived on it.
    pub(super) arrived: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PipeState {
    Closed,
    Opening,
    Open,
}

impl Link {
    pub(super) fn new(a: u32, b: u32, shape: &Links, dice: &mut Dice) -> Self {
        let (from, to) = shape.latency;
        let range = to.saturating_sub(from).as_micros() as usize;
        let latency = from + Duration::from_micros(dice.below(range.max(1)) as u64);
        Self {
            ends: [a, b],
            dialer: 0,
            known: [false; 2],
            generation: 0,
            wanted: true,
            dialling: false,
            latency,
            cut: [false; 2],
            blocked: false,
            limbo: Vec::new(),
            pipes: [Pipe::new(), Pipe::new()],
        }
    }

    pub(super) fn end_of(&self, node: u32) -> usize {
        usize::from(self.ends[0] != node)
    }

    /// Whether anything passes in both directions.
    pub(super) fn is_whole(&self) -> bool {
        !self.cut[0] && !self.cut[1] && !self.blocked
    }

    /// A new connection stands.
    pub(super) fn connect(&mut self, now: Time) {
        self.generation += 1;
        self.cut = [false; 2];
        for pipe in &mut self.pipes {
            pipe.close(now);
        }
    }
}

impl Pipe {
    fn new() -> Self {
        Self {
            epoch: 0,
            state: PipeState::Closed,
            closed_since: Time::ZERO,
            deaf: false,
            waiting: VecDeque::new(),
            unread: 0,
            returns: VecDeque::new(),
            arrives: Time::ZERO,
            rests: Time::ZERO,
            reader: None,
            arrived: 0,
        }
    }

    /// Ends the stream, and begins another if it is to be opened.
    fn begin(&mut self, state: PipeState) {
        self.epoch += 1;
        self.state = state;
        self.deaf = false;
        self.waiting.clear();
        self.returns.clear();
        self.unread = 0;
        self.reader = None;
    }

    pub(super) fn close(&mut self, now: Time) {
        if self.state == PipeState::Open {
            self.closed_since = now;
        }
        self.begin(PipeState::Closed);
    }

    pub(super) fn open(&mut self, now: Time) {
        if self.state == PipeState::Open {
            self.closed_since = now;
        }
        self.begin(PipeState::Opening);
    }

    /// Whether the window takes a frame now. One always goes.
    pub(super) fn takes(&mut self, bytes: usize, window: usize, now: Time) -> bool {
        while let Some((at, read)) = self.returns.front().copied()
            && at <= now
        {
            self.returns.pop_front();
            self.unread -= read;
        }
        self.unread == 0 || self.unread + bytes <= window
    }

    /// When the window may take more, as far as it is known.
    pub(super) fn returns_at(&self) -> Option<Time> {
        self.returns.front().map(|(at, _)| *at)
    }

    pub(super) fn is_blocked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends bytes that the line is through with at `sent`; tells when they arrive.
    pub(super) fn send(
        &mut self,
        bytes: usize,
        sent: Time,
        latency: Duration,
        shape: &Links,
        dice: &mut Dice,
    ) -> Time {
        let busy = self.unread > 3 * PACKET;
        self.unread += bytes;
        let late = losses(bytes, latency, shape.loss, busy, dice);
        self.arrives = self.arrives.max(sent + latency + late);
        self.arrives
    }

    /// The reader read so many bytes.
    pub(super) fn read(&mut self, bytes: usize, known: Time) {
        self.arrived += bytes as u64;
        self.returns.push_back((known, bytes));
    }
}

/// How much later bytes are there because packets were lost: TCP sends again at once where enough goes on behind, else after a time-out,
/// which doubles.
pub(super) fn losses(
    bytes: usize,
    latency: Duration,
    loss: u32,
    busy: bool,
    dice: &mut Dice,
) -> Duration {
    let mut late = Duration::ZERO;
    if loss == 0 {
        return late;
    }
    let packets = bytes / PACKET + 1;
    let lost = |dice: &mut Dice| dice.below(1000) < loss as usize;
    for packet in 0..packets {
        if !lost(dice) {
            continue;
        }
        if busy || packet + 3 < packets {
            late += latency * 2;
            if !lost(dice) {
                continue;
            }
        }
        let mut timer = TIMEOUT + latency * 2;
        late += timer;
        while lost(dice) {
            timer *= 2;
            late += timer;
        }
    }
    late
}

/// A frame on the line.
#[derive(Debug)]
pub(super) struct OnLine {
    pub(super) link: u32,
    /// The end that wrote it.
    pub(super) end: usize,
    pub(super) epoch: u32,
    pub(super) bytes: Bytes,
    /// Numbers of the messages in it that are known to the watch.
    pub(super) messages: Box<[u32]>,
}
