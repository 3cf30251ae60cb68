//! One lane: the kept outbound stream for our wantlist or for our answers, reopened with a pause when it fails.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncWrite, FutureExt};
use futures_timer::Delay;

use super::inbound::patience;
use super::pace::Ticket;
use crate::core::Lane;
use crate::wire::{self, Frame, Message, Version};

/// Writes one message at a time.
pub(crate) struct Outbound<S> {
    lane: Lane,
    stream: Stream<S>,
    current: Option<Current>,
    /// Failures since the last success.
    failures: u32,
    pause: Option<Delay>,
    /// Holds up what is written where the line has a budget; requests go as they are.
    ticket: Option<Ticket>,
    /// A stream that was replaced and is being closed, so that the peer reads what was written on it.
    old: Option<S>,
}

enum Stream<S> {
    Closed,
    Opening,
    Open(S, Version),
}

struct Current {
    message: Message,
    /// Set once the stream's version is known.
    frame: Option<(Frame, Delay)>,
    bytes: usize,
    /// Of the frame: may be written before the line's budget is asked again.
    granted: usize,
    attempts: u32,
}

enum Written {
    All(usize),
    Broke,
    Late,
}

/// What a lane reports.
#[derive(Debug)]
pub(crate) enum Step {
    /// Open a stream and hand it to `opened`, or report `failed`.
    Open,
    /// The message was written; `bytes` is 0 if the peer's version cannot express it.
    Sent { message: Message, bytes: usize },
    /// The stream failed and a message with it. Requests are said again by the core.
    Lost { message: Message },
    /// A write passed its deadline; the stream was reset and the message is tried again.
    TimedOut,
}

/// Tries of one response (boxo: 3).
const ATTEMPTS: u32 = 3;
/// Pause after the first failure (boxo: 100 ms); doubles up to 64 times that.
const PAUSE: Duration = Duration::from_millis(100);

