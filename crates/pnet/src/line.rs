//! Which line a connection goes over, what is counted of it, and what may lie unsent on it.
//!
//! The owner says which addresses are behind a slow line. There little may lie between a stream and the line: what a peer was promised in
//! time waits behind every byte that was handed over before.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};
use multiaddr::Multiaddr;

/// What an address is reached over.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// At most 32 KiB lie unsent below the streams of a connection: 16 in the layers above the socket, but for one frame of 14 KiB, and where
    /// the system has `TCP_NOTSENT_LOWAT` (Linux, Android) 16 in the socket, beside what is on its way. Costs some throughput on a fast one.
    pub slow: bool,
    /// Counts the bytes of all connections that it was given for.
    pub meter: Option<Arc<Meter>>,
}

/// Bytes that went through sockets, those of connections that did not come about included.
#[derive(Debug, Default)]
pub struct Meter {
    read: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// Bytes that came.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that were handed to the system.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// Tells the line of an address. The default knows of none.
#[derive(Clone, Default)]
pub struct Lines(Option<Arc<LineOf>>);

type LineOf = dyn Fn(&Multiaddr) -> Line + Send + Sync;

impl Lines {
    /// Asked once for each connection, with the address of the remote.
    pub fn new(line_of: impl Fn(&Multiaddr) -> Line + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(line_of)))
    }

    pub(crate) fn of(&self, address: &Multiaddr) -> Line {
        self.0.as_ref().map_or_else(Line::default, |of| of(address))
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "Lines(..)",
            None => "Lines(none)",
        })
    }
}

/// Most bytes that a socket over a slow line holds unsent.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 16 * 1024;

/// Bounds what the system holds of a slow connection. Where that cannot be done the system decides, as it does everywhere else.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn bound(socket: &tokio::net::TcpStream) {
    if let Err(error) = socket2::SockRef::from(socket).set_tcp_notsent_lowat(UNSENT) {
        tracing::debug!(%error, "what a socket holds unsent cannot be bounded");
    }
}

/// The system has no such bound, or no safe way to set it.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn bound(_socket: &tokio::net::TcpStream) {}

/// A socket that is counted.
#[derive(Debug)]
pub(crate) struct Metered<S> {
    socket: S,
    meter: Option<Arc<Meter>>,
}

impl<S> Metered<S> {
    pub(crate) fn new(socket: S, meter: Option<Arc<Meter>>) -> Self {
        Self { socket, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        if let Some(meter) = &this.meter {
            meter.read.fetch_add(count as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
        if let Some(meter) = &this.meter {
            meter.written.fetch_add(count as u64, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A remote that reads nothing: the system takes what its buffers hold, and of what it cannot send yet no more than the bound and a piece.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn pa_7_a_slow_socket_says_that_it_is_full_early() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dial = async || {
            let (out, accepted) =
                tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
            (out.unwrap(), accepted.unwrap().0)
        };
        let fill = async |socket: &tokio::net::TcpStream| {
            let mut took = 0;
            loop {
                let full =
                    tokio::time::timeout(std::time::Duration::from_millis(200), socket.writable());
                if full.await.is_err() {
                    return took;
                }
                took += socket.try_write(&[0; 8192]).unwrap_or(0);
            }
        };
        let (fast, _unread) = dial().await;
        let (slow, _unread_either) = dial().await;
        bound(&slow);
        let lowat = socket2::SockRef::from(&slow).tcp_notsent_lowat().unwrap();
        assert_eq!(lowat, UNSENT);
        let (fast, slow) = (fill(&fast).await, fill(&slow).await);
        assert!(slow < fast, "{slow} and {fast}");
    }

    #[test]
    fn what_went_through_is_counted_for_the_line_of_the_address() {
        let meter = Arc::new(Meter::default());
        let lines = Lines::new({
            let meter = meter.clone();
            move |address| Line {
                slow: true,
                meter: address
                    .to_string()
                    .contains("192.0.2")
                    .then(|| meter.clone()),
            }
        });
        let far = lines.of(&"/ip4/192.0.2.1/tcp/4001".parse().unwrap());
        let near = lines.of(&"/ip4/10.0.0.1/tcp/4001".parse().unwrap());
        assert!(far.slow && near.meter.is_none());
        let mut socket = Metered::new(futures::io::Cursor::new(vec![0; 100]), far.meter);
        let mut buffer = [0; 30];
        futures::executor::block_on(async {
            use futures::{AsyncReadExt, AsyncWriteExt};
            socket.read_exact(&mut buffer).await.unwrap();
            socket.write_all(&buffer[..20]).await.unwrap();
        });
        assert_eq!((meter.read(), meter.written()), (30, 20));
        assert!(!Lines::default().of(&"/memory/1".parse().unwrap()).slow);
    }
}
