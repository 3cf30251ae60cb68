//! The stream to the peer: frames one after the other, each written only if it is not too old when its turn comes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncRead, AsyncWrite};

use super::clock::Clock;
use super::shared::{Epoch, Outbox};
use crate::Time;
use crate::wire::{Frame, Version};

/// The one outbound stream of a connection.
pub(crate) struct Outbound<S> {
    state: State<S>,
    /// Written, but perhaps not flushed.
    unflushed: bool,
    current: Option<Current>,
    /// Pieces of the current frame are gathered here: each piece of its own would be a frame of the muxer of its own.
    gathered: Vec<u8>,
    progress: Time,
}

enum State<S> {
    Closed,
    /// Asked of the swarm.
    Opening(Epoch),
    Open(Epoch, S),
    /// Lost; the behaviour knows.
    Lost(Epoch),
}

/// A frame that is being written.
struct Current {
    parts: std::vec::IntoIter<Bytes>,
    /// What is written next, and how much of it is.
    piece: Piece,
    at: usize,
}

enum Piece {
    /// What was gathered.
    Gathered,
    /// A large one, from where it is.
    Part(Bytes),
}

/// What became of frames and of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The oldest frame was written.
    Written,
    /// The oldest frame was too old before it was begun.
    Expired,
    /// Some of a large frame was written.
    Progress,
    /// The stream broke.
    Lost,
}

/// Pieces are gathered up to the largest frame that the muxer writes in one.
const GATHER: usize = 16 * 1024;
/// A slow large frame is reported no more often than this.
const REPORT: Duration = Duration::from_secs(1);

impl<S> Outbound<S> {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Closed,
            unflushed: false,
            current: None,
            gathered: Vec::new(),
            progress: Time::ZERO,
        }
    }

    /// Makes the stream that there is the one that is wanted. Returns the epoch of one that is to be asked of the swarm.
    pub(crate) fn follow(&mut self, wanted: Option<Epoch>) -> Option<Epoch> {
        if self.epoch() == wanted {
            return None;
        }
        // Dropping the stream resets it.
        self.set(match wanted {
            Some(epoch) => State::Opening(epoch),
            None => State::Closed,
        });
        wanted
    }

    fn set(&mut self, state: State<S>) {
        self.state = state;
        self.current = None;
        self.unflushed = false;
        self.gathered = Vec::new();
    }

    fn epoch(&self) -> Option<Epoch> {
        match &self.state {
            State::Closed => None,
            State::Opening(epoch) | State::Open(epoch, _) | State::Lost(epoch) => Some(*epoch),
        }
    }

    /// The swarm opened it. False if it is not wanted any more; it is reset then.
    pub(crate) fn opened(&mut self, epoch: Epoch, stream: S) -> bool {
        let awaited = matches!(self.state, State::Opening(e) if e == epoch);
        if awaited {
            self.set(State::Open(epoch, stream));
        }
        awaited
    }

    /// The swarm could not open it. False if nobody waits for it any more.
    pub(crate) fn failed(&mut self, epoch: Epoch) -> bool {
        let awaited = matches!(self.state, State::Opening(e) if e == epoch);
        if awaited {
            self.set(State::Lost(epoch));
        }
        awaited
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.current.is_some()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outbound<S> {
    pub(crate) fn poll(
        &mut self,
        outbox: &Outbox,
        clock: &Clock,
        cx: &mut Context<'_>,
    ) -> Poll<(Epoch, Step)> {
        let State::Open(epoch, _) = self.state else {
            return Poll::Pending;
        };
        match self.advance(epoch, outbox, clock, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(step)) => Poll::Ready((epoch, step)),
            Poll::Ready(Err(_)) => {
                self.set(State::Lost(epoch));
                Poll::Ready((epoch, Step::Lost))
            }
        }
    }

    fn advance(
        &mut self,
        epoch: Epoch,
        outbox: &Outbox,
        clock: &Clock,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Step>> {
        let State::Open(_, stream) = &mut self.state else {
            return Poll::Pending;
        };
        loop {
            let Some(current) = &mut self.current else {
                let Some(frame) = outbox.pop(epoch) else {
                    break;
                };
                let now = clock.now();
                if frame.expires <= now {
                    return Poll::Ready(Ok(Step::Expired));
                }
                self.progress = now;
                self.current = Some(Current::begin(frame, &mut self.gathered));
                continue;
            };
            let rest = &current.bytes(&self.gathered)[current.at..];
            if rest.is_empty() {
                if !current.next(&mut self.gathered) {
                    self.current = None;
                    self.unflushed = true;
                    return Poll::Ready(Ok(Step::Written));
                }
                continue;
            }
            match Pin::new(&mut *stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    current.at += n;
                    let now = clock.now();
                    if now >= self.progress + REPORT {
                        self.progress = now;
                        return Poll::Ready(Ok(Step::Progress));
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if self.unflushed {
            match Pin::new(&mut *stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        // Nothing ever comes on it: an end is the peer's going, also while there is nothing to write.
        let mut byte = [0];
        match Pin::new(stream).poll_read(cx, &mut byte) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(_)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

impl Current {
    fn begin(frame: Frame, gathered: &mut Vec<u8>) -> Self {
        gathered.clear();
        let mut current = Self {
            parts: frame.parts.into_iter(),
            piece: Piece::Gathered,
            at: 0,
        };
        current.next(gathered);
        current
    }

    fn bytes<'a>(&'a self, gathered: &'a [u8]) -> &'a [u8] {
        match &self.piece {
            Piece::Gathered => gathered,
            Piece::Part(part) => part,
        }
    }

    /// Goes on to the next piece. False if there is none.
    fn next(&mut self, gathered: &mut Vec<u8>) -> bool {
        self.at = 0;
        self.piece = Piece::Gathered;
        gathered.clear();
        while let Some(part) = self.parts.as_slice().first() {
            if gathered.len() + part.len() > GATHER {
                break;
            }
            gathered.extend_from_slice(part);
            self.parts.next();
        }
        if gathered.is_empty()
            && let Some(part) = self.parts.next()
        {
            self.piece = Piece::Part(part);
        }
        !self.bytes(gathered).is_empty()
    }
}

/// What was agreed on with a peer.
pub(crate) fn version_of(protocol: &str) -> Version {
    Version::ALL
        .into_iter()
        .find(|version| version.protocol() == protocol)
        .unwrap_or(Version::V1_0)
}
