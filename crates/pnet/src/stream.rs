//! Driver: the stream of a private swarm on a socket.
//!
//! On the wire it is PSK v1 as Kubo and libp2p-pnet speak it: 24 bytes of nonce each way, then XSalsa20. Here it is buffered on both
//! sides, because the layers above write and read in small pieces: many writes leave in one system call, and one read brings all that
//! the kernel holds. What the first bytes mean is decided in [`handshake`](crate::handshake); the first 20 decrypted bytes are held
//! back until they are compared.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    cipher::XSalsa20,
    error::{PskError, Silence},
    foreign::OtherProtocol,
    handshake::{HEADER, HeaderCheck, KeyVerdict, NONCE_LEN, NonceCheck, NonceRefusal},
    key::{Fingerprint, SwarmKey},
};

/// Buffers begin with this and come back to it when little passes, in bytes. Larger than what an honest peer has in flight while
/// the key is checked, so that a refused connection closes without unread data, which would turn the close into a reset.
const LEAST: usize = 1024;
/// Buffers of a busy connection, in bytes: larger ones save no time in system calls and fall out of the first cache.
const MOST: usize = 32 * 1024;
/// A read into at least this much needs no buffer between.
const DIRECT: usize = MOST / 2;

/// Which side of the connection we are. It matters only for the manner of saying no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We dialed: our header has gone out before we read.
    Dialer,
    /// We accepted: our header has not gone out yet.
    Listener,
}

/// A connection inside the private swarm: XSalsa20 in both directions, and a read side that yields nothing before the remote's
/// key is known to be ours.
///
/// It hides traffic from outsiders but does not protect it from change (there is no MAC): run Noise or TLS above it. Its buffers hold
/// at most 32 KiB a direction, and 1 KiB on a quiet connection. As with every buffered writer, what was written leaves with
/// `flush`.
pub struct PskStream<S> {
    socket: S,
    reader: Reader,
    writer: Writer,
    state: State,
    side: Side,
    fingerprint: Fingerprint,
    outcome: KeyOutcome,
}

enum State {
    /// Holding bytes back until there are 20.
    Checking(HeaderCheck),
    /// Bytes pass through.
    Open,
    /// The key is not ours: what we owe goes out, then the connection closes.
    Refusing,
    /// Over.
    Refused(PskError),
}

/// The result of the key check, readable while the stream is buried in the layers above.
#[derive(Clone, Debug, Default)]
pub struct KeyOutcome {
    verdict: Arc<Mutex<Option<Result<(), PskError>>>>,
    /// What the remote seems to speak, if its nonce looked like that.
    suspected: Arc<Mutex<Option<OtherProtocol>>>,
}

impl KeyOutcome {
    /// `None` while fewer than 20 bytes have come.
    pub fn get(&self) -> Option<Result<(), PskError>> {
        *lock(&self.verdict)
    }

    /// The cause of a failed check in view of what the nonce looked like: who greets in another protocol has no key at all.
    pub(crate) fn blame(&self, error: PskError) -> PskError {
        match (error, *lock(&self.suspected)) {
            (
                PskError::WrongSwarmKey { .. }
                | PskError::ProbablyWrongSwarmKey { .. }
                | PskError::NoNonce { .. },
                Some(spoken),
            ) => PskError::NotLibp2p { spoken },
            _ => error,
        }
    }

    fn set(&self, outcome: Result<(), PskError>) {
        *lock(&self.verdict) = Some(outcome.map_err(|error| self.blame(error)));
    }

    fn suspect(&self, spoken: Option<OtherProtocol>) {
        *lock(&self.suspected) = spoken;
    }
}

