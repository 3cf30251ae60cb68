//! The log as consumers see it: what they append (who runs them, their dead letters) is told to whoever waits for more, replication among them, as
//! the appends of everybody else are.

use std::sync::Arc;

use gemba_log::consume::{LogSink, LogSource, Portion, SourceError, Span};
use gemba_log::{EventHash, FeedId, Log, NewEvent, Seq, StreamName};
use tokio::sync::watch;

/// Counts changes of the log.
#[derive(Clone)]
pub(super) struct Changes(watch::Sender<u64>);

impl Changes {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(super) fn tell(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// A log whose appends are told.
pub(super) struct Telling {
    log: Arc<Log>,
    changes: Changes,
}

impl Telling {
    pub(super) fn new(log: Arc<Log>, changes: Changes) -> Self {
        Self { log, changes }
    }
}

impl LogSource for Telling {
    fn spans(&self) -> Result<Vec<Span>, SourceError> {
        self.log.spans()
    }

    fn read(
        &self,
        feed: &FeedId,
        from: Seq,
        most: usize,
        bytes: usize,
    ) -> Result<Option<Portion>, SourceError> {
        LogSource::read(&self.log, feed, from, most, bytes)
    }

    fn hash(&self, feed: &FeedId, seq: Seq) -> Result<Option<EventHash>, SourceError> {
        self.log.hash(feed, seq)
    }

    fn at_time(&self, feed: &FeedId, time: i64) -> Result<Seq, SourceError> {
        self.log.at_time(feed, time)
    }
}

impl LogSink for Telling {
    fn append(&self, stream: &StreamName, events: Vec<NewEvent>) -> Result<(), SourceError> {
        LogSink::append(&self.log, stream, events)?;
        self.changes.tell();
        Ok(())
    }
}
