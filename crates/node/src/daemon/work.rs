//! The threads that touch the disk, so that the loop never waits for it.
//!
//! Writers make blocks durable and find their links; loaders read. Both take from bounded queues and answer with a
//! [`Done`]. What can be in flight is bounded before it gets here: arriving blocks by the exchange's budget of bytes
//! (they are released only after they are durable), loads by the exchange's and the walk's windows.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cid::Cid;
use gemba_block::{Block, codec, links};
use gemba_exchange::{LoadId, Loaded};
use gemba_log::Log;
use gemba_store::{Store, StoreError};
use tokio::sync::mpsc;

use super::queue::{Receiver, Sender, bounded};
use crate::content::room::{Puts, Refusal};
use crate::daemon::flow::fetch::FetchId;
use crate::error::{Code, Fail};

/// Blocks that may wait for a writer. More than all windows together, so that it is full only if a bound elsewhere broke.
const WRITE_QUEUE: usize = 32 * 1024;
/// Reads that may wait for a loader.
const READ_QUEUE: usize = 8 * 1024;
/// One durable batch: as many blocks as wait, up to this many bytes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// And up to this many blocks.
const BATCH_BLOCKS: usize = 1024;
/// While one writer waits for the disk the other one gathers.
const WRITERS: usize = 2;
/// Reads of cached blocks are short; two keep both cores busy.
const LOADERS: usize = 2;
/// The threads hold no deep stacks.
const STACK_BYTES: usize = 512 * 1024;

/// Something to read.
pub enum Read {
    /// For a peer that wants it.
    Serve(LoadId, Cid),
    /// The same of a batch of events, from the log.
    Event(LoadId, Cid),
    /// Whether the log has this batch of events.
    HasEvent(LoadId, Cid),
    /// The links of a block that is here, for a walk.
    Links(FetchId, Cid),
    /// How much room the disk has.
    Room,
}

/// What the threads answer with.
pub enum Done {
    /// The batch is durable, or could not be made so.
    Stored(Vec<StoredBlock>, Result<(), Refusal>),
    /// For a peer.
    Loaded(LoadId, Option<Bytes>),
    /// For a peer that asked whether it is here.
    Has(LoadId, Loaded),
    /// For a walk: size and links, or why the block cannot be read.
    Links(FetchId, Cid, Result<(u64, Vec<Cid>), LinkTrouble>),
    /// A block that was read for a peer is damaged.
    Damaged(Cid, String),
    /// Bytes that are free on the store's disk; `None` where the system does not tell.
    Room(Option<u64>),
}

/// One block of a batch.
pub struct StoredBlock {
    /// Its name.
    pub cid: Cid,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its links, or why they cannot be told.
    pub links: Result<Vec<Cid>, String>,
}

/// Why a block that should be here gave no links.
pub enum LinkTrouble {
    /// It is not here after all.
    Gone,
    /// The store cannot read it.
    Store(String),
    /// Its bytes are not what its codec says.
    Unreadable(String),
}

/// The queues' ends that the loop holds. Dropping it ends the threads after what they hold is done.
pub struct Workers {
    writes: Option<Sender<Block>>,
    reads: Option<Sender<Read>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads on a store; `puts` is its writing side.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(
        store: &Store,
        log: &Arc<Log>,
        puts: &Puts,
        done: &mpsc::Sender<Done>,
    ) -> Result<Self, Fail> {
        let (writes, write_queue) = bounded(WRITE_QUEUE);
        let (reads, read_queue) = bounded(READ_QUEUE);
        let write_queue = Arc::new(Mutex::new(write_queue));
        let read_queue = Arc::new(Mutex::new(read_queue));
        let mut threads = Vec::new();
        for n in 0..WRITERS {
            let (puts, done, queue) = (puts.clone(), done.clone(), Arc::clone(&write_queue));
            threads.push(spawn(format!("writer-{n}"), move || {
                write_all(&puts, &queue, &done);
            })?);
        }
        for n in 0..LOADERS {
            let (store, log) = (store.clone(), Arc::clone(log));
            let (done, queue) = (done.clone(), Arc::clone(&read_queue));
            threads.push(spawn(format!("loader-{n}"), move || {
                load_all((&store, &log), &queue, &done);
            })?);
        }
        Ok(Self {
            writes: Some(writes),
            reads: Some(reads),
            threads,
        })
    }

    /// Hands a block to the writers. False: the queue is full, which the caller counts.
    #[must_use]
    pub fn write(&self, block: Block) -> bool {
        self.writes.as_ref().is_some_and(|queue| queue.offer(block))
    }

    /// Hands a read to the loaders. False: the queue is full, which the caller counts.
    #[must_use]
    pub fn read(&self, read: Read) -> bool {
        self.reads.as_ref().is_some_and(|queue| queue.offer(read))
    }

