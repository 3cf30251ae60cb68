//! A whole DAG in depth-first order, each block once or as often as it occurs.

use std::collections::HashSet;
use std::io::Write;

use cid::Cid;
use gemba_block::{Block, LinksError, links};

use super::write::{CarWriter, Dups};
use crate::error::{ReadError, SourceError};
use crate::source::{BlockSource, LOOK_AHEAD, identity};

/// Most links waiting on the path from the root, in bytes of memory: a DAG that needs more is refused.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// What a [`DagWalk`] says next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkStep {
    /// Give this block to [`DagWalk::block`].
    NeedBlock(Cid),
    /// Every block was visited.
    End,
}

/// Visits every block of a DAG depth first, parents before children, children in link order.
///
/// Iterative: depth costs one entry of a list, not a stack frame. Remembers what it visited unless duplicates are
/// wanted; then a small DAG may be an endless walk, and the caller bounds its output.
#[derive(Debug)]
pub struct DagWalk {
    /// Links still to visit, the next one last.
    waiting: Vec<Cid>,
    visited: Option<HashSet<Cid>>,
}

impl DagWalk {
    /// A walk from `root`.
    pub fn new(root: Cid, dups: Dups) -> Self {
        DagWalk {
            waiting: vec![root],
            visited: (dups == Dups::Skip).then(HashSet::new),
        }
    }

    /// What comes next.
    pub fn poll(&mut self) -> WalkStep {
        while let Some(cid) = self.waiting.last() {
            let seen = self
                .visited
                .as_ref()
                .is_some_and(|visited| visited.contains(cid));
            if !seen {
                return WalkStep::NeedBlock(*cid);
            }
            self.waiting.pop();
        }
        WalkStep::End
    }

    /// Takes the block that was asked for.
    ///
    /// # Errors
    /// If it is another one, if its links cannot be read, or if too many links wait.
    pub fn block(&mut self, block: &Block) -> Result<(), WalkError> {
        if self.waiting.last() != Some(block.cid()) {
            let wanted = self.waiting.last().copied();
            return Err(ReadError::wrong_block(block, wanted).into());
        }
        self.waiting.pop();
        if let Some(visited) = &mut self.visited {
            visited.insert(*block.cid());
        }
        let mut below = links(block).map_err(|source| WalkError::Links {
            cid: Box::new(*block.cid()),
            source,
        })?;
        below.reverse();
        self.waiting.append(&mut below);
        if self.waiting.len() * size_of::<Cid>() > MAX_WAITING_BYTES {
            return Err(ReadError::TooWide {
                cid: Box::new(*block.cid()),
                limit: MAX_WAITING_BYTES,
            }
            .into());
        }
        Ok(())
    }

    /// Links that will be visited soon, nearest first, at most `max`; some may turn out to be visited already.
    pub fn upcoming(&self, max: usize) -> Vec<Cid> {
        self.waiting
            .iter()
            .rev()
            .skip(1)
            .take(max)
            .copied()
            .collect()
    }
}

/// Why a walk or an export stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The walk was driven wrongly or needs too much memory.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A block's links cannot be read.
    #[error("{cid}: {source}")]
    Links {
        /// Which block.
        cid: Box<Cid>,
        /// Why.
        source: LinksError,
    },
    /// A block did not come.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The output failed.
    #[error("the archive could not be written: {0}")]
    Output(#[from] std::io::Error),
}

/// Writes the whole DAG below `root` as an archive of version 1; how many blocks were visited.
///
/// # Errors
/// See [`WalkError`]. What was written up to then is not a whole archive.
pub fn export_dag(
    source: &mut dyn BlockSource,
    root: Cid,
    output: impl Write,
    dups: Dups,
) -> Result<u64, WalkError> {
    let mut walk = DagWalk::new(root, dups);
    // The walk remembers what was visited, the writer need not.
    let mut writer = CarWriter::new(output, &[root], Dups::Keep)?;
    let mut blocks = 0;
    while let WalkStep::NeedBlock(cid) = walk.poll() {
        let block = match identity(&cid) {
            Some(block) => block,
            None => {
                source.prefetch(&walk.upcoming(LOOK_AHEAD));
                source.get(&cid)?
            }
        };
        writer.write(&block)?;
        walk.block(&block)?;
        blocks += 1;
    }
    writer.finish()?;
    Ok(blocks)
}
