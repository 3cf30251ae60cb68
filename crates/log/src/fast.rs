//! The fast class: events that wait in memory for the next write, at most so many; the oldest are dropped beyond, and counted
//! (specs/log.md §8).

use std::collections::VecDeque;

use crate::event::EventList;
use crate::stream::StreamName;

/// Events of the fast class that wait.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    waiting: VecDeque<(StreamName, EventList)>,
    bytes: usize,
    max_events: usize,
    max_bytes: usize,
    dropped: u64,
}

impl Ring {
    pub(crate) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            max_events,
            max_bytes,
            ..Self::default()
        }
    }

    /// Takes an event; gives how many were dropped for it.
    pub(crate) fn push(&mut self, stream: StreamName, event: EventList) -> u64 {
        self.bytes += event.bytes();
        self.waiting.push_back((stream, event));
        let before = self.dropped;
        while self.waiting.len() > self.max_events || self.bytes > self.max_bytes {
            let Some((_, oldest)) = self.waiting.pop_front() else {
                break;
            };
            self.bytes -= oldest.bytes();
            self.dropped += oldest.len() as u64;
        }
        self.dropped - before
    }

    /// All that waits, for a write.
    pub(crate) fn take(&mut self) -> Vec<(StreamName, EventList)> {
        self.bytes = 0;
        self.waiting.drain(..).collect()
    }

    /// Events that were taken and not written.
    pub(crate) fn lose(&mut self, events: u64) {
        self.dropped += events;
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}
