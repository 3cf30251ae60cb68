//! Below the multiplexer: shows the frames that come to the account, and stops reading when the account says so. Over a slow line it takes
//! the next frame only when those before it are on their way: in the layers below, 200 KiB of blocks could lie before a name that changed.

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
    slow: bool,
    /// Bytes that the layers below took and may hold.
    unsent: usize,
}

/// Most bytes that the layers below hold over a slow line, but for one frame of 14 KiB: as many as the socket.
const UNSENT: usize = 16 * 1024;

impl<S> Gate<S> {
    pub(super) fn new(socket: S, account: Arc<Account>, slow: bool) -> Self {
        Self {
            socket,
            frames: Frames::default(),
            account,
            slow,
            unsent: 0,
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
        let this = self.get_mut();
        let full = this.unsent > 0 && this.unsent + bytes.len() > UNSENT;
        if this.slow && full {
            ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
            this.unsent = 0;
        }
        let count = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
        this.unsent = this.unsent.saturating_add(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        this.unsent = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::muxer::ReceiveBudget;

    /// Takes every byte, and passes on none until it may.
    #[derive(Default)]
    struct Line {
        held: usize,
        open: bool,
    }

    impl AsyncWrite for Line {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.held += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            if !self.open {
                return Poll::Pending;
            }
            self.held = 0;
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(cx)
        }
    }

    /// As the multiplexer does: flush, and write the next frame even if the last one is not on its way.
    fn frames(gate: &mut Gate<Line>, cx: &mut Context<'_>) -> usize {
        let frame = [0; 8 * 1024];
        let wrote = |gate: &mut Gate<Line>, cx: &mut Context<'_>| {
            let _ready = Pin::new(&mut *gate).poll_flush(cx);
            Pin::new(&mut *gate).poll_write(cx, &frame).is_ready()
        };
        (0..100).take_while(|_| wrote(gate, cx)).count()
    }

    #[test]
    fn pa_7_over_a_slow_line_little_lies_below_the_streams() {
        let waker = futures::task::noop_waker();
        let mut cx = Context::from_waker(&waker);
        let account = || Account::new(&ReceiveBudget::default());
        let mut slow = Gate::new(Line::default(), account(), true);
        assert_eq!(frames(&mut slow, &mut cx), 2);
        assert!(slow.socket.held <= UNSENT);
        slow.socket.open = true;
        assert_eq!(frames(&mut slow, &mut cx), 100, "it goes on");
        let mut fast = Gate::new(Line::default(), account(), false);
        assert_eq!(frames(&mut fast, &mut cx), 100);
    }
}
