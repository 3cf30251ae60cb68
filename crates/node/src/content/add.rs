//! Adding a tree: events of a walk in, durable blocks and finished entries out.
//!
//! Hashing runs on the importer's workers, writing on a thread of its own, so that neither waits for the other. An entry is
//! told only when its blocks are durable (DESIGN §1: acknowledged means on disk).

use std::io::Read;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use cid::Cid;
use gemba_block::Block;
use gemba_unixfs::{BoxError, ImportSink, Imported, Meta, Profile, TreeImporter};

use super::folder::TreeVisitor;
use super::import_fail;
use super::room::Puts;
use crate::error::Fail;

/// Batches that wait for the disk, at most 3 MiB each, beside the one being written and the one being filled. With what is being hashed,
/// an add holds about 16 MiB.
const WRITE_QUEUE: usize = 1;
/// Threads that hash. More than two bring nothing where the disk is the limit, and cost memory on a tablet.
const MAX_WORKERS: usize = 4;

/// A finished entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path from what was added down, any bytes.
    pub name: Vec<u8>,
    /// Its root.
    pub cid: Cid,
    /// Bytes of content; of a folder, the sum below it.
    pub size: u64,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// What is told while a tree is added.
pub trait AddObserver {
    /// An entry whose blocks are durable; the root comes last.
    ///
    /// # Errors
    /// Ends the add.
    fn entry(&mut self, entry: &Entry) -> Result<(), Fail>;

    /// Blocks that are durable now: others on this device, or in the swarm, may be waiting for them.
    ///
    /// # Errors
    /// Ends the add.
    fn stored(&mut self, cids: &[Cid]) -> Result<(), Fail> {
        let _ = cids;
        Ok(())
    }

    /// So many bytes of content were read since the last call.
    ///
    /// # Errors
    /// Ends the add.
    fn progress(&mut self, bytes: u64) -> Result<(), Fail> {
        let _ = bytes;
        Ok(())
    }
}

/// Adds the tree that `walk` describes. With `puts: None` nothing is stored and only the CIDs are computed.
///
/// The blocks are durable when it returns. Nothing is pinned.
///
/// # Errors
/// The walk's, the disk's or the observer's own; blocks stored before stay and are harmless.
pub fn add(
    puts: Option<&Puts>,
    profile: &Profile,
    observer: &mut dyn AddObserver,
    walk: impl FnOnce(&mut dyn TreeVisitor) -> Result<(), Fail>,
) -> Result<Entry, Fail> {
    let workers = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(MAX_WORKERS);
    let mut adding = Adding {
        importer: TreeImporter::new(profile, workers),
        sink: Sink {
            writer: puts.map(|puts| Writer::start(puts.clone())),
            sums: Sums::default(),
            waiting: Vec::new(),
            observer,
            failed: None,
        },
    };
    let walked = walk(&mut adding);
    let Adding { importer, mut sink } = adding;
    // What the sink failed with is the cause; the walk's failure is what followed from it.
    if let Some(fail) = sink.failed.take() {
        return Err(fail);
    }
    walked?;
    let finished = importer.finish(&mut sink).map_err(import_fail);
    if let Some(fail) = sink.failed.take() {
        return Err(fail);
    }
    let root = finished?;
    match sink.finish()? {
        Some(entry) if entry.cid == root.cid => Ok(entry),
        _ => Err(Fail::internal("the import ended without its root")),
    }
}

/// Adds what a reader gives as one file.
///
/// # Errors
/// As [`add`].
pub fn add_reader(
    puts: Option<&Puts>,
    profile: &Profile,
    observer: &mut dyn AddObserver,
    reader: &mut dyn Read,
) -> Result<Entry, Fail> {
    add(puts, profile, observer, |visitor| {
        visitor.file(b"", &Meta::default(), reader)
    })
}

struct Adding<'a> {
    importer: TreeImporter,
    sink: Sink<'a>,
}

impl TreeVisitor for Adding<'_> {
    fn enter_dir(&mut self, name: &[u8], meta: &Meta) -> Result<(), Fail> {
        self.importer
            .enter_dir(name, meta, &mut self.sink)
            .map_err(import_fail)
    }

    fn leave_dir(&mut self) -> Result<(), Fail> {
        self.importer.leave_dir(&mut self.sink).map_err(import_fail)
    }

    fn file(&mut self, name: &[u8], meta: &Meta, reader: &mut dyn Read) -> Result<(), Fail> {
        self.importer
            .file(name, meta, reader, &mut self.sink)
            .map_err(import_fail)
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], meta: &Meta) -> Result<(), Fail> {
        self.importer
            .symlink(name, target, meta, &mut self.sink)
            .map_err(import_fail)
    }
}

/// Takes the importer's batches to the writer, and tells entries whose batch came back.
struct Sink<'a> {
    writer: Option<Writer>,
    sums: Sums,
    /// Entries whose blocks were not handed to the writer yet.
    waiting: Vec<Entry>,
    observer: &'a mut dyn AddObserver,
    failed: Option<Fail>,
}