    /// Lets the threads finish what they hold, and waits for them. The answers that still come must be drained meanwhile
    /// (or their receiver dropped), so this is called from a blocking thread.
    pub fn finish(mut self) {
        self.writes = None;
        self.reads = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

fn spawn(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, Fail> {
    std::thread::Builder::new()
        .name(name)
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|e| Fail::new(Code::Failure, format!("cannot start a disk thread: {e}")))
}

/// Waits for one item and takes what else is there, within the bounds of a batch.
fn gather(queue: &Mutex<Receiver<Block>>) -> Vec<Block> {
    let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(first) = queue.wait() else {
        return Vec::new();
    };
    let mut bytes = first.len();
    let mut batch = vec![first];
    while bytes < BATCH_BYTES && batch.len() < BATCH_BLOCKS {
        let Some(next) = queue.take() else { break };
        bytes += next.len();
        batch.push(next);
    }
    batch
}

fn write_all(puts: &Puts, queue: &Mutex<Receiver<Block>>, done: &mpsc::Sender<Done>) {
    loop {
        let batch = gather(queue);
        if batch.is_empty() {
            return;
        }
        let stored = batch
            .iter()
            .map(|block| StoredBlock {
                cid: *block.cid(),
                bytes: block.len() as u64,
                links: links(block).map_err(|e| e.to_string()),
            })
            .collect();
        let outcome = puts.put_many(&batch).map(drop);
        if done.blocking_send(Done::Stored(stored, outcome)).is_err() {
            return;
        }
    }
}

fn load_all(
    (store, log): (&Store, &Log),
    queue: &Mutex<Receiver<Read>>,
    done: &mpsc::Sender<Done>,
) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).wait();
        let Some(read) = next else { return };
        let answer = match read {
            Read::Serve(id, cid) => match store.get(&cid) {
                Ok(data) => Done::Loaded(id, data),
                Err(e) => {
                    if let Some(damage) = unreadable(cid, &e)
                        && done.blocking_send(damage).is_err()
                    {
                        return;
                    }
                    Done::Loaded(id, None)
                }
            },
            Read::Event(id, cid) => Done::Loaded(id, event_of(log, &cid)),
            Read::HasEvent(id, cid) => {
                let size = event_of(log, &cid).map(|data| data.len() as u64);
                Done::Has(id, size.map_or(Loaded::Missing, Loaded::Size))
            }
            Read::Room => Done::Room(room(store)),
            Read::Links(id, cid) => Done::Links(id, cid, links_of(store, &cid)),
        };
        if done.blocking_send(answer).is_err() {
            return;
        }
    }
}

/// The bytes of a batch of events. What the log cannot read is not here: it comes from others.
fn event_of(log: &Log, cid: &Cid) -> Option<Bytes> {
    match log.block(cid) {
        Ok(block) => block.map(|block| block.data().clone()),
        Err(error) => {
            tracing::error!(%cid, %error, "events that a peer wants cannot be read");
            None
        }
    }
}

/// Damage is told to the loop, which has it repaired; anything else is for the log.
fn unreadable(cid: Cid, error: &StoreError) -> Option<Done> {
    if matches!(error, StoreError::Corrupt { .. }) {
        return Some(Done::Damaged(cid, error.to_string()));
    }
    tracing::error!(%cid, %error, "a block that a peer wants cannot be read");
    None
}

/// What may still be stored: as far as the disk has room, and the store's own limit leaves some.
fn room(store: &Store) -> Option<u64> {
    let limit = store.stat().room_bytes;
    match (free_bytes(store.dir()), limit) {
        (Some(free), Some(room)) => Some(free.min(room)),
        (free, room) => free.or(room),
    }
}

/// What this user may still write there.
#[cfg(unix)]
pub(super) fn free_bytes(dir: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
pub(super) fn free_bytes(_: &std::path::Path) -> Option<u64> {
    None
}

/// Size and links of a block in the store.
///
/// # Errors
/// See [`LinkTrouble`].
pub(super) fn links_of(store: &Store, cid: &Cid) -> Result<(u64, Vec<Cid>), LinkTrouble> {
    let data = store
        .get(cid)
        .map_err(|e| LinkTrouble::Store(e.to_string()))?
        .ok_or(LinkTrouble::Gone)?;
    let block = Block::danger_unchecked(*cid, data);
    let found = links(&block).map_err(|e| LinkTrouble::Unreadable(e.to_string()))?;
    Ok((block.len() as u64, found))
}

/// Whether a block of this codec has no links, so that its size is all a walk needs.
#[must_use]
pub(super) fn is_leaf(cid: &Cid) -> bool {
    cid.codec() == codec::RAW
}
