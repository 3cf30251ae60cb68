//! What lies unread on one connection, by stream.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    task::Waker,
};

use super::{
    budget::{FLOOR, ReceiveBudget, STREAMS, STREAMS_FLOOR, lock},
    frames::Seen,
};

/// Shared by the gate below the multiplexer and the streams above it.
#[derive(Debug)]
pub(super) struct Account {
    budget: ReceiveBudget,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// Streams that are open here. Payload of others is thrown away by the multiplexer.
    streams: HashMap<u32, usize>,
    unread: usize,
    /// The connection waits to be read.
    waker: Option<Waker>,
}

impl Account {
    pub(super) fn new(budget: &ReceiveBudget) -> Arc<Self> {
        Arc::new(Self {
            budget: budget.clone(),
            book: Mutex::default(),
        })
    }

    /// Whether the connection may be read now. Otherwise `waker` is woken when it is worth asking again.
    pub(super) fn may_read(&self, waker: &Waker) -> bool {
        if !self.budget.is_exceeded() {
            return true;
        }
        {
            let mut book = lock(&self.book);
            if book.unread <= FLOOR {
                return true;
            }
            book.waker = Some(waker.clone());
        }
        self.budget.wait(waker);
        // It may have come back in between.
        !self.budget.is_exceeded()
    }

    pub(super) fn opened(&self, stream: u32) {
        if let Entry::Vacant(new) = lock(&self.book).streams.entry(stream) {
            new.insert(0);
            self.budget.add_stream();
        }
    }

    /// Whether the remote has to do without the stream that it opened last (T6).
    pub(super) fn is_one_too_many(&self) -> bool {
        self.budget.streams() > STREAMS && lock(&self.book).streams.len() > STREAMS_FLOOR
    }

    pub(super) fn received(&self, seen: Seen) {
        match seen {
            Seen::Opened(stream) => self.opened(stream),
            Seen::Payload(stream, count) => {
                let mut book = lock(&self.book);
                if let Some(unread) = book.streams.get_mut(&stream) {
                    *unread += count;
                    book.unread += count;
                    self.budget.add(count);
                }
            }
        }
    }

    pub(super) fn taken(&self, stream: u32, count: usize) {
        self.give_back(|book| {
            let unread = book.streams.get_mut(&stream)?;
            // Never more than was received, whatever the multiplexer says.
            let count = count.min(*unread);
            *unread -= count;
            Some(count)
        });
    }

    pub(super) fn closed(&self, stream: u32) {
        self.give_back(|book| {
            let unread = book.streams.remove(&stream)?;
            self.budget.forget_streams(1);
            Some(unread)
        });
    }

    /// Takes what `from` says off both sums and wakes who may go on.
    fn give_back(&self, from: impl FnOnce(&mut Book) -> Option<usize>) {
        let (count, waker) = {
            let mut book = lock(&self.book);
            let count = from(&mut book).unwrap_or(0);
            book.unread -= count;
            let goes_on = count > 0 && book.unread <= FLOOR;
            (count, book.waker.take_if(|_| goes_on))
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if count > 0 {
            self.budget.give_back(count);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let (unread, streams) = {
            let book = lock(&self.book);
            (book.unread, book.streams.len())
        };
        self.budget.give_back(unread);
        self.budget.forget_streams(streams);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
