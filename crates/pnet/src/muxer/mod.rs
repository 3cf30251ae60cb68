//! Yamux, bounded: many streams on one connection, and a limit for what lies unread on all connections together.
//!
//! The multiplexer itself is the `yamux` crate. It grants each stream a window of 256 KiB, and Kubo needs up to 512 streams, so one
//! connection may legally leave 128 MiB unread here. Around it lie two thin layers: a [`Gate`](gate::Gate) below, which watches the frames
//! go by and stops reading the connection, and [`Stream`] above, which says what was taken. The rule is in [`budget`].
//!
//! ```text
//!   swarm ── Stream ── yamux ── Gate ── Noise ── key ── TCP
//!              │ taken           │ received
//!              └──── account ────┘── budget of the node
//! ```

mod account;
mod budget;
mod frames;
mod gate;
mod sync;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p_core::muxing::{StreamMuxer, StreamMuxerEvent};
use yamux::{Connection, ConnectionError, Mode};

use crate::stream::Side;
use account::Account;
pub use budget::ReceiveBudget;
use gate::Gate;

/// Streams that the remote opened and the swarm has not taken. More are reset; yamux itself lets a remote open so many before it
/// waits for an acknowledgement.
const BACKLOG: usize = 256;
/// Window that every stream has, by yamux's specification, in bytes.
const WINDOW: usize = 256 * 1024;
/// Window that the streams of a connection may gain together on links with a long round trip, in bytes.
const GROWTH: usize = 32 * 1024 * 1024;

/// Payload of the largest frame that is sent, in bytes. The receiver's yamux asks for zeroed memory for each; below this size jemalloc
/// takes it from what was used before, at 16 KiB it has the system map fresh pages (measured: four faults and a system call a frame).
const FRAME: usize = 14 * 1024;

/// One multiplexed connection.
pub(crate) struct Muxer<S> {
    connection: Connection<Gate<S>>,
    account: Arc<Account>,
    inbound: VecDeque<Stream>,
    /// Waits in `poll_inbound`.
    waker: Option<Waker>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Muxer<S> {
    /// Over a slow line no more than 16 KiB lie between the streams and the socket.
    pub(crate) fn new(
        socket: S,
        side: Side,
        max_streams: usize,
        budget: &ReceiveBudget,
        slow: bool,
    ) -> Self {
        let mut config = yamux::Config::default();
        // First: the window is checked against the number of streams.
        config.set_max_num_streams(0);
        config.set_max_connection_receive_window(Some(max_streams * WINDOW + GROWTH));
        config.set_max_num_streams(max_streams);
        config.set_split_send_size(FRAME);
        let mode = match side {
            Side::Dialer => Mode::Client,
            Side::Listener => Mode::Server,
        };
        let account = Account::new(budget);
        Self {
            connection: Connection::new(Gate::new(socket, account.clone(), slow), config, mode),
            account,
            inbound: VecDeque::new(),
            waker: None,
        }
    }

    fn wrap(&self, stream: yamux::Stream) -> Stream {
        Stream {
            account: self.account.clone(),
            stream,
        }
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let next = ready!(self.connection.poll_next_inbound(cx));
        let stream = next.unwrap_or(Err(ConnectionError::Closed));
        let stream = self.wrap(stream.map_err(io_error)?);
        if self.account.is_one_too_many() {
            // Dropped it is reset. There may be more; others get their turn first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<S> {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let this = self.get_mut();
        if let Some(stream) = this.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let polled = this.poll_connection(cx);
        if polled.is_pending() {
            this.waker = Some(cx.waker().clone());
        }
        polled
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let this = self.get_mut();
        let stream = ready!(this.connection.poll_new_outbound(cx)).map_err(io_error)?;
        this.account.opened(stream.id().val());
        Poll::Ready(Ok(this.wrap(stream)))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().connection.poll_close(cx).map_err(io_error)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, io::Error>> {
        let this = self.get_mut();
        let stream = ready!(this.poll_connection(cx))?;
        // Above the backlog the stream is dropped, which resets it.
        if this.inbound.len() < BACKLOG {
            this.inbound.push_back(stream);
        }
        if let Some(waker) = this.waker.take() {
            waker.wake();
        }
        // There may be more; others get their turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

fn io_error(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// One stream of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    stream: yamux::Stream,
    account: Arc<Account>,
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.account.taken(this.stream.id().val(), count);
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.account.closed(self.stream.id().val());
    }
}
