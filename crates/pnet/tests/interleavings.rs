//! Threat X10, T6: the locks of what lies unread. Connections wait for the node's budget on their tasks while streams are read and dropped on
//! others. Loom runs the very files of the crate, with its own locks and atomics in the place of `sync`, through every interleaving of the
//! threads of a scene and everything that the memory model permits in each. A connection that is not woken when it may be read is a deadlock
//! there.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../src/muxer/account.rs"]
mod account;
#[path = "../src/muxer/budget.rs"]
mod budget;

/// What stands in `src/muxer/sync.rs`, by loom.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub use loom::sync::{Mutex, MutexGuard};

    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

/// What stands in `src/muxer/frames.rs`, as far as the account knows it.
mod frames {
    pub enum Seen {
        Opened(u32),
        Payload(u32, usize),
    }
}

use std::{future::poll_fn, sync::Arc, task::Poll};

use account::Account;
use budget::{FLOOR, ReceiveBudget};
use frames::Seen;
use loom::{future::block_on, thread};

const LIMIT: usize = 10 * FLOOR;
const STREAM: u32 = 2;

/// A connection that has so many bytes unread on its only stream.
fn connection(budget: &ReceiveBudget, unread: usize) -> Arc<Account> {
    let account = Account::new(budget);
    account.received(Seen::Opened(STREAM));
    account.received(Seen::Payload(STREAM, unread));
    account
}

/// Its task wants to read on.
fn wait_for(account: &Account) {
    block_on(poll_fn(|cx| match account.may_read(cx.waker()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }));
}

/// Every interleaving.
fn all(scene: impl Fn() + Send + Sync + 'static) {
    loom::model(scene);
}

/// Those in which a thread is interrupted no more than twice where it does not wait: three threads have too many others.
fn most(scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(scene);
}

#[test]
fn x10_a_connection_goes_on_when_others_were_read() {
    all(|| {
        let budget = ReceiveBudget::new(LIMIT);
        let waits = connection(&budget, 2 * FLOOR);
        let other = connection(&budget, LIMIT);
        let read = thread::spawn(move || other.taken(STREAM, LIMIT / 2));
        wait_for(&waits);
        read.join().unwrap();
        drop(waits);
        assert_eq!(budget.used(), 0);
    });
}

/// What two others took brings the sum below the limit only together.
#[test]
fn x10_a_connection_goes_on_when_two_others_were_read() {
    most(|| {
        let budget = ReceiveBudget::new(LIMIT);
        let waits = connection(&budget, 2 * FLOOR);
        let others = [(); 2].map(|()| connection(&budget, LIMIT / 2));
        let read = others.map(|other| thread::spawn(move || other.taken(STREAM, FLOOR)));
        wait_for(&waits);
        for thread in read {
            thread.join().unwrap();
        }
    });
}

#[test]
fn x10_a_connection_goes_on_when_its_own_streams_were_read() {
    all(|| {
        let budget = ReceiveBudget::new(LIMIT);
        let _hoarder = connection(&budget, 2 * LIMIT);
        let waits = connection(&budget, 2 * FLOOR);
        let own = waits.clone();
        let read = thread::spawn(move || own.taken(STREAM, FLOOR));
        wait_for(&waits);
        read.join().unwrap();
    });
}

#[test]
fn x10_a_connection_goes_on_when_its_own_stream_was_dropped() {
    all(|| {
        let budget = ReceiveBudget::new(LIMIT);
        let _hoarder = connection(&budget, 2 * LIMIT);
        let waits = connection(&budget, 2 * FLOOR);
        let own = waits.clone();
        let dropped = thread::spawn(move || own.closed(STREAM));
        wait_for(&waits);
        dropped.join().unwrap();
    });
}

/// All that wait go on when the one that holds everything is closed.
#[test]
fn x10_all_who_wait_go_on() {
    most(|| {
        let budget = ReceiveBudget::new(LIMIT);
        let hoarder = connection(&budget, LIMIT);
        let one = connection(&budget, 2 * FLOOR);
        let two = connection(&budget, 2 * FLOOR);
        let one = thread::spawn(move || wait_for(&one));
        let two = thread::spawn(move || wait_for(&two));
        drop(hoarder);
        one.join().unwrap();
        two.join().unwrap();
        assert_eq!((budget.used(), budget.streams()), (0, 0));
    });
}
