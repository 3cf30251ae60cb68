//! Receive memory, without a socket.
#![allow(clippy::unwrap_used)]
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake};

use futures::Stream;
use futures::stream::{SelectAll, StreamExt};

use super::budget::{Account, Budget, FLOOR, Pool, Seat, Share};

fn cx() -> Context<'static> {
    Context::from_waker(futures::task::noop_waker_ref())
}

const MIB: usize = 1 << 20;

fn budget(pool: &Arc<Pool>, owed: usize) -> Arc<Budget> {
    let account = Arc::<Account>::default();
    account.set_owed(owed);
    Budget::new(8 * MIB, pool.clone(), account)
}

/// A stream that takes so much, or waits for it as long as it is kept.
fn take(budget: &Arc<Budget>, bytes: usize) -> (Seat, Option<Share>) {
    let mut seat = Seat::new(budget.clone());
    let share = seat.take(bytes, &cx());
    (seat, share)
}

/// Threat X1: 500 peers that each send the most they may hold together no more than pool and floors.
#[test]
fn x1_many_connections_share_one_pool() {
    let pool = Pool::new(32 * MIB);
    let mut taken = Vec::new();
    for peer in 0..500 {
        let budget = budget(&pool, peer % 2 * 16 * MIB);
        taken.push(take(&budget, FLOOR));
        for _ in 0..4 {
            taken.push(take(&budget, 4 * MIB));
        }
    }
    let held: usize = taken.iter().flat_map(|(_, s)| s).map(|s| s.bytes).sum();
    assert!(held <= 32 * MIB + 8 * MIB + 500 * FLOOR, "{held}");
    assert_eq!(pool.used(), held - 500 * FLOOR);
    assert!(pool.asked.is_contended() && pool.strangers.is_contended());
    // Who goes away without having had its turn does not hurry the others.
    let mut shares: Vec<Share> = taken.into_iter().filter_map(|(_, share)| share).collect();
    assert!(!pool.asked.is_contended() && !pool.strangers.is_contended());
    shares.clear();
    assert_eq!(pool.used(), 0);
    assert!(!pool.asked.is_contended() && !pool.strangers.is_contended());
}

#[test]
fn x1_strangers_do_not_keep_out_what_was_asked_for() {
    let pool = Pool::new(32 * MIB);
    let all: Vec<_> = (0..100).map(|_| take(&budget(&pool, 0), 4 * MIB)).collect();
    let strangers: Vec<&Share> = all.iter().flat_map(|(_, share)| share).collect();
    assert_eq!(strangers.len(), 2);
    let asked = take(&budget(&pool, 4 * MIB), 4 * MIB).1.unwrap();
    // Nor do those of them that wait hurry it.
    assert!(strangers[0].is_contended() && !asked.is_contended());
}

/// EX-23: who owes a block draws on the pool with no more than a block.
#[test]
fn x1_a_peer_draws_on_the_pool_with_what_it_owes() {
    let pool = Pool::new(32 * MIB);
    let many: Vec<_> = (0..100)
        .filter_map(|_| take(&budget(&pool, 2 * MIB), 4 * MIB).1)
        .collect();
    assert_eq!(many.len(), 2, "as strangers");
    let owing = budget(&pool, 2 * MIB);
    let block = take(&owing, 2 * MIB + 100).1.unwrap();
    assert!(take(&owing, 2 * MIB).1.is_none());
    drop(block);
    assert!(take(&owing, 2 * MIB).1.is_some());
}

#[test]
fn a_message_larger_than_the_pool_passes_alone() {
    let pool = Pool::new(MIB);
    let budget = Budget::new(MIB, pool.clone(), Arc::default());
    let first = take(&budget, 4 * MIB).1.unwrap();
    assert!(take(&budget, 4 * MIB).1.is_none());
    drop(first);
    assert!(take(&budget, 4 * MIB).1.is_some());
}

/// An inbound stream that has a message of so many bytes, and ends with it.
struct Waiting(Seat, Option<usize>);

impl Stream for Waiting {
    type Item = Share;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Share>> {
        let Some(bytes) = self.1 else {
            return Poll::Ready(None);
        };
        let Some(share) = self.0.take(bytes, cx) else {
            return Poll::Pending;
        };
        self.1 = None;
        Poll::Ready(Some(share))
    }
}

#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Two streams of one connection waited for its memory, and the second one's waker took the place of the first one's: `SelectAll`
/// polls only who was woken, so the first message was never read.
#[test]
fn every_stream_that_waits_is_woken() {
    let pool = Pool::new(32 * MIB);
    let budget = Budget::new(4 * MIB, pool, Arc::default());
    let held = take(&budget, 4 * MIB).1.unwrap();
    let mut streams = SelectAll::new();
    for _ in 0..3 {
        streams.push(Waiting(Seat::new(budget.clone()), Some(MIB)));
    }
    let count = Arc::new(Count::default());
    let waker = count.clone().into();
    let mut cx = Context::from_waker(&waker);
    for _ in 0..3 {
        assert!(streams.poll_next_unpin(&mut cx).is_pending());
    }
    let before = count.0.load(Ordering::SeqCst);
    drop(held);
    assert!(count.0.load(Ordering::SeqCst) > before);
    let mut shares = Vec::new();
    while let Poll::Ready(Some(share)) = streams.poll_next_unpin(&mut cx) {
        shares.push(share);
    }
    assert_eq!(shares.len(), 3);
}

/// What waits behind strangers goes on as soon as it is asked for.
#[test]
fn who_waits_is_woken_when_it_owes() {
    let pool = Pool::new(8 * MIB);
    let stranger = take(&budget(&pool, 0), 2 * MIB).1.unwrap();
    let account = Arc::<Account>::default();
    let owing = Budget::new(8 * MIB, pool.clone(), account.clone());
    let mut streams = SelectAll::from_iter([Waiting(Seat::new(owing.clone()), Some(MIB))]);
    let count = Arc::new(Count::default());
    let waker = count.clone().into();
    let mut cx = Context::from_waker(&waker);
    assert!(streams.poll_next_unpin(&mut cx).is_pending());
    let before = count.0.load(Ordering::SeqCst);
    account.set_owed(2 * MIB);
    assert_eq!(count.0.load(Ordering::SeqCst), before + 1);
    assert!(streams.poll_next_unpin(&mut cx).is_ready());
    drop(stranger);
}
