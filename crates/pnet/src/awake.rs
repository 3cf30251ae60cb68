//! Driver: looks at the clocks once a second, for [`wake`](crate::wake).

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::Sleep;

use crate::wake::{LOOK_EVERY, Wake};

/// Notices that the machine has slept.
pub(crate) struct Awake {
    start: Instant,
    wake: Wake,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Awake {
    pub(crate) fn new(at_least: Duration) -> Self {
        Self {
            start: Instant::now(),
            wake: Wake::new(at_least),
            timer: None,
        }
    }

    /// Ready with its length when the machine has slept.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        loop {
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK_EVERY)));
            let first = self.wake.is_new();
            if timer.as_mut().poll(cx).is_pending() && !first {
                return Poll::Pending;
            }
            self.timer = None;
            if let Some(slept) = self.wake.look(self.start.elapsed(), passed()) {
                return Poll::Ready(slept);
            }
        }
    }
}

/// A clock that goes on while the machine sleeps.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn passed() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

/// Elsewhere the wall clock. Where it is set forward by much, connections are made anew once, which costs a second.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn passed() -> Duration {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}
