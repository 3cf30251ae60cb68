//! Driving an import: readers and events in, blocks to a sink, hashing on several cores.
//!
//! The walk's events travel in numbered batches. A worker turns the chunks of a batch into leaves, whatever else the
//! batch holds passes through, and the batches are applied to the [`TreeBuilder`] in their order: the result does not
//! depend on the number of workers. A 1 MiB chunk is a batch of its own, two hundred small files share one, so that
//! neither waits for the other and no file costs a thread switch.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use gemba_block::BlockError;

use crate::config::{Meta, Profile};
use crate::error::ImportError;
use crate::layout::Part;
use crate::leaf::{Chunk, Chunker};
use crate::tree::{ImportSink, Step, TreeBuilder};

/// A batch of steps is sent off when it holds this many bytes of content …
const STEP_BATCH_BYTES: usize = 256 * 1024;
/// … or this many steps.
const STEP_BATCH: usize = 512;
/// Most content on its way to, in and back from the workers. With the sink's batch and the buffer that is being
/// filled, an import holds at most about 10 MiB.
const IN_FLIGHT_BYTES: usize = 4 * 1024 * 1024;
/// Most batches on their way.
const IN_FLIGHT: usize = 64;

/// Imports one stream as a file. `workers` threads hash; 0 or 1 hash on the caller's thread.
///
/// # Errors
/// See [`ImportError`]; [`ImportError::Read`] carries an empty path.
pub fn import_reader(
    mut reader: impl Read,
    profile: &Profile,
    workers: usize,
    sink: &mut dyn ImportSink,
) -> Result<Part, ImportError> {
    let mut importer = TreeImporter::new(profile, workers);
    importer.file(b"", &Meta::default(), &mut reader, sink)?;
    importer.finish(sink)
}

/// Imports a tree from the events of a walk: of a folder, of a multipart body, of an archive.
///
/// Exactly one thing is added at the top, a file, a symlink or a directory: it becomes the root. The order of entries
/// within a directory does not matter. Blocks go to the sink in batches, children before parents. The sink is passed
/// to every call so that it can be borrowed; it must be the same one.
pub struct TreeImporter {
    tree: TreeBuilder,
    profile: Arc<Profile>,
    chunker: Chunker,
    open: StepBatch,
    pipeline: Pipeline,
}

impl TreeImporter {
    /// An importer with `workers` hashing threads, started when there is enough work; 0 or 1: none.
    pub fn new(profile: &Profile, workers: usize) -> Self {
        let profile = Arc::new(profile.clone());
        TreeImporter {
            tree: TreeBuilder::new((*profile).clone()),
            chunker: Chunker::new(&profile),
            open: StepBatch::default(),
            pipeline: Pipeline::new(profile.clone(), workers),
            profile,
        }
    }

    /// Opens a directory. Its attributes are stored if the profile preserves them.
    pub fn enter_dir(
        &mut self,
        name: &[u8],
        meta: &Meta,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        self.push(
            Step::EnterDir {
                name: name.to_vec(),
                meta: *meta,
            },
            sink,
        )
    }

    /// Closes the directory that was opened last.
    pub fn leave_dir(&mut self, sink: &mut dyn ImportSink) -> Result<(), ImportError> {
        self.push(Step::LeaveDir, sink)
    }

    /// Adds a symbolic link.
    pub fn symlink(
        &mut self,
        name: &[u8],
        target: &[u8],
        meta: &Meta,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        self.push(
            Step::Symlink {
                name: name.to_vec(),
                target: target.to_vec(),
                meta: *meta,
            },
            sink,
        )
    }

    /// Adds a file, reading to the end of `reader`. After an error the importer is of no further use.
    pub fn file(
        &mut self,
        name: &[u8],
        meta: &Meta,
        reader: &mut dyn Read,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        let mut empty = true;
        loop {
            let read = self.chunker.next(reader);
            let (chunk, ended) = read.map_err(|source| ImportError::Read {
                path: PathBuf::new(),
                source,
            })?;
            if let Some(chunk) = chunk {
                empty = false;
                sink.progress(chunk.content());
                self.push(Step::Chunk(chunk), sink)?;
            }
            if ended {
                break;
            }
        }
        if empty {
            // boxo balanced.Layout: no data is one empty leaf.
            self.push(Step::Chunk(Chunk::of(&self.profile, b"")), sink)?;
        }
        self.push(
            Step::EndFile {
                name: name.to_vec(),
                meta: *meta,
            },
            sink,
        )
    }

    /// Ends the import: everything was handed to the sink when it returns.
    pub fn finish(mut self, sink: &mut dyn ImportSink) -> Result<Part, ImportError> {
        let last = std::mem::take(&mut self.open);
        self.pipeline.finish(last, &mut self.tree, sink)?;
        self.tree.finish(sink)
    }