/// Nothing here panics while it holds a lock: a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S> PskStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Exchanges nonces within `deadline`. The key check follows with the first read, because only the layer above makes the remote talk.
    pub async fn handshake(
        mut socket: S,
        key: &SwarmKey,
        side: Side,
        deadline: Duration,
    ) -> Result<Self, PskError> {
        let mut ours = [0; NONCE_LEN];
        getrandom::fill(&mut ours).map_err(|_| PskError::NoRandom)?;
        let outcome = KeyOutcome::default();
        let exchanged = exchange(&mut socket, &ours, &outcome);
        let theirs = tokio::time::timeout(deadline, exchanged)
            .await
            .unwrap_or(Err(PskError::NoNonce {
                how: Silence::Timeout(deadline),
            }))
            .map_err(|error| outcome.blame(error))?;
        Ok(Self::after_nonces(
            socket, key, side, &ours, &theirs, outcome,
        ))
    }

    pub(crate) fn after_nonces(
        socket: S,
        key: &SwarmKey,
        side: Side,
        ours: &[u8; NONCE_LEN],
        theirs: &[u8; NONCE_LEN],
        outcome: KeyOutcome,
    ) -> Self {
        let key_bytes = key.expose_secret_bytes();
        Self {
            socket,
            reader: Reader::new(XSalsa20::new(key_bytes, theirs)),
            writer: Writer::new(XSalsa20::new(key_bytes, ours)),
            state: State::Checking(HeaderCheck::default()),
            side,
            fingerprint: key.fingerprint(),
            outcome,
        }
    }

    /// The socket below, with what it was given.
    pub(crate) fn into_socket(self) -> S {
        self.socket
    }

    /// A view of the key check that outlives the move of this stream into the next layer.
    pub fn outcome(&self) -> KeyOutcome {
        self.outcome.clone()
    }

    /// Reads until 20 bytes are there or the remote gives up.
    fn poll_check(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let State::Checking(check) = &mut self.state {
            let hung_up = PskError::ProbablyWrongSwarmKey {
                ours: self.fingerprint,
                how: Silence::HungUp,
            };
            let failure = match ready!(self.reader.poll_fill(&mut self.socket, cx)) {
                Ok(0) => hung_up,
                Ok(_) => {
                    let verdict = check.on_decrypted(self.reader.decrypt());
                    self.on_verdict(verdict);
                    continue;
                }
                Err(error) if is_hang_up(error.kind()) => hung_up,
                Err(error) => PskError::Io(error.kind()),
            };
            self.outcome.set(Err(failure));
            self.state = State::Refused(self.outcome.blame(failure));
        }
        Poll::Ready(())
    }

    fn on_verdict(&mut self, verdict: KeyVerdict) {
        match verdict {
            KeyVerdict::Unknown => {}
            KeyVerdict::Same => {
                self.outcome.set(Ok(()));
                self.state = State::Open;
            }
            KeyVerdict::Different => {
                self.outcome.set(Err(self.wrong_key()));
                // A listener still owes its header, by which the dialer knows that as well (PNET-H6).
                if self.side == Side::Listener {
                    self.writer.put(&HEADER);
                }
                self.state = State::Refusing;
            }
        }
    }

    /// Says no: what is owed, then close. Failures are of no interest any more.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let State::Refusing = self.state {
            let drained = ready!(self.writer.poll_drain(&mut self.socket, cx));
            if drained.is_ok() {
                let _ = ready!(Pin::new(&mut self.socket).poll_close(cx));
            }
            self.state = State::Refused(self.outcome.blame(self.wrong_key()));
        }
        Poll::Ready(())
    }

    fn wrong_key(&self) -> PskError {
        PskError::WrongSwarmKey {
            ours: self.fingerprint,
        }
    }

    fn check_refused(&self) -> io::Result<()> {
        match self.state {
            State::Refused(error) => Err(error.into()),
            State::Checking(_) | State::Open | State::Refusing => Ok(()),
        }
    }
}

/// Sends our nonce and returns the remote's.
async fn exchange<S>(
    socket: &mut S,
    ours: &[u8; NONCE_LEN],
    outcome: &KeyOutcome,
) -> Result<[u8; NONCE_LEN], PskError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.write_all(ours).await.map_err(nonce_error)?;
    socket.flush().await.map_err(nonce_error)?;
    let mut check = NonceCheck::default();
    check.on_sent(ours);
    let mut theirs = [0; NONCE_LEN];
    while check.received() < NONCE_LEN {
        let rest = &mut theirs[check.received()..];
        let count = socket.read(rest).await.map_err(nonce_error)?;
        if count == 0 {
            return Err(nonce_error(io::ErrorKind::UnexpectedEof.into()));
        }
        check
            .on_received(&rest[..count])
            .map_err(|refusal| match refusal {
                NonceRefusal::PlainText => PskError::NotPrivate,
                NonceRefusal::Foreign(spoken) => PskError::NotLibp2p { spoken },
                NonceRefusal::Reflected => PskError::Reflected,
            })?;
        outcome.suspect(check.suspected());
    }
    Ok(theirs)
}

impl<S> AsyncRead for PskStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_check(cx));
        ready!(this.poll_refuse(cx));
        this.check_refused()?;
        this.reader.poll_read(&mut this.socket, cx, buffer)
    }
}

impl<S> AsyncWrite for PskStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_refused()?;
        if this.writer.room() == 0 {
            ready!(this.writer.poll_drain(&mut this.socket, cx))?;
        }
        let count = bytes.len().min(this.writer.room());
        this.writer.put(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.writer.poll_drain(&mut this.socket, cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.writer.poll_drain(&mut this.socket, cx))?;
        Pin::new(&mut this.socket).poll_close(cx)
    }
}

