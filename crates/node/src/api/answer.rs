//! How handlers answer: failures with their status, lines of JSON, and bytes that a blocking thread produces.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::State;
use crate::daemon::Call;
use crate::error::{Code, Fail};

/// Pieces of an answer that may wait for a slow client; the producer waits beyond it.
const QUEUE: usize = 8;
/// Size of those pieces in bytes.
const PIECE: usize = 128 * 1024;
/// Lines of an answer that may wait for a slow client.
const LINES: usize = 64;
/// Their bytes: an event makes a line of up to 700 KiB. A longer one waits alone.
const LINES_BYTES: usize = 1 << 20;
/// Bytes after which lines that are there together go to the client: each by itself costs more than making it.
const TOGETHER: usize = 64 << 10;
/// Failures of broken-off answers that are remembered.
const FAILURES: usize = 64;

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let status = status_of(&self);
        (status, axum::Json(self.to_json())).into_response()
    }
}

/// The status that goes with a failure.
pub(super) fn status_of(fail: &Fail) -> StatusCode {
    StatusCode::from_u16(fail.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The same where what is damaged is what the client sent.
pub(super) fn status_of_upload(fail: &Fail) -> StatusCode {
    match fail.code {
        Code::Integrity => StatusCode::BAD_REQUEST,
        _ => status_of(fail),
    }
}

/// Why answers broke off in the middle, by request id. Bounded; the oldest goes first.
#[derive(Default)]
pub(super) struct Failures(Mutex<VecDeque<(String, Fail)>>);

impl Failures {
    fn remember(&self, request: &str, fail: Fail) {
        if request.is_empty() {
            return;
        }
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.push_back((request.to_owned(), fail));
        while held.len() > FAILURES {
            held.pop_front();
        }
    }

    /// The failure of a request, if its answer broke off.
    pub(super) fn of(&self, request: &str) -> Option<Fail> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter()
            .find(|(id, _)| id == request)
            .map(|(_, fail)| fail.clone())
    }
}

/// The end at which pieces of an answer are put in: so many and so many bytes of them wait, then whoever makes them does.
#[derive(Clone)]
pub(super) struct Pieces {
    sender: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    /// Threads that block wait with its help.
    runtime: Handle,
}

/// Pieces as they come out.
pub(super) type Waiting = mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>;

impl Pieces {
    /// Both ends. Called in a task.
    pub(super) fn new() -> (Self, Waiting) {
        let (sender, receiver) = mpsc::channel(LINES);
        let pieces = Self {
            sender,
            room: Arc::new(Semaphore::new(LINES_BYTES)),
            runtime: Handle::current(),
        };
        (pieces, receiver)
    }

    /// Waits while the client is slow. False: it went away.
    pub(super) async fn put(&self, piece: Bytes) -> bool {
        let bytes = u32::try_from(piece.len().min(LINES_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await;
        match room {
            Ok(room) => self.sender.send((piece, room)).await.is_ok(),
            // Nobody closes it.
            Err(_) => false,
        }
    }

    /// As [`Pieces::put`], from a thread that may block.
    fn put_blocking(&self, piece: Bytes) -> bool {
        self.runtime.block_on(self.put(piece))
    }
}

/// The body that pieces make.
pub(super) fn body_of(pieces: Waiting) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
    ReceiverStream::new(pieces).map(|(piece, _room)| Ok(piece))
}

/// Hands lines to a NDJSON answer.
#[derive(Clone)]
pub(super) struct Lines {
    pieces: Pieces,
    call: Arc<Call>,
}

impl Lines {
    /// One line. Waits while the client is slow.
    ///
    /// # Errors
    /// The client went away ([`Code::Interrupted`]), or the daemon is ending.
    pub(super) fn send<T: Serialize>(&self, value: &T) -> Result<(), Fail> {
        self.call.check()?;
        match self.pieces.put_blocking(line(value)?) {
            true => Ok(()),
            false => Err(gone()),
        }
    }

    /// Lines that are there together, from a task. What comes first must not begin with a failure.
    ///
    /// # Errors
    /// As [`Lines::send`].
    pub(super) async fn send_text(&self, text: Text) -> Result<(), Fail> {
        for piece in text.into_pieces() {
            self.call.check()?;
            if !self.pieces.put(piece).await {
                return Err(gone());
            }
        }
        Ok(())
    }

    /// As [`Lines::send`], from a task.
    ///
    /// # Errors
    /// As [`Lines::send`].
    pub(super) async fn send_async<T: Serialize>(&self, value: &T) -> Result<(), Fail> {
        self.call.check()?;
        match self.pieces.put(line(value)?).await {
            true => Ok(()),
            false => Err(gone()),
        }
    }
}

/// Lines, in pieces of a size that is worth the way.
#[derive(Default)]
pub(super) struct Text {
    pieces: Vec<Bytes>,
    rest: Vec<u8>,
}

impl Text {
    /// One line more.
    ///
    /// # Errors
    /// A value that has no JSON.
    pub(super) fn line<T: Serialize>(&mut self, value: &T) -> Result<(), Fail> {
        serde_json::to_writer(&mut self.rest, value).map_err(|e| Fail::new(Code::Failure, e))?;
        self.raw(b"\n");
        Ok(())
    }

    /// Bytes more; they are not parted.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        if self.rest.len() >= TOGETHER {
            self.pieces.push(std::mem::take(&mut self.rest).into());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.rest.is_empty()
    }

    /// All of it.
    pub(super) fn into_pieces(mut self) -> Vec<Bytes> {
        if !self.rest.is_empty() {
            self.pieces.push(self.rest.into());
        }
        self.pieces
    }
}

fn gone() -> Fail {
    Fail::new(Code::Interrupted, "the client went away")
}

pub(super) fn line<T: Serialize>(value: &T) -> Result<Bytes, Fail> {
    let mut text = serde_json::to_vec(value).map_err(|e| Fail::new(Code::Failure, e))?;
    text.push(b'\n');
    Ok(text.into())
}

/// An answer of JSON lines that `produce` sends from a blocking thread. A failure before the first line is the answer's
/// status; a later one is the last line.
pub(super) async fn lines_blocking(
    state: &State,
    call: &Arc<Call>,
    produce: impl FnOnce(&Lines) -> Result<(), Fail> + Send + 'static,
) -> Response {
    lines_of_upload(state, call, status_of, produce).await
}

/// As [`lines_blocking`], with another status for a failure.
pub(super) async fn lines_of_upload(
    state: &State,
    call: &Arc<Call>,
    status: fn(&Fail) -> StatusCode,
    produce: impl FnOnce(&Lines) -> Result<(), Fail> + Send + 'static,
) -> Response {
    let thread = match state.thread().await {
        Ok(thread) => thread,
        Err(fail) => return fail.into_response(),
    };
    let (pieces, waiting) = Pieces::new();
    let call = Arc::clone(call);
    tokio::task::spawn_blocking(move || {
        let lines = Lines { pieces, call };
        if let Err(fail) = produce(&lines)
            && let Ok(last) = line(&fail.to_json())
        {
            let _is_there = lines.pieces.put_blocking(last);
        }
        drop(thread);
    });
    lines_response(waiting, status).await
}

/// As [`lines_blocking`], for a task.
pub(super) async fn lines_async<F>(call: &Arc<Call>, produce: impl FnOnce(Lines) -> F) -> Response
where
    F: Future<Output = (Lines, Result<(), Fail>)> + Send + 'static,
{
    let (pieces, waiting) = Pieces::new();
    let producing = produce(Lines {
        pieces,
        call: Arc::clone(call),
    });
    tokio::spawn(async move {
        if let (lines, Err(fail)) = producing.await
            && let Ok(last) = line(&fail.to_json())
        {
            let _is_there = lines.pieces.put(last).await;
        }
    });
    lines_response(waiting, status_of).await
}

async fn lines_response(mut waiting: Waiting, status: fn(&Fail) -> StatusCode) -> Response {
    let first = waiting.recv().await.map(|(line, _room)| line);
    if let Some(line) = &first
        && let Some(fail) = failure_in(line)
    {
        return (status(&fail), axum::Json(fail.to_json())).into_response();
    }
    let first = futures::stream::iter(first.map(Ok));
    let body = Body::from_stream(first.chain(body_of(waiting)));
    typed("application/x-ndjson", body)
}

fn failure_in(line: &[u8]) -> Option<Fail> {
    if !line.starts_with(b"{\"error\":{") {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    serde_json::from_value(value.get("error")?.clone()).ok()
}

/// An answer of bytes that `produce` writes from a blocking thread. A failure before the first byte is the answer's status;
/// a later one breaks the answer off, so that nobody takes the beginning for the whole, and is kept in `failures`.
pub(super) async fn bytes_blocking(
    kind: &'static str,
    what: &'static str,
    call: &Arc<Call>,
    state: Arc<State>,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), Fail> + Send + 'static,
) -> Response {
    let thread = match state.thread().await {
        Ok(thread) => thread,
        Err(fail) => return fail.into_response(),
    };
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let call = Arc::clone(call);
    let outcome = tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(
            PIECE,
            Out {
                sender: sender.clone(),
                call: Arc::clone(&call),
            },
        );
        let outcome = produce(&mut out).and_then(|()| out.flush().map_err(crate::content::io_fail));
        if let Err(fail) = &outcome {
            if fail.code != Code::Interrupted {
                tracing::warn!(error = %fail, what, "an answer failed");
            }
            // What is still in the buffer must not be sent after all.
            let (_, _discarded) = out.into_parts();
            state.failures.remember(&call.id, fail.clone());
            let _client_gone = sender.blocking_send(Err(io::Error::other("the answer failed")));
        }
        drop(thread);
        outcome
    });
    match receiver.recv().await {
        Some(Ok(first)) => {
            let rest = ReceiverStream::new(receiver);
            typed(
                kind,
                Body::from_stream(futures::stream::iter([Ok(first)]).chain(rest)),
            )
        }
        // Nothing was sent: it failed at once, or there is nothing to send.
        _ => match outcome.await {
            Ok(Ok(())) => typed(kind, Body::empty()),
            Ok(Err(fail)) => fail.into_response(),
            Err(_) => Fail::new(Code::Failure, "the request failed inside the daemon")
                .hint("see the daemon's log")
                .into_response(),
        },
    }
}