impl<S: AsyncWrite + Unpin> Outbound<S> {
    pub(crate) fn new(lane: Lane, ticket: Option<Ticket>) -> Self {
        Self {
            lane,
            stream: Stream::Closed,
            current: None,
            failures: 0,
            pause: None,
            ticket,
            old: None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    pub(crate) fn start(&mut self, message: Message) {
        self.current = Some(Current {
            message,
            frame: None,
            bytes: 0,
            granted: 0,
            attempts: 0,
        });
    }

    /// The message in the works, when the connection ends.
    pub(crate) fn take(&mut self) -> Option<Message> {
        self.leave();
        self.current.take().map(|c| c.message)
    }

    /// Resets the stream; what was being written on it comes back.
    pub(crate) fn give_up(&mut self) -> Option<Message> {
        if let Stream::Open(..) = self.stream {
            self.stream = Stream::Closed;
        }
        self.take()
    }

    pub(crate) fn opened(&mut self, stream: S, version: Version) {
        // Another one may have taken its place meanwhile.
        if let Stream::Opening = self.stream {
            self.stream = Stream::Open(stream, version);
        }
    }

    /// Goes on on this stream; the one so far is reset with what was being written on it, or is not opened any more.
    pub(crate) fn replace(&mut self, with: Option<(S, Version)>) {
        self.leave();
        self.current = None;
        self.failures = 0;
        self.pause = None;
        match with {
            Some((stream, version)) => self.stream = Stream::Open(stream, version),
            None => drop(self.give_up()),
        }
    }

    /// What follows goes on a new stream, and so does what is being written. What was written is left to the peer to read.
    pub(crate) fn renew(&mut self) {
        if !matches!(self.stream, Stream::Open(..)) {
            return;
        }
        let Stream::Open(old, _) = std::mem::replace(&mut self.stream, Stream::Closed) else {
            return;
        };
        match &mut self.current {
            // Dropping the stream resets it.
            Some(current) if current.frame.is_some() => {
                (current.frame, current.granted) = (None, 0);
            }
            _ => self.old = Some(old),
        }
    }

    /// Closes the stream that was replaced.
    pub(crate) fn close_old(&mut self, cx: &mut Context<'_>) {
        if let Some(old) = &mut self.old
            && Pin::new(old).poll_close(cx).is_ready()
        {
            self.old = None;
        }
    }

    /// No stream could be opened.
    pub(crate) fn failed(&mut self) -> Option<Step> {
        if !matches!(self.stream, Stream::Opening) {
            return None;
        }
        self.stream = Stream::Closed;
        self.fail()
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            if self.current.is_none() {
                return Poll::Pending;
            }
            if let Some(pause) = &mut self.pause {
                futures::ready!(pause.poll_unpin(cx));
                self.pause = None;
            }
            match &self.stream {
                Stream::Opening => return Poll::Pending,
                Stream::Closed => {
                    self.stream = Stream::Opening;
                    return Poll::Ready(Step::Open);
                }
                Stream::Open(..) => {}
            }
            match futures::ready!(self.write(cx)) {
                Written::All(bytes) => return Poll::Ready(self.sent(bytes)),
                Written::Broke => {
                    self.stream = Stream::Closed;
                    if let Some(step) = self.fail() {
                        return Poll::Ready(step);
                    }
                }
                Written::Late => {
                    // Dropping the stream resets it; the message is tried again on the next one.
                    self.stream = Stream::Closed;
                    if let Some(Step::Lost { message }) = self.fail() {
                        return Poll::Ready(Step::Lost { message });
                    }
                    return Poll::Ready(Step::TimedOut);
                }
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Poll<Written> {
        let (Stream::Open(stream, version), Some(current)) = (&mut self.stream, &mut self.current)
        else {
            return Poll::Pending;
        };
        if current.frame.is_none() {
            let Some(frame) = wire::encode(&current.message, *version) else {
                return Poll::Ready(Written::All(0));
            };
            current.bytes = frame.len();
            let deadline = Delay::new(patience(frame.len()));
            current.frame = Some((frame, deadline));
        }
        let Some((frame, deadline)) = &mut current.frame else {
            return Poll::Pending;
        };
        loop {
            let left = frame.left();
            if left > 0 && current.granted == 0 {
                let (granted, waited) = match &mut self.ticket {
                    Some(ticket) => futures::ready!(ticket.poll_take(left, cx)),
                    None => (left, false),
                };
                current.granted = granted;
                if waited {
                    // The time that the budget took is not the peer's.
                    deadline.reset(patience(left));
                }
            }
            let stream = Pin::new(&mut *stream);
            let written = match frame.front() {
                Some(chunk) => {
                    let most = chunk.len().min(current.granted);
                    stream.poll_write(cx, &chunk[..most]).map_ok(Some)
                }
                None => stream.poll_flush(cx).map_ok(|()| None),
            };
            match written {
                Poll::Ready(Ok(Some(0)) | Err(_)) => return Poll::Ready(Written::Broke),
                Poll::Ready(Ok(Some(n))) => {
                    frame.advance(n);
                    current.granted = current.granted.saturating_sub(n);
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(Written::All(current.bytes)),
                Poll::Pending => {
                    futures::ready!(deadline.poll_unpin(cx));
                    return Poll::Ready(Written::Late);
                }
            }
        }
    }

    /// Others have their turn on the line.
    fn leave(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.leave();
        }
    }

    fn sent(&mut self, bytes: usize) -> Step {
        self.failures = 0;
        let message = self.take().unwrap_or_default();
        Step::Sent { message, bytes }
    }

    /// Counts a failure. Responses are tried again, requests are left to the core.
    fn fail(&mut self) -> Option<Step> {
        self.failures = (self.failures + 1).min(7);
        self.pause = Some(Delay::new(PAUSE * (1 << (self.failures - 1))));
        self.leave();
        let current = self.current.as_mut()?;
        (current.frame, current.granted) = (None, 0);
        current.attempts += 1;
        if self.lane == Lane::Request || current.attempts >= ATTEMPTS {
            let message = self.take()?;
            return Some(Step::Lost { message });
        }
        None
    }
}
