//! A process that dies: at a chosen operation of its store or log, before or after that operation is durable.

use super::MemoryLog;
use crate::{
    consume::{LogSink, LogSource, Portion, SourceError, Span},
    event::NewEvent,
    feed::{EventHash, FeedId, Seq},
    store::{KeyValue, MemoryStore, MemoryTx, StateError, StateStore, Transaction},
    stream::StreamName,
};
use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

/// Counts operations; at zero the process is dead, and whatever it does fails.
#[derive(Debug, Clone, Default)]
pub struct Fuse {
    left: Arc<AtomicI64>,
    commits: Arc<AtomicU64>,
    appends: Arc<AtomicU64>,
}

/// The process died.
#[derive(Debug, thiserror::Error)]
#[error("the process was killed")]
struct Killed;

impl Fuse {
    /// A process that lives until [`set`](Self::set).
    pub fn new() -> Self {
        let fuse = Self::default();
        fuse.mend();
        fuse
    }

    /// The process dies at its `after`th operation from now; each write counts twice, before and after it is durable.
    pub fn set(&self, after: u64) {
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        self.left.store(after.max(1), Ordering::Relaxed);
    }

    /// A new process.
    pub fn mend(&self) {
        self.left.store(i64::MAX, Ordering::Relaxed);
    }

    /// Whether it is dead.
    pub fn is_blown(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }

    /// Transactions and appends that became durable.
    pub fn writes(&self) -> (u64, u64) {
        (
            self.commits.load(Ordering::Relaxed),
            self.appends.load(Ordering::Relaxed),
        )
    }

    fn tick(&self) -> Result<(), Killed> {
        if self.left.load(Ordering::Relaxed) == i64::MAX {
            return Ok(());
        }
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 1 {
            return Err(Killed);
        }
        Ok(())
    }

    fn tick_state(&self) -> Result<(), StateError> {
        self.tick().map_err(StateError::store)
    }

    fn tick_log(&self) -> Result<(), SourceError> {
        self.tick().map_err(|killed| SourceError(Box::new(killed)))
    }
}

/// A store whose process may die.
#[derive(Debug, Clone, Default)]
pub struct FusedStore {
    /// What is committed.
    pub store: MemoryStore,
    /// The process.
    pub fuse: Fuse,
}

/// Its transaction.
#[derive(Debug)]
pub struct FusedTx<'a> {
    tx: MemoryTx<'a>,
    fuse: &'a Fuse,
}

impl StateStore for FusedStore {
    type Tx<'a> = FusedTx<'a>;

    fn begin(&self) -> Result<FusedTx<'_>, StateError> {
        self.fuse.tick_state()?;
        let tx = self.store.begin()?;
        Ok(FusedTx {
            tx,
            fuse: &self.fuse,
        })
    }
}

impl Transaction for FusedTx<'_> {
    fn row(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.tx.row(key)
    }

    fn put_row(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StateError> {
        self.tx.put_row(key, value)
    }

    fn rows(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        self.tx.rows(prefix, after, limit)
    }

    fn savepoint(&mut self) -> Result<(), StateError> {
        self.tx.savepoint()
    }

    fn rollback(&mut self) -> Result<(), StateError> {
        self.tx.rollback()
    }

    fn commit(self) -> Result<(), StateError> {
        self.fuse.tick_state()?;
        self.tx.commit()?;
        self.fuse.commits.fetch_add(1, Ordering::Relaxed);
        self.fuse.tick_state()
    }
}

impl KeyValue for FusedTx<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.tx.get(key)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.tx.put(key, value)
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StateError> {
        self.tx.remove(key)
    }
}

/// A log whose process may die.
#[derive(Debug, Clone)]
pub struct FusedLog {
    /// What is acknowledged.
    pub log: Arc<MemoryLog>,
    /// The process.
    pub fuse: Fuse,
}

impl LogSource for FusedLog {
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
        self.fuse.tick_log()?;
        self.log.read(feed, from, most, bytes)
    }

    fn hash(&self, feed: &FeedId, seq: Seq) -> Result<Option<EventHash>, SourceError> {
        self.log.hash(feed, seq)
    }

    fn at_time(&self, feed: &FeedId, time: i64) -> Result<Seq, SourceError> {
        self.log.at_time(feed, time)
    }
}

impl LogSink for FusedLog {
    fn append(&self, stream: &StreamName, events: Vec<NewEvent>) -> Result<(), SourceError> {
        self.fuse.tick_log()?;
        self.log.append(stream, events)?;
        self.fuse.appends.fetch_add(1, Ordering::Relaxed);
        self.fuse.tick_log()
    }

    fn wall_ms(&self) -> i64 {
        self.log.wall_ms()
    }
}
