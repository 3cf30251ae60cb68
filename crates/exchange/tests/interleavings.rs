//! Threat X10: the locks of the receive memory. Streams wait for it on the tasks of their connections while others give it back, the behaviour
//! changes what a peer owes, and the owner opens the gate. Loom runs the very files of the crate, with its own locks and atomics in the
//! place of `sync`, through every interleaving of the threads of a scene and everything that the memory model permits in each. A stream
//! that is not woken when it could go on is a deadlock there.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../src/handler/budget.rs"]
mod budget;
#[path = "../src/handler/gate.rs"]
mod gate;
#[path = "../src/handler/wakers.rs"]
mod wakers;

/// What stands in `src/handler/sync.rs`, by loom.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub use loom::sync::{Mutex, MutexGuard};

    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use budget::{Account, Budget, FLOOR, Pool, Seat, Share};
use gate::{Gate, Queue};
use loom::future::block_on;
use loom::thread;

/// Larger than any floor.
const LARGE: usize = 4 * FLOOR;
/// What strangers may have together is a quarter of the pool.
const POOL: usize = 4 * LARGE;

/// Every interleaving.
fn all(scene: impl Fn() + Send + Sync + 'static) {
    loom::model(scene);
}

/// Those in which a thread is interrupted no more than three times where it does not wait: three threads have too many others.
fn most(scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(scene);
}

/// A stream with a message of so many bytes waits until it has room.
fn wait_for(seat: &mut Seat, bytes: usize) -> Share {
    block_on(poll_fn(|cx| match seat.take(bytes, cx) {
        Some(share) => Poll::Ready(share),
        None => Poll::Pending,
    }))
}

fn take_now(budget: &Arc<Budget>, bytes: usize) -> Share {
    let cx = Context::from_waker(std::task::Waker::noop());
    Seat::new(budget.clone()).take(bytes, &cx).unwrap()
}

fn owing(bytes: usize) -> Arc<Account> {
    let account = Arc::<Account>::default();
    account.set_owed(bytes);
    account
}

/// Of one connection, its limit is a message.
#[test]
fn x10_a_stream_goes_on_when_its_connection_has_room_again() {
    all(|| {
        let pool = Pool::new(100 * POOL);
        let budget = Budget::new(LARGE, pool.clone(), owing(0));
        let held = take_now(&budget, LARGE);
        let back = thread::spawn(move || drop(held));
        drop(wait_for(&mut Seat::new(budget), LARGE));
        back.join().unwrap();
        assert_eq!(pool.used(), 0);
    });
}

/// Two streams of a connection wait; both have room after one share came back, and both are woken.
#[test]
fn x10_every_stream_that_waits_goes_on() {
    all(|| {
        let pool = Pool::new(100 * POOL);
        let budget = Budget::new(2 * LARGE, pool.clone(), owing(0));
        let held = take_now(&budget, 2 * LARGE);
        let back = thread::spawn(move || drop(held));
        let mut streams = [Seat::new(budget.clone()), Seat::new(budget)];
        let mut shares = [None, None];
        block_on(poll_fn(|cx| {
            for (seat, share) in streams.iter_mut().zip(&mut shares) {
                *share = share.take().or_else(|| seat.take(LARGE, cx));
            }
            match shares.iter().all(Option::is_some) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        }));
        back.join().unwrap();
        drop(shares);
        assert_eq!(pool.used(), 0);
    });
}

/// Two connections of strangers wait for what a third one holds: one message fits at a time.
#[test]
fn x10_strangers_have_the_pool_one_after_the_other() {
    most(|| {
        let pool = Pool::new(POOL);
        let budget = |owed| Budget::new(8 * LARGE, pool.clone(), owing(owed));
        let held = take_now(&budget(0), LARGE);
        let other = budget(0);
        let one = thread::spawn(move || drop(wait_for(&mut Seat::new(other), LARGE)));
        let two = budget(0);
        let two = thread::spawn(move || drop(wait_for(&mut Seat::new(two), LARGE)));
        drop(held);
        one.join().unwrap();
        two.join().unwrap();
        assert_eq!(pool.used(), 0);
        assert!(!pool.strangers.is_contended());
    });
}

/// A message that came before we asked for its block waits with the strangers, and goes on when it is owed.
#[test]
fn x10_a_stream_goes_on_when_its_peer_owes() {
    all(|| {
        let pool = Pool::new(POOL);
        let _hoarder = take_now(&Budget::new(8 * LARGE, pool.clone(), owing(0)), LARGE);
        let account = owing(0);
        let budget = Budget::new(8 * LARGE, pool.clone(), account.clone());
        let asks = thread::spawn(move || account.set_owed(LARGE));
        let share = wait_for(&mut Seat::new(budget), LARGE);
        asks.join().unwrap();
        drop(share);
        assert_eq!(pool.used(), LARGE);
    });
}

/// Two connections to one peer, which owes two messages, wait for the part of those who were asked, and strangers never give theirs back: while
/// one drew and found the pool full, the other took the peer for one that owes nothing, and waited with the strangers.
#[test]
fn x10_what_one_connection_draws_in_vain_does_not_send_another_to_the_strangers() {
    most(|| {
        let pool = Pool::new(POOL);
        let _hoarder = take_now(&Budget::new(8 * LARGE, pool.clone(), owing(0)), LARGE);
        let full = Budget::new(8 * POOL, pool.clone(), owing(POOL));
        let held = take_now(&full, POOL);
        let account = owing(LARGE);
        let budget = || Budget::new(8 * LARGE, pool.clone(), account.clone());
        // One of the two connections closes in the middle, so that it is not the other's share that wakes.
        let closes = budget();
        let closes = thread::spawn(move || {
            let cx = Context::from_waker(std::task::Waker::noop());
            drop(Seat::new(closes).take(LARGE, &cx));
        });
        let stays = budget();
        let stays = thread::spawn(move || drop(wait_for(&mut Seat::new(stays), LARGE)));
        drop(held);
        closes.join().unwrap();
        stays.join().unwrap();
        assert_eq!(pool.used(), LARGE);
    });
}

/// A stream that is reset while it waits takes its place with it, whatever comes back meanwhile.
#[test]
fn x10_who_leaves_keeps_nobody_waiting() {
    most(|| {
        let pool = Pool::new(POOL);
        let held = take_now(&Budget::new(8 * LARGE, pool.clone(), owing(0)), LARGE);
        let leaves = Budget::new(8 * LARGE, pool.clone(), owing(0));
        let leaves = thread::spawn(move || {
            let cx = Context::from_waker(std::task::Waker::noop());
            drop(Seat::new(leaves).take(LARGE, &cx));
        });
        let stays = Budget::new(8 * LARGE, pool.clone(), owing(0));
        let back = thread::spawn(move || drop(held));
        drop(wait_for(&mut Seat::new(stays), LARGE));
        leaves.join().unwrap();
        back.join().unwrap();
        assert_eq!(pool.used(), 0);
        assert!(!pool.strangers.is_contended());
    });
}

#[test]
fn x10_a_stream_before_the_gate_goes_on_when_it_opens() {
    all(|| {
        let gate = Arc::<Gate>::default();
        gate.set(true);
        let opens = gate.clone();
        let opens = thread::spawn(move || opens.set(false));
        let mut queue = Queue::new(gate);
        block_on(poll_fn(|cx| match queue.is_open(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }));
        opens.join().unwrap();
    });
}