struct Out {
    sender: mpsc::Sender<Result<Bytes, io::Error>>,
    call: Arc<Call>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        self.call.check().map_err(io::Error::other)?;
        let sent = self.sender.blocking_send(Ok(Bytes::copy_from_slice(piece)));
        sent.map_err(|_| io::Error::other(gone()))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body with its content type, never sniffed, never cached.
pub(super) fn typed(kind: &'static str, body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that stops reading holds so many bytes of an answer, however long its lines are.
    #[tokio::test]
    async fn what_waits_for_a_slow_client_is_bounded_in_bytes() {
        let (pieces, mut waiting) = Pieces::new();
        let large = Bytes::from(vec![0; 700 << 10]);
        assert!(pieces.put(large.clone()).await);
        let second = {
            let (pieces, large) = (pieces.clone(), large.clone());
            tokio::spawn(async move { pieces.put(large).await })
        };
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!second.is_finished());
        assert!(waiting.recv().await.is_some());
        assert!(matches!(second.await, Ok(true)));
        assert!(waiting.recv().await.is_some());
        // One that is larger than all goes alone, and whoever waits is told when the client is gone.
        assert!(pieces.put(vec![0; 3 << 20].into()).await);
        let stuck = tokio::spawn(async move { pieces.put(large).await });
        tokio::task::yield_now().await;
        drop(waiting);
        assert!(matches!(stuck.await, Ok(false)));
    }
}
