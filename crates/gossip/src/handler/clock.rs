//! The one clock of the driver: the system's, or one that a test turns by hand.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures_timer::Delay;

use super::shared::lock;
use crate::Time;

/// Nobody sleeps longer at one go: the system's clock cannot tell every time that a [`Duration`] can. Who wakes up early looks again.
const LONGEST_SLEEP: Duration = Duration::from_secs(86_400);

/// Time since start, and sleeping.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    System(Instant),
    Hand(HandClock),
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self::System(Instant::now())
    }

    pub(crate) fn now(&self) -> Time {
        match self {
            Self::System(start) => start.elapsed(),
            Self::Hand(hand) => hand.now(),
        }
    }

    /// Ready after `time`, or a day.
    pub(crate) fn sleep(&self, time: Duration) -> Sleep {
        match self {
            Self::System(_) => Sleep::System(Delay::new(time.min(LONGEST_SLEEP))),
            Self::Hand(hand) => Sleep::Hand {
                until: hand.now().saturating_add(time),
                hand: hand.clone(),
                place: None,
            },
        }
    }
}

/// A future that is ready when its time has come.
pub(crate) enum Sleep {
    System(Delay),
    Hand {
        hand: HandClock,
        until: Time,
        place: Option<(Time, u64)>,
    },
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Self::System(delay) => delay.poll_unpin(cx),
            Self::Hand { hand, until, place } => {
                let mut inner = lock(&hand.0);
                if inner.now >= *until {
                    return Poll::Ready(());
                }
                let at = *place.get_or_insert_with(|| {
                    inner.next += 1;
                    (*until, inner.next)
                });
                inner.sleepers.insert(at, cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Self::Hand {
            hand,
            place: Some(place),
            ..
        } = self
        {
            lock(&hand.0).sleepers.remove(place);
        }
    }
}

/// A clock that stands until it is turned, for tests of hours that take seconds; see [`crate::Behaviour::with_clock`].
#[derive(Clone, Debug, Default)]
pub struct HandClock(Arc<Mutex<Hand>>);

#[derive(Debug, Default)]
struct Hand {
    now: Time,
    sleepers: BTreeMap<(Time, u64), Waker>,
    next: u64,
}

impl HandClock {
    /// Time since start.
    #[must_use]
    pub fn now(&self) -> Duration {
        lock(&self.0).now
    }

    /// Lets time pass, and wakes who slept for it.
    pub fn turn(&self, time: Duration) {
        let mut inner = lock(&self.0);
        inner.now = inner.now.saturating_add(time);
        let at = (inner.now, u64::MAX);
        let rest = inner.sleepers.split_off(&at);
        let due = std::mem::replace(&mut inner.sleepers, rest);
        drop(inner);
        for waker in due.into_values() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use super::*;

    /// A message that is held for ever on an idle node: the system's clock overflowed.
    #[test]
    fn a_sleep_may_be_of_any_length() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut sleep = Clock::start().sleep(Duration::MAX);
        assert!(sleep.poll_unpin(&mut cx).is_pending());
    }

    #[test]
    fn a_clock_that_is_turned_by_hand_wakes_in_time() {
        let hand = HandClock::default();
        let clock = Clock::Hand(hand.clone());
        let mut cx = Context::from_waker(Waker::noop());
        let mut sleep = clock.sleep(Duration::from_secs(10));
        assert!(sleep.poll_unpin(&mut cx).is_pending());
        hand.turn(Duration::from_secs(9));
        assert!(sleep.poll_unpin(&mut cx).is_pending());
        assert_eq!(lock(&hand.0).sleepers.len(), 1);
        hand.turn(Duration::from_secs(1));
        assert!(lock(&hand.0).sleepers.is_empty());
        assert!(sleep.poll_unpin(&mut cx).is_ready());
        assert!(clock.sleep(Duration::ZERO).poll_unpin(&mut cx).is_ready());
    }
}
