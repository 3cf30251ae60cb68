//! What lies unread on one connection, by stream.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    task::Waker,
};

use super::{
    budget::{FLOOR, ReceiveBudget, STREAMS, STREAMS_FLOOR},
    frames::Seen,
    sync::{Mutex, lock},
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
