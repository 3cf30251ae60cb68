//! A tree of files, directories and symlinks in the order of a walk; blocks out, the root last.
//!
//! This is the core of every import. It hashes inner nodes and directories itself; the leaves come hashed, because
//! they are nearly all of the work and are hashed elsewhere, on as many cores as there are (`import.rs`).

use gemba_block::Block;

use crate::config::{Meta, Profile};
use crate::dir::{self, DirBuilder};
use crate::error::{BoxError, ImportError};
use crate::layout::{Layout, Part};
use crate::leaf::{Chunk, Leaf};

/// A batch goes to the sink when it has this many bytes …
const BATCH_BYTES: usize = 3 * 1024 * 1024;
/// … or this many blocks: one durable write then carries both many small files and few large chunks.
const BATCH_BLOCKS: usize = 256;

/// Where an import puts what it makes. Any `FnMut(Vec<Block>) -> Result<(), BoxError>` is one.
pub trait ImportSink {
    /// Takes a batch of at most 3 MiB (plus one block) or 256 blocks. Children come before their parents.
    fn blocks(&mut self, blocks: Vec<Block>) -> Result<(), BoxError>;

    /// Hears of a finished file, symlink or directory, the root last. Its blocks may still be on their way to
    /// [`blocks`](ImportSink::blocks): only the end of the import says that all were handed over.
    fn entry(&mut self, entry: &Imported) {
        let _ = entry;
    }

    /// Hears how many bytes of content were read since the last call.
    fn progress(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// Hears of a socket, fifo or device that was left out.
    fn skipped(&mut self, path: &std::path::Path, kind: &'static str) {
        let _ = (path, kind);
    }
}

impl<F: FnMut(Vec<Block>) -> Result<(), BoxError>> ImportSink for F {
    fn blocks(&mut self, blocks: Vec<Block>) -> Result<(), BoxError> {
        self(blocks)
    }
}

/// An entry that an import finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Names from the root down, joined by `/`; any bytes but NUL.
    pub path: Vec<u8>,
    /// Its root and sizes.
    pub part: Part,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// One event of a walk.
pub(crate) enum Step {
    EnterDir {
        name: Vec<u8>,
        meta: Meta,
    },
    LeaveDir,
    /// Content that is still to be hashed; whoever drives turns it into a `Leaf`.
    Chunk(Chunk),
    Leaf(Leaf),
    EndFile {
        name: Vec<u8>,
        meta: Meta,
    },
    Symlink {
        name: Vec<u8>,
        target: Vec<u8>,
        meta: Meta,
    },
}

/// Builds a tree from steps.
pub(crate) struct TreeBuilder {
    profile: Profile,
    dirs: Vec<OpenDir>,
    path: Vec<u8>,
    file: Layout,
    root: Option<Part>,
    batch: Batch,
}

struct OpenDir {
    builder: DirBuilder,
    /// The directory's own name, and how long the path was before it.
    name: Vec<u8>,
    path_len: usize,
}

impl TreeBuilder {
    pub(crate) fn new(profile: Profile) -> Self {
        TreeBuilder {
            profile,
            dirs: Vec::new(),
            path: Vec::new(),
            file: Layout::default(),
            root: None,
            batch: Batch::default(),
        }
    }

    pub(crate) fn apply(
        &mut self,
        step: Step,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        match step {
            Step::EnterDir { name, meta } => self.enter_dir(name, &meta),
            Step::LeaveDir => self.leave_dir(sink)?,
            Step::Chunk(chunk) => {
                let leaf = chunk.hash(&self.profile)?;
                self.file
                    .push(leaf, &self.profile, &mut self.batch.blocks)?;
            }
            Step::Leaf(leaf) => self
                .file
                .push(leaf, &self.profile, &mut self.batch.blocks)?,
            Step::EndFile { name, meta } => {
                let file = std::mem::take(&mut self.file);
                let part = file.finish(
                    &meta.kept(&self.profile),
                    &self.profile,
                    &mut self.batch.blocks,
                )?;
                self.finished(name, part, false, sink)?;
            }
            Step::Symlink { name, target, meta } => {
                let (block, part) =
                    dir::symlink(&target, &meta.kept(&self.profile), &self.profile)?;
                self.batch.blocks.push(block);
                self.finished(name, part, false, sink)?;
            }
        }
        self.batch.settle(sink)
    }

    pub(crate) fn finish(mut self, sink: &mut dyn ImportSink) -> Result<Part, ImportError> {
        if !self.dirs.is_empty() {
            return Err(ImportError::Misuse("a directory was not left"));
        }
        let root = self.root.ok_or(ImportError::Misuse("nothing was added"))?;
        self.batch.flush(sink)?;
        Ok(root)
    }

    fn enter_dir(&mut self, name: Vec<u8>, meta: &Meta) {
        let path_len = self.path.len();
        push_segment(&mut self.path, &name);
        self.dirs.push(OpenDir {
            builder: DirBuilder::new(meta.kept(&self.profile)),
            name,
            path_len,
        });
    }

    fn leave_dir(&mut self, sink: &mut dyn ImportSink) -> Result<(), ImportError> {
        let dir = self
            .dirs
            .pop()
            .ok_or(ImportError::Misuse("left a directory that was not entered"))?;
        let batch = &mut self.batch;
        let part = dir.builder.finish(&self.profile, &mut |block| {
            batch.blocks.push(block);
            batch.settle(sink)
        })?;
        self.path.truncate(dir.path_len);
        self.finished(dir.name, part, true, sink)
    }

    /// Files the finished part under its parent, or as the root.
    fn finished(
        &mut self,
        name: Vec<u8>,
        part: Part,
        is_dir: bool,
        sink: &mut dyn ImportSink,
    ) -> Result<(), ImportError> {
        match self.dirs.last_mut() {
            Some(parent) => parent.builder.add(&name, &part, &self.profile)?,
            None if self.root.is_some() => return Err(ImportError::Misuse("two roots were added")),
            None => self.root = Some(part),
        }
        let mut path = self.path.clone();
        push_segment(&mut path, &name);
        sink.entry(&Imported { path, part, is_dir });
        Ok(())
    }
}

/// Blocks waiting for the sink.
#[derive(Default)]
struct Batch {
    blocks: Vec<Block>,
    counted: usize,
    bytes: usize,
}

impl Batch {
    /// Hands the batch over if it is full.
    fn settle(&mut self, sink: &mut dyn ImportSink) -> Result<(), ImportError> {
        for block in &self.blocks[self.counted..] {
            self.bytes += block.data().len();
        }
        self.counted = self.blocks.len();
        if self.bytes >= BATCH_BYTES || self.counted >= BATCH_BLOCKS {
            return self.flush(sink);
        }
        Ok(())
    }

    fn flush(&mut self, sink: &mut dyn ImportSink) -> Result<(), ImportError> {
        self.counted = 0;
        self.bytes = 0;
        let blocks = std::mem::take(&mut self.blocks);
        if blocks.is_empty() {
            return Ok(());
        }
        sink.blocks(blocks).map_err(ImportError::Sink)
    }
}

fn push_segment(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}
