//! A whole tree as a stream of events: what an export follows.

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_block::codec::RAW;

use crate::error::ReadError;
use crate::list::{DirEntry, ListStep, Listing, Stat, StatKind};
use crate::source::identity;

/// Most directories inside one another. An import refuses deeper folders too, so whatever we write can be exported.
pub const MAX_TREE_DEPTH: usize = 256;

/// What a [`TreeWalk`] says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeStep {
    /// Give this block to [`TreeWalk::block`].
    NeedBlock(Cid),
    /// A directory begins; what follows up to its `Leave` is in it.
    Enter {
        /// Its name, any bytes; empty for the root.
        name: Bytes,
        /// Its attributes.
        stat: Stat,
    },
    /// The directory entered last ends.
    Leave,
    /// A file. Its content is read with a [`Reader`](crate::Reader) of its own.
    File {
        /// Its name, any bytes; empty for the root.
        name: Bytes,
        /// Its root.
        cid: Cid,
        /// Its root block, where the walk had to read it: give it to the reader.
        root: Option<Block>,
        /// Its claimed size and attributes.
        stat: Stat,
    },
    /// A symbolic link.
    Symlink {
        /// Its name, any bytes; empty for the root.
        name: Bytes,
        /// Its target, any bytes.
        target: Bytes,
        /// Its attributes.
        stat: Stat,
    },
    /// The tree is complete.
    End,
}

/// Walks a tree in the order of the DAG.
///
/// Names come as they are in the DAG: whoever makes files of them checks them. `poll` until `End`; after `NeedBlock`,
/// hand the block to `block`. Memory: one path of directories.
#[derive(Debug)]
pub struct TreeWalk {
    current: Option<DirEntry>,
    ready: Option<TreeStep>,
    dirs: Vec<Listing>,
}

impl TreeWalk {
    /// A walk of the tree at `root`.
    pub fn new(root: Cid) -> Self {
        TreeWalk {
            current: Some(DirEntry {
                name: Bytes::new(),
                cid: root,
                tsize: None,
            }),
            ready: None,
            dirs: Vec::new(),
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// What is wrong with the DAG, see [`ReadError`].
    pub fn poll(&mut self) -> Result<TreeStep, ReadError> {
        loop {
            if let Some(step) = self.ready.take() {
                return Ok(step);
            }
            if let Some(entry) = self.current.take() {
                if let Some(block) = identity(&entry.cid) {
                    self.open(entry, &block)?;
                    continue;
                }
                return Ok(self.raw_or_need(entry));
            }
            let Some(dir) = self.dirs.last_mut() else {
                return Ok(TreeStep::End);
            };
            match dir.poll()? {
                ListStep::NeedBlock(cid) => return Ok(TreeStep::NeedBlock(cid)),
                ListStep::Entry(entry) => self.current = Some(entry),
                ListStep::End => {
                    self.dirs.pop();
                    return Ok(TreeStep::Leave);
                }
            }
        }
    }

    /// Takes the block that was asked for.
    ///
    /// # Errors
    /// [`ReadError::WrongBlock`] for another one, else what is wrong with the DAG.
    pub fn block(&mut self, block: &Block) -> Result<(), ReadError> {
        match (self.current.take(), self.dirs.last_mut()) {
            (Some(entry), _) if entry.cid == *block.cid() => self.open(entry, block),
            (None, Some(dir)) => dir.block(block),
            (other, _) => {
                let wanted = other.map(|entry| entry.cid);
                Err(ReadError::wrong_block(block, wanted))
            }
        }
    }

    /// Blocks that will be needed after the one asked for, nearest first, at most `max`.
    pub fn upcoming(&self, max: usize) -> Vec<Cid> {
        let mut out = Vec::new();
        for dir in self.dirs.iter().rev() {
            out.extend(dir.upcoming_all(max - out.len()));
            if out.len() >= max {
                break;
            }
        }
        out
    }

    /// A raw block is a file whatever its bytes are: below a directory it is not needed to know that.
    fn raw_or_need(&mut self, entry: DirEntry) -> TreeStep {
        let DirEntry { name, cid, tsize } = entry;
        match tsize {
            Some(size) if cid.codec() == RAW => {
                let stat = Stat {
                    kind: StatKind::File,
                    size,
                    mode: None,
                    mtime: None,
                };
                TreeStep::File {
                    name,
                    cid,
                    root: None,
                    stat,
                }
            }
            _ => {
                self.current = Some(DirEntry { name, cid, tsize });
                TreeStep::NeedBlock(cid)
            }
        }
    }

    fn open(&mut self, entry: DirEntry, block: &Block) -> Result<(), ReadError> {
        let stat = Stat::of(block)?;
        let DirEntry { name, cid, .. } = entry;
        self.ready = Some(match &stat.kind {
            StatKind::File => TreeStep::File {
                name,
                cid,
                root: Some(block.clone()),
                stat,
            },
            StatKind::Symlink { target } => TreeStep::Symlink {
                name,
                target: target.clone(),
                stat,
            },
            StatKind::Directory { .. } => {
                if self.dirs.len() >= MAX_TREE_DEPTH {
                    return Err(ReadError::TooDeep {
                        cid: Box::new(cid),
                        limit: MAX_TREE_DEPTH,
                    });
                }
                let mut listing = Listing::new(cid);
                listing.block(block)?;
                self.dirs.push(listing);
                TreeStep::Enter { name, stat }
            }
        });
        Ok(())
    }
}