impl ImportSink for Sink<'_> {
    /// Every entry heard of so far lies whole in this batch or in earlier ones.
    fn blocks(&mut self, blocks: Vec<Block>) -> Result<(), BoxError> {
        let entries = std::mem::take(&mut self.waiting);
        let taken = match &mut self.writer {
            Some(writer) => writer
                .write(Batch { blocks, entries })
                .and_then(|()| self.settle()),
            None => self.tell(&entries),
        };
        taken.map_err(|fail| self.give_up(fail))
    }

    fn entry(&mut self, entry: &Imported) {
        let entry = self.sums.entry(entry);
        self.waiting.push(entry);
    }

    fn progress(&mut self, bytes: u64) {
        if let Err(fail) = self.observer.progress(bytes) {
            self.failed.get_or_insert(fail);
        }
    }
}

impl Sink<'_> {
    /// Tells what came back from the disk meanwhile.
    fn settle(&mut self) -> Result<(), Fail> {
        while let Some(written) = self
            .writer
            .as_mut()
            .and_then(|writer| writer.done().transpose())
        {
            self.tell_written(&written?)?;
        }
        match &self.failed {
            Some(fail) => Err(fail.clone()),
            None => Ok(()),
        }
    }

    /// Waits for the disk and tells the rest; the last entry is the root.
    fn finish(&mut self) -> Result<Option<Entry>, Fail> {
        if let Some(writer) = self.writer.take() {
            for written in writer.finish()? {
                self.tell_written(&written)?;
            }
        }
        let rest = std::mem::take(&mut self.waiting);
        self.tell(&rest)?;
        Ok(self.sums.last.take())
    }

    fn tell_written(&mut self, written: &Written) -> Result<(), Fail> {
        self.observer.stored(&written.cids)?;
        self.tell(&written.entries)
    }

    fn tell(&mut self, entries: &[Entry]) -> Result<(), Fail> {
        entries
            .iter()
            .try_for_each(|entry| self.observer.entry(entry))
    }

    fn give_up(&mut self, fail: Fail) -> BoxError {
        self.failed.get_or_insert(fail.clone());
        Box::new(fail)
    }
}

/// Adds up what lies below each folder. Entries come children first.
#[derive(Default)]
struct Sums {
    /// Content of the entries at each depth whose folder is still open.
    open: Vec<u64>,
    last: Option<Entry>,
}

impl Sums {
    fn entry(&mut self, imported: &Imported) -> Entry {
        // The root of a wrapped tree has no name, so its path is empty.
        let depth = match imported.path.as_slice() {
            [] => 0,
            path => 1 + path.iter().filter(|byte| **byte == b'/').count(),
        };
        if self.open.len() < depth + 2 {
            self.open.resize(depth + 2, 0);
        }
        let below = std::mem::take(&mut self.open[depth + 1]);
        let size = if imported.is_dir {
            below
        } else {
            imported.part.content
        };
        self.open[depth] += size;
        let entry = Entry {
            name: imported.path.clone(),
            cid: imported.part.cid,
            size,
            is_dir: imported.is_dir,
        };
        self.last = Some(entry.clone());
        entry
    }
}

struct Batch {
    blocks: Vec<Block>,
    entries: Vec<Entry>,
}

/// A batch that is durable.
struct Written {
    cids: Vec<Cid>,
    entries: Vec<Entry>,
}

/// The thread that writes. It ends when the queue is closed or at the first failure.
struct Writer {
    queue: Option<SyncSender<Batch>>,
    done: Receiver<Result<Written, Fail>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(puts: Puts) -> Self {
        let (queue, batches) = sync_channel::<Batch>(WRITE_QUEUE);
        // Answers wait here while the importer hashes; it takes them with every batch it hands over.
        let (answers, done) = sync_channel(WRITE_QUEUE + 2);
        let thread = std::thread::spawn(move || {
            for batch in batches {
                let written = puts
                    .put_many(&batch.blocks)
                    .map(|_| Written {
                        cids: batch.blocks.iter().map(|block| *block.cid()).collect(),
                        entries: batch.entries,
                    })
                    .map_err(|refusal| refusal.fail);
                let failed = written.is_err();
                if answers.send(written).is_err() || failed {
                    return;
                }
            }
        });
        Self {
            queue: Some(queue),
            done,
            thread: Some(thread),
        }
    }

    /// Hands a batch over; waits while the queue is full.
    fn write(&mut self, batch: Batch) -> Result<(), Fail> {
        let sent = self
            .queue
            .as_ref()
            .is_some_and(|queue| queue.send(batch).is_ok());
        if sent { Ok(()) } else { Err(self.why_ended()) }
    }

    /// A batch that is durable by now.
    fn done(&mut self) -> Result<Option<Written>, Fail> {
        match self.done.try_recv() {
            Ok(written) => written.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ended()),
        }
    }

    /// Waits for everything.
    fn finish(mut self) -> Result<Vec<Written>, Fail> {
        self.queue = None;
        let rest = self.done.iter().collect::<Result<Vec<_>, Fail>>()?;
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(ended()),
            _ => Ok(rest),
        }
    }

    fn why_ended(&self) -> Fail {
        self.done.iter().find_map(Result::err).unwrap_or_else(ended)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        // Frees the thread if it waits to answer, then lets it end: the lock must not be given back while it writes.
        while self.done.recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended() -> Fail {
    Fail::internal("the writing thread ended early")
}

/// Reads a file to add, so that an interruption ends it between two reads.
pub struct Checked<R, F>(pub R, pub F);

impl<R: Read, F: FnMut() -> std::io::Result<()>> Read for Checked<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        (self.1)()?;
        self.0.read(buffer)
    }
}