impl<S> std::fmt::Debug for PskStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PskStream")
            .field("side", &self.side)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// Bytes from the socket that nobody took yet.
struct Reader {
    cipher: XSalsa20,
    /// `given..clear` is plain text to be taken, `clear..filled` is still encrypted: it is decrypted on its way out.
    buffer: Vec<u8>,
    given: usize,
    clear: usize,
    filled: usize,
    /// Length of the buffer at the next read into an empty one.
    wish: usize,
}

impl Reader {
    fn new(cipher: XSalsa20) -> Self {
        Self {
            cipher,
            buffer: Vec::new(),
            given: 0,
            clear: 0,
            filled: 0,
            wish: LEAST,
        }
    }

    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
        target: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.given < self.clear {
            let ready = &self.buffer[self.given..self.clear];
            let count = ready.len().min(target.len());
            target[..count].copy_from_slice(&ready[..count]);
            self.given += count;
            return Poll::Ready(Ok(count));
        }
        if self.given == self.filled {
            (self.given, self.clear, self.filled) = (0, 0, 0);
            if target.len() >= DIRECT {
                let count = ready!(Pin::new(socket).poll_read(cx, target))?;
                self.cipher.apply(&mut target[..count]);
                return Poll::Ready(Ok(count));
            }
            ready!(self.poll_fill(socket, cx))?;
        }
        let ready = &self.buffer[self.given..self.filled];
        let count = ready.len().min(target.len());
        self.cipher.apply_to(&ready[..count], &mut target[..count]);
        self.given += count;
        self.clear = self.given;
        Poll::Ready(Ok(count))
    }

    /// Reads once from the socket; zero bytes at the end of the stream.
    fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.filled == 0 && self.buffer.len() != self.wish {
            self.buffer.resize(self.wish, 0);
            self.buffer.shrink_to(self.wish);
        }
        let room = &mut self.buffer[self.filled..];
        let count = ready!(Pin::new(socket).poll_read(cx, room))?;
        self.wish = next_size(self.wish, count);
        self.filled += count;
        Poll::Ready(Ok(count))
    }

    /// What was read and not yet decrypted, decrypted in place; it stays to be taken.
    fn decrypt(&mut self) -> &[u8] {
        let fresh = &mut self.buffer[self.clear..self.filled];
        self.cipher.apply(fresh);
        self.clear = self.filled;
        fresh
    }
}

/// Encrypted bytes that have not left yet.
struct Writer {
    cipher: XSalsa20,
    /// `sent..filled` is still to be sent.
    buffer: Vec<u8>,
    sent: usize,
    filled: usize,
    /// Length of the buffer when it is used next.
    wish: usize,
}

impl Writer {
    fn new(cipher: XSalsa20) -> Self {
        Self {
            cipher,
            buffer: Vec::new(),
            sent: 0,
            filled: 0,
            wish: LEAST,
        }
    }

    /// Bytes that [`Self::put`] may take.
    fn room(&self) -> usize {
        MOST - self.filled
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        if end > self.buffer.len() {
            self.buffer.resize(end.max(self.wish), 0);
        }
        self.cipher
            .apply_to(bytes, &mut self.buffer[self.filled..end]);
        self.filled = end;
    }

    /// Sends everything. What is under way stays so if the socket fails or is not ready.
    fn poll_drain<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.filled == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.filled {
            let rest = &self.buffer[self.sent..self.filled];
            match ready!(Pin::new(&mut *socket).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.wish = next_size(self.wish, self.filled);
        if self.buffer.len() > self.wish {
            self.buffer.truncate(self.wish);
            self.buffer.shrink_to(self.wish);
        }
        (self.sent, self.filled) = (0, 0);
        Poll::Ready(Ok(()))
    }
}

/// Size of a buffer of `size` bytes after `used` of it were used at once: grows when full, shrinks when mostly empty.
fn next_size(size: usize, used: usize) -> usize {
    if used >= size {
        (size * 4).min(MOST)
    } else if used < size / 4 {
        (size / 4).max(LEAST)
    } else {
        size
    }
}

fn nonce_error(error: io::Error) -> PskError {
    if is_hang_up(error.kind()) {
        PskError::NoNonce {
            how: Silence::HungUp,
        }
    } else {
        PskError::Io(error.kind())
    }
}

/// Ends of a connection that the remote caused.
fn is_hang_up(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}
