//! Driver: the nonce exchange and the key check on a socket.
//!
//! The cipher stream itself is libp2p-pnet's. Around it lie two thin layers: `Tap` below, which watches the nonces go by, and
//! [`PskStream`] above, which holds the first 20 decrypted bytes back until they are compared. What the bytes mean is decided in
//! [`handshake`](crate::handshake).

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p_pnet::{PnetConfig, PnetError, PnetOutput, PreSharedKey};

use crate::{
    error::{PskError, Silence},
    handshake::{HEADER, HeaderCheck, KeyVerdict, NONCE_LEN, NonceCheck, NonceRefusal},
    key::{Fingerprint, SwarmKey},
};

/// Bytes read at once while the key is checked. Larger than what an honest peer has in flight at that point, so that a
/// refused connection closes without unread data, which would turn the close into a reset.
const CHECK_READ: usize = 1024;

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
/// It hides traffic from outsiders but does not protect it from change (there is no MAC): run Noise or TLS above it.
pub struct PskStream<S> {
    inner: PnetOutput<Tap<S>>,
    state: State,
    side: Side,
    fingerprint: Fingerprint,
    outcome: KeyOutcome,
}

enum State {
    /// Holding bytes back until there are 20.
    Checking { check: HeaderCheck, held: Vec<u8> },
    /// The key is ours; `held[given..]` is still to be handed up.
    Replaying { held: Vec<u8>, given: usize },
    /// Bytes pass through.
    Open,
    /// The key is not ours. A listener still owes its header, by which the dialer knows that as well (PNET-H6).
    Refusing { written: usize },
    /// Over.
    Refused(PskError),
}

/// The result of the key check, readable while the stream is buried in the layers above.
#[derive(Clone, Debug, Default)]
pub struct KeyOutcome(Arc<Mutex<Option<Result<(), PskError>>>>);

impl KeyOutcome {
    /// `None` while fewer than 20 bytes have come.
    pub fn get(&self) -> Option<Result<(), PskError>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, outcome: Result<(), PskError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }
}

impl<S> PskStream<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Exchanges nonces within `deadline`. The key check follows with the first read, because only the layer above makes the remote talk.
    pub async fn handshake(
        socket: S,
        key: &SwarmKey,
        side: Side,
        deadline: Duration,
    ) -> Result<Self, PskError> {
        let tap = Tap {
            socket,
            check: Some(NonceCheck::default()),
        };
        let psk = PnetConfig::new(PreSharedKey::new(*key.expose_secret_bytes()));
        let inner = match tokio::time::timeout(deadline, psk.handshake(tap)).await {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => return Err(nonce_error(error)),
            Err(_) => {
                return Err(PskError::NoNonce {
                    how: Silence::Timeout(deadline),
                });
            }
        };
        Ok(Self {
            inner,
            state: State::Checking {
                check: HeaderCheck::default(),
                held: Vec::new(),
            },
            side,
            fingerprint: key.fingerprint(),
            outcome: KeyOutcome::default(),
        })
    }

    /// A view of the key check that outlives the move of this stream into the next layer.
    pub fn outcome(&self) -> KeyOutcome {
        self.outcome.clone()
    }

    /// Reads until 20 bytes are there or the remote gives up.
    fn poll_check(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Checking { check, held } = &mut self.state else {
            return Poll::Ready(());
        };
        let mut buffer = [0; CHECK_READ];
        let hung_up = PskError::ProbablyWrongSwarmKey {
            ours: self.fingerprint,
            how: Silence::HungUp,
        };
        loop {
            let read = match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer)) {
                Ok(0) => Err(hung_up),
                Ok(read) => Ok(&buffer[..read]),
                Err(error) if is_hang_up(error.kind()) => Err(hung_up),
                Err(error) => Err(PskError::Io(error.kind())),
            };
            match read {
                Err(error) => {
                    self.outcome.set(Err(error));
                    self.state = State::Refused(error);
                    return Poll::Ready(());
                }
                Ok(bytes) => {
                    held.extend_from_slice(bytes);
                    match check.on_decrypted(bytes) {
                        KeyVerdict::Unknown => {}
                        KeyVerdict::Same => {
                            self.outcome.set(Ok(()));
                            self.state = State::Replaying {
                                held: std::mem::take(held),
                                given: 0,
                            };
                            return Poll::Ready(());
                        }
                        KeyVerdict::Different => {
                            self.outcome.set(Err(PskError::WrongSwarmKey {
                                ours: self.fingerprint,
                            }));
                            let written = match self.side {
                                Side::Listener => 0,
                                Side::Dialer => HEADER.len(),
                            };
                            self.state = State::Refusing { written };
                            return Poll::Ready(());
                        }
                    }
                }
            }
        }
    }

    /// Says no: the header that we owe, then close. Failures are of no interest any more.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Refusing { written } = &mut self.state else {
            return Poll::Ready(());
        };
        let mut inner = Pin::new(&mut self.inner);
        while *written < HEADER.len() {
            match ready!(inner.as_mut().poll_write(cx, &HEADER[*written..])) {
                Ok(0) | Err(_) => break,
                Ok(count) => *written += count,
            }
        }
        // Close flushes what the cipher has buffered.
        let _ = ready!(inner.poll_close(cx));
        self.state = State::Refused(PskError::WrongSwarmKey {
            ours: self.fingerprint,
        });
        Poll::Ready(())
    }
}

impl<S> AsyncRead for PskStream<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_check(cx));
        ready!(this.poll_refuse(cx));
        match &mut this.state {
            State::Open => Pin::new(&mut this.inner).poll_read(cx, buffer),
            State::Replaying { held, given } => {
                let count = buffer.len().min(held.len() - *given);
                buffer[..count].copy_from_slice(&held[*given..*given + count]);
                *given += count;
                if *given == held.len() {
                    this.state = State::Open;
                }
                Poll::Ready(Ok(count))
            }
            State::Refused(error) => Poll::Ready(Err((*error).into())),
            State::Checking { .. } | State::Refusing { .. } => {
                unreachable!("both were driven to their end above")
            }
        }
    }
}

impl<S> AsyncWrite for PskStream<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let State::Refused(error) = &this.state {
            return Poll::Ready(Err((*error).into()));
        }
        Pin::new(&mut this.inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
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

/// Passes bytes through and shows the first ones of both directions to the check.
struct Tap<S> {
    socket: S,
    /// `None` once the remote's nonce is complete.
    check: Option<NonceCheck>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        if let Some(check) = &mut this.check {
            check
                .on_received(&buffer[..count])
                .map_err(|refusal| match refusal {
                    NonceRefusal::PlainText => PskError::NotPrivate,
                    NonceRefusal::Reflected => PskError::Reflected,
                })?;
            if check.received() == NONCE_LEN {
                this.check = None;
            }
        }
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
        if let Some(check) = &mut this.check {
            check.on_sent(&bytes[..count]);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx)
    }
}

fn nonce_error(error: PnetError) -> PskError {
    let (PnetError::HandshakeError(error) | PnetError::IoError(error)) = error;
    let typed = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<PskError>());
    match typed {
        Some(typed) => *typed,
        None if is_hang_up(error.kind()) => PskError::NoNonce {
            how: Silence::HungUp,
        },
        None => PskError::Io(error.kind()),
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
