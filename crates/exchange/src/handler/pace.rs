//! The driver of the turns (`core::pace`): holds up what carries blocks on lines with a budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use futures::FutureExt;
use futures_timer::Delay;

use super::shared::{Clock, Outbox};
use super::sync::lock;
use crate::config::{Config, Line};
use crate::core::{Grant, Time, Turns};

/// All that ever went over a line, in bytes: as much of it as the owner knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// That came.
    pub read: u64,
    /// That was sent.
    pub written: u64,
}

/// Reads what went over a line. Asked often: it should cost no more than a few loads.
pub type Meter = Arc<dyn Fn(Line) -> Carried + Send + Sync>;

/// What all connections share.
pub(crate) struct Pace {
    near: Side,
    far: Side,
    clock: Clock,
    /// Names senders.
    next: AtomicU64,
    meter: Option<Meter>,
}

#[derive(Default)]
struct Side {
    /// There is a budget: looked at for each slice, without the lock.
    limited: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    turns: Option<Turns>,
    /// Of those who were not granted what they asked for.
    wakers: HashMap<u64, Waker>,
}

impl Pace {
    pub(crate) fn new(config: &Config, clock: Clock) -> Self {
        let pace = Self {
            near: Side::default(),
            far: Side::default(),
            clock,
            next: AtomicU64::new(0),
            meter: None,
        };
        pace.set(Line::Near, config.near.up);
        pace.set(Line::Far, config.far.up);
        pace
    }

    /// Before anybody has a ticket.
    pub(crate) fn with_meter(self: &Arc<Self>, config: &Config, meter: Meter) -> Arc<Self> {
        Arc::new(Self {
            meter: Some(meter),
            ..Self::new(config, self.clock)
        })
    }

    pub(crate) fn meter(&self) -> Option<&Meter> {
        self.meter.as_ref()
    }

    /// Changes what a line may carry, in bytes a second.
    pub(crate) fn set(&self, line: Line, rate: Option<u64>) {
        let side = self.side(line);
        let woken = {
            let mut inner = lock(&side.inner);
            inner.turns = rate.map(|rate| Turns::new(rate, self.clock.now()));
            side.limited.store(rate.is_some(), Ordering::SeqCst);
            std::mem::take(&mut inner.wakers)
        };
        woken.into_values().for_each(Waker::wake);
    }

    fn side(&self, line: Line) -> &Side {
        match line {
            Line::Near => &self.near,
            Line::Far => &self.far,
        }
    }

    fn ask(&self, line: Line, sender: u64, bytes: usize, cx: &Context<'_>) -> Grant {
        let now = self.clock.now();
        let mut inner = lock(&self.side(line).inner);
        let inner = &mut *inner;
        let Some(turns) = &mut inner.turns else {
            return Grant::Bytes(bytes);
        };
        if let Some(meter) = &self.meter {
            turns.carried(meter(line).written, now);
        }
        let grant = turns.ask(sender, bytes, now);
        match grant {
            Grant::Bytes(_) => {
                inner.wakers.remove(&sender);
                inner.wake_next(Some(sender));
            }
            Grant::Wait(_) => match inner.wakers.get_mut(&sender) {
                Some(waker) => waker.clone_from(cx.waker()),
                None => drop(inner.wakers.insert(sender, cx.waker().clone())),
            },
        }
        grant
    }

    fn leave(&self, line: Line, sender: u64) {
        let mut inner = lock(&self.side(line).inner);
        inner.wakers.remove(&sender);
        if let Some(turns) = &mut inner.turns {
            turns.leave(sender);
            inner.wake_next(None);
        }
    }
}

impl Inner {
    fn wake_next(&mut self, but: Option<u64>) {
        let Some(turns) = &self.turns else {
            return;
        };
        for next in turns.next().filter(|next| Some(*next) != but) {
            if let Some(waker) = self.wakers.get(&next) {
                waker.wake_by_ref();
            }
        }
    }
}

/// What one connection's answers need to be sent.
pub(crate) struct Ticket {
    pace: Arc<Pace>,
    outbox: Arc<Outbox>,
    sender: u64,
    /// Where it has a place, or waits for one.
    on: Option<Line>,
    waits: bool,
    timer: Option<(Time, Delay)>,
}

impl Ticket {
    pub(crate) fn new(pace: Arc<Pace>, outbox: Arc<Outbox>) -> Self {
        Self {
            sender: pace.next.fetch_add(1, Ordering::Relaxed),
            pace,
            outbox,
            on: None,
            waits: false,
            timer: None,
        }
    }

