//! Where blocks come from, for the drivers that feed a sans-io core to its end.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::io::Write;
use std::ops::RangeBounds;

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;

use crate::error::{BoxError, ReadError, SourceError};
use crate::list::{DirEntry, ListStep, Listing};
use crate::path::{Path, ResolveStep, Resolved, Resolver};
use crate::read::{ReadStep, Reader};

/// How many blocks a driver names to [`BlockSource::prefetch`] ahead of the one it waits for.
pub const LOOK_AHEAD: usize = 32;

/// Gives blocks by CID: a store, a CAR, the network. May block the calling thread.
pub trait BlockSource {
    /// The block called `cid`. A [`Block`] carries the proof that its bytes match.
    ///
    /// # Errors
    /// [`SourceError::Missing`] if it is not there, [`SourceError::Failed`] if the source failed.
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError>;

    /// Hears which blocks will be asked for soon, nearest first, the same ones repeatedly. May do nothing.
    fn prefetch(&mut self, cids: &[Cid]) {
        let _ = cids;
    }
}

impl<S: BlockSource + ?Sized> BlockSource for &mut S {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        (**self).get(cid)
    }

    fn prefetch(&mut self, cids: &[Cid]) {
        (**self).prefetch(cids);
    }
}

/// Blocks in memory; the hash is checked on the way out.
impl<H: BuildHasher> BlockSource for HashMap<Cid, Bytes, H> {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        let data = HashMap::get(self, cid).ok_or(SourceError::Missing(Box::new(*cid)))?;
        Block::new(*cid, data.clone()).map_err(|error| SourceError::Failed {
            cid: Box::new(*cid),
            source: error.into(),
        })
    }
}

/// Why a driver stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The DAG is not sound or not what was wanted.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A block did not come.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The output did not take the bytes.
    #[error("the output failed: {0}")]
    Output(#[source] BoxError),
}

/// Writes the bytes of the file at `root` that lie in `range`; how many there were.
///
/// # Errors
/// See [`DriveError`].
pub fn cat(
    source: &mut dyn BlockSource,
    root: Cid,
    range: impl RangeBounds<u64>,
    output: &mut dyn Write,
) -> Result<u64, DriveError> {
    let mut reader = Reader::new(root, range);
    let mut written = 0;
    loop {
        match reader.poll()? {
            ReadStep::NeedBlock(cid) => {
                source.prefetch(&reader.upcoming(LOOK_AHEAD));
                reader.block(&source.get(&cid)?)?;
            }
            ReadStep::Bytes(bytes) => {
                output
                    .write_all(&bytes)
                    .map_err(|error| DriveError::Output(error.into()))?;
                written += bytes.len() as u64;
            }
            ReadStep::End => return Ok(written),
        }
    }
}

/// Calls `each` with every entry of the directory at `root`, in the DAG's order.
///
/// # Errors
/// See [`DriveError`].
pub fn ls(
    source: &mut dyn BlockSource,
    root: Cid,
    each: &mut dyn FnMut(DirEntry) -> Result<(), BoxError>,
) -> Result<(), DriveError> {
    let mut listing = Listing::new(root);
    loop {
        match listing.poll()? {
            ListStep::NeedBlock(cid) => {
                source.prefetch(&listing.upcoming(LOOK_AHEAD));
                listing.block(&source.get(&cid)?)?;
            }
            ListStep::Entry(entry) => each(entry).map_err(DriveError::Output)?,
            ListStep::End => return Ok(()),
        }
    }
}

/// Finds what a path names.
///
/// # Errors
/// See [`DriveError`]; [`ReadError::NotFound`] if a name on the way is not there.
pub fn resolve(source: &mut dyn BlockSource, path: &Path) -> Result<Resolved, DriveError> {
    let mut resolver = Resolver::new(path);
    loop {
        match resolver.poll()? {
            ResolveStep::NeedBlock(cid) => resolver.block(&source.get(&cid)?)?,
            ResolveStep::Done(resolved) => return Ok(resolved),
        }
    }
}

/// The block of an identity CID: its content is the CID itself, so nobody is asked for it.
pub(crate) fn identity(cid: &Cid) -> Option<Block> {
    (cid.hash().code() == 0)
        .then(|| Block::danger_unchecked(*cid, Bytes::copy_from_slice(cid.hash().digest())))
}
