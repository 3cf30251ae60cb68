//! Below the multiplexer: shows the frames that come to the account, and stops reading when the account says so.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

use super::{account::Account, frames::Frames};

#[derive(Debug)]
pub(super) struct Gate<S> {
    socket: S,
    frames: Frames,
    account: Arc<Account>,
}

impl<S> Gate<S> {
    pub(super) fn new(socket: S, account: Arc<Account>) -> Self {
        Self {
            socket,
            frames: Frames::default(),
            account,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.account.may_read(cx.waker()) {
            return Poll::Pending;
        }
        let count = ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        this.frames
            .feed(&buffer[..count], |seen| this.account.received(seen));
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx)
    }
}