    /// How many of `bytes` may be sent now, and whether that had to be waited for.
    pub(crate) fn poll_take(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<(usize, bool)> {
        let line = self.outbox.line();
        if !self.pace.side(line).limited.load(Ordering::SeqCst) {
            self.leave();
            return Poll::Ready((bytes, false));
        }
        if self.on != Some(line) {
            self.leave();
            self.on = Some(line);
        }
        loop {
            match self.pace.ask(line, self.sender, bytes, cx) {
                Grant::Bytes(granted) => {
                    self.timer = None;
                    return Poll::Ready((granted, self.go_on()));
                }
                Grant::Wait(at) => {
                    self.hold();
                    let Some(at) = at else {
                        return Poll::Pending;
                    };
                    futures::ready!(self.wait_until(at, cx));
                }
            }
        }
    }

    /// Nothing more is to be sent for now.
    pub(crate) fn leave(&mut self) {
        if let Some(line) = self.on.take() {
            self.pace.leave(line, self.sender);
        }
        self.timer = None;
        self.go_on();
    }

    fn wait_until(&mut self, at: Time, cx: &mut Context<'_>) -> Poll<()> {
        let timer = match &mut self.timer {
            Some((set, timer)) if *set == at => timer,
            timer => {
                let wait = at.saturating_sub(self.pace.clock.now());
                &mut timer.insert((at, Delay::new(wait))).1
            }
        };
        futures::ready!(timer.poll_unpin(cx));
        self.timer = None;
        Poll::Ready(())
    }

    fn hold(&mut self) {
        if !self.waits {
            self.waits = true;
            self.outbox.hold(self.pace.clock.now());
        }
    }

    fn go_on(&mut self) -> bool {
        let waited = std::mem::take(&mut self.waits);
        if waited {
            self.outbox.go_on(self.pace.clock.now());
        }
        waited
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, Instant};

    use futures::executor::block_on;
    use futures::future::{join_all, poll_fn};

    use super::*;
    use crate::config::LineBudget;

    fn pace(up: Option<u64>) -> Arc<Pace> {
        let far = LineBudget { up, down: None };
        let config = Config::default().with_far(far);
        Arc::new(Pace::new(&config, Clock::start()))
    }

    fn ticket(pace: &Arc<Pace>) -> Ticket {
        Ticket::new(pace.clone(), Arc::default())
    }

    async fn send(mut ticket: Ticket, bytes: usize) -> (usize, Ticket) {
        let (mut left, mut waits) = (bytes, 0);
        while left > 0 {
            let (granted, waited) = poll_fn(|cx| ticket.poll_take(left, cx)).await;
            left -= granted;
            waits += usize::from(waited);
        }
        ticket.leave();
        (waits, ticket)
    }

    /// Whoever waits is woken: twenty senders on two places all come to an end, and not before the rate allows.
    #[test]
    fn pa_2_all_who_wait_are_woken_and_none_is_early() {
        let pace = pace(Some(100_000));
        let begun = Instant::now();
        let all = join_all((0..20).map(|_| send(ticket(&pace), 5_000)));
        block_on(all);
        // 100,000 bytes, of which two slices and a last one may come at once. An upper bound would be one on the machine.
        assert!(begun.elapsed() >= Duration::from_millis(750));
        let inner = lock(&pace.far.inner);
        assert!(inner.wakers.is_empty());
    }

    #[test]
    fn without_a_budget_nothing_is_cut_or_held_up() {
        let pace = pace(None);
        let (waits, ticket) = block_on(send(ticket(&pace), 10_000_000));
        assert_eq!(waits, 0);
        assert_eq!(ticket.outbox.take_held(pace.clock.now()), Duration::ZERO);
    }

    /// The time that we did not write is told, once, while it passes as well.
    #[test]
    fn the_time_that_a_message_is_held_up_is_told() {
        let pace = pace(Some(16_000));
        let (_, first) = block_on(send(ticket(&pace), 24 * 1024));
        let mut second = ticket(&pace);
        let waker = futures::task::noop_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(second.poll_take(1, &mut cx).is_pending());
        let now = pace.clock.now();
        let later = now + Duration::from_secs(3);
        let held = second.outbox.take_held(later);
        assert!(held >= Duration::from_secs(3), "{held:?}");
        assert_eq!(second.outbox.take_held(later), Duration::ZERO);
        pace.set(Line::Far, None);
        assert!(second.poll_take(1, &mut cx).is_ready(), "the limit is gone");
        drop(first);
    }
}