    fn push(&mut self, step: Step, sink: &mut dyn ImportSink) -> Result<(), ImportError> {
        self.open.push(step);
        if self.open.is_full() {
            let full = std::mem::take(&mut self.open);
            self.pipeline.dispatch(full, &mut self.tree, sink)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct StepBatch {
    steps: Vec<Step>,
    bytes: usize,
}

impl StepBatch {
    fn push(&mut self, step: Step) {
        if let Step::Chunk(chunk) = &step {
            self.bytes += chunk.len();
        }
        self.steps.push(step);
    }

    fn is_full(&self) -> bool {
        self.bytes >= STEP_BATCH_BYTES || self.steps.len() >= STEP_BATCH
    }
}

/// Batches out to the workers, back, and into the tree in order.
struct Pipeline {
    profile: Arc<Profile>,
    workers: usize,
    threads: Option<Threads>,
    sent: u64,
    applied: u64,
    in_flight_bytes: usize,
    /// Batches that came back before an earlier one.
    early: BTreeMap<u64, Hashed>,
}

struct Job {
    number: u64,
    batch: StepBatch,
}

struct Hashed {
    number: u64,
    bytes: usize,
    steps: Result<Vec<Step>, BlockError>,
}

impl Pipeline {
    fn new(profile: Arc<Profile>, workers: usize) -> Self {
        Pipeline {
            profile,
            workers,
            threads: None,
            sent: 0,
            applied: 0,
            in_flight_bytes: 0,
            early: BTreeMap::new(),
        }
    }

    fn dispatch(
        &mut self,
        batch: StepBatch,
        tree: &mut TreeBuilder,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        if self.workers < 2 {
            return apply(batch.steps, tree, sink);
        }
        while self.sent > self.applied && !self.has_room(batch.bytes) {
            self.collect(tree, sink)?;
        }
        let threads = self
            .threads
            .get_or_insert_with(|| Threads::start(&self.profile, self.workers));
        self.in_flight_bytes += batch.bytes;
        threads.send(Job {
            number: self.sent,
            batch,
        });
        self.sent += 1;
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> bool {
        let count = (self.sent - self.applied) as usize;
        count < IN_FLIGHT && self.in_flight_bytes + bytes <= IN_FLIGHT_BYTES
    }

    /// Applies the last batch after all others. A small import never starts a thread.
    fn finish(
        &mut self,
        last: StepBatch,
        tree: &mut TreeBuilder,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        while self.sent > self.applied {
            self.collect(tree, sink)?;
        }
        apply(last.steps, tree, sink)
    }

    /// Waits for one batch and applies all that are next in order.
    fn collect(
        &mut self,
        tree: &mut TreeBuilder,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        let Some(hashed) = self.threads.as_ref().and_then(Threads::receive) else {
            return Err(ImportError::Misuse("a hashing thread ended early"));
        };
        self.early.insert(hashed.number, hashed);
        while let Some(next) = self.early.remove(&self.applied) {
            self.applied += 1;
            self.in_flight_bytes -= next.bytes;
            apply(next.steps?, tree, sink)?;
        }
        Ok(())
    }
}

fn apply(
    steps: Vec<Step>,
    tree: &mut TreeBuilder,
    sink: &mut dyn ImportSink,
) -> Result<(), ImportError> {
    steps
        .into_iter()
        .try_for_each(|step| tree.apply(step, sink))
}

/// The hashing threads. They end when the last sender is dropped.
struct Threads {
    jobs: Option<SyncSender<Job>>,
    results: Receiver<Hashed>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(profile: &Arc<Profile>, workers: usize) -> Self {
        // Both queues hold everything that may be in flight, so that no send ever blocks.
        let (jobs, queue) = sync_channel::<Job>(IN_FLIGHT);
        let (done, results) = sync_channel::<Hashed>(IN_FLIGHT);
        let queue = Arc::new(Mutex::new(queue));
        let handles = (0..workers)
            .map(|_| {
                let (queue, done, profile) = (queue.clone(), done.clone(), profile.clone());
                std::thread::spawn(move || work(&queue, &done, &profile))
            })
            .collect();
        Threads {
            jobs: Some(jobs),
            results,
            handles,
        }
    }

    fn send(&self, job: Job) {
        // A failed send means that every worker is gone; `receive` then says so.
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    fn receive(&self) -> Option<Hashed> {
        self.results.recv().ok()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        for handle in self.handles.drain(..) {
            // A worker that panicked was noticed by `receive` already.
            let _ = handle.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, done: &SyncSender<Hashed>, profile: &Profile) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let steps = job
            .batch
            .steps
            .into_iter()
            .map(|step| hash_step(step, profile))
            .collect();
        let hashed = Hashed {
            number: job.number,
            bytes: job.batch.bytes,
            steps,
        };
        if done.send(hashed).is_err() {
            return;
        }
    }
}

fn hash_step(step: Step, profile: &Profile) -> Result<Step, BlockError> {
    Ok(match step {
        Step::Chunk(chunk) => Step::Leaf(chunk.hash(profile)?),
        other => other,
    })
}
