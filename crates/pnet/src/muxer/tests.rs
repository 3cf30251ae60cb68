//! What lies unread, without a socket.

use std::task::Waker;

use super::{
    account::Account,
    budget::{FLOOR, ReceiveBudget, STREAMS, STREAMS_FLOOR},
    frames::Seen,
};

fn waker() -> Waker {
    futures::task::noop_waker()
}

#[test]
fn t6_what_lies_unread_is_bounded_by_budget_and_floors() {
    let budget = ReceiveBudget::new(1 << 20);
    let accounts: Vec<_> = (0..100).map(|_| Account::new(&budget)).collect();
    let piece = 16 * 1024;
    for stream in (2..200).step_by(2) {
        for account in &accounts {
            account.opened(stream);
            if account.may_read(&waker()) {
                account.received(Seen::Payload(stream, piece));
            }
        }
    }
    let most = (1 << 20) + 100 * (FLOOR + piece);
    assert!(
        budget.used() > 1 << 20 && budget.used() <= most,
        "{}",
        budget.used()
    );
    drop(accounts);
    assert_eq!(budget.used(), 0);
}

#[test]
fn t6_a_connection_that_is_read_goes_on_beside_a_full_budget() {
    let budget = ReceiveBudget::new(1 << 20);
    let (hoarder, honest) = (Account::new(&budget), Account::new(&budget));
    hoarder.opened(2);
    hoarder.received(Seen::Payload(2, 2 << 20));
    assert!(!hoarder.may_read(&waker()));
    honest.opened(2);
    for _ in 0..100 {
        assert!(honest.may_read(&waker()));
        honest.received(Seen::Payload(2, FLOOR));
        honest.taken(2, FLOOR);
    }
    hoarder.taken(2, 1 << 20);
    assert!(hoarder.may_read(&waker()));
}

#[test]
fn t6_streams_of_all_connections_are_bounded_and_each_has_its_floor() {
    let budget = ReceiveBudget::default();
    let open = |account: &Account| {
        let mut open = 0;
        for stream in (1..1024).step_by(2) {
            account.opened(stream);
            match account.is_one_too_many() {
                true => account.closed(stream),
                false => open += 1,
            }
        }
        open
    };
    let accounts: Vec<_> = (0..500).map(|_| Account::new(&budget)).collect();
    let opened: Vec<usize> = accounts.iter().map(|account| open(account)).collect();
    assert_eq!(opened[..64], [512; 64]);
    assert_eq!(opened[64..], [STREAMS_FLOOR; 436]);
    assert_eq!(budget.streams(), STREAMS + 436 * STREAMS_FLOOR);
    drop(accounts);
    assert_eq!(budget.streams(), 0);
}

#[test]
fn nothing_is_counted_for_streams_that_are_not_open_and_nothing_twice() {
    let budget = ReceiveBudget::new(100);
    let account = Account::new(&budget);
    account.received(Seen::Payload(2, 50));
    assert_eq!(budget.used(), 0);
    account.received(Seen::Opened(2));
    account.received(Seen::Payload(2, 50));
    account.taken(2, 80);
    account.closed(2);
    account.closed(2);
    account.received(Seen::Payload(2, 50));
    assert_eq!(budget.used(), 0);
}
