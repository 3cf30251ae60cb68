//! One lane: the kept outbound stream for our wantlist or for our answers, reopened with a pause when it fails.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncWrite, FutureExt};
use futures_timer::Delay;

use super::inbound::patience;
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
    pub(crate) fn new(lane: Lane) -> Self {
        Self {
            lane,
            stream: Stream::Closed,
            current: None,
            failures: 0,
            pause: None,
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
            attempts: 0,
        });
    }

    /// The message in the works, when the connection ends.
    pub(crate) fn take(&mut self) -> Option<Message> {
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
        self.stream = Stream::Open(stream, version);
    }

    /// No stream could be opened.
    pub(crate) fn failed(&mut self) -> Option<Step> {
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
            let stream = Pin::new(&mut *stream);
            let written = match frame.front() {
                Some(chunk) => stream.poll_write(cx, chunk).map_ok(Some),
                None => stream.poll_flush(cx).map_ok(|()| None),
            };
            match written {
                Poll::Ready(Ok(Some(0)) | Err(_)) => return Poll::Ready(Written::Broke),
                Poll::Ready(Ok(Some(n))) => frame.advance(n),
                Poll::Ready(Ok(None)) => return Poll::Ready(Written::All(current.bytes)),
                Poll::Pending => {
                    futures::ready!(deadline.poll_unpin(cx));
                    return Poll::Ready(Written::Late);
                }
            }
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
        let current = self.current.as_mut()?;
        current.frame = None;
        current.attempts += 1;
        if self.lane == Lane::Request || current.attempts >= ATTEMPTS {
            let message = self.take()?;
            return Some(Step::Lost { message });
        }
        None
    }
}
