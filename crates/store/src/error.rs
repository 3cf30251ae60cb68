//! What can go wrong, by who can do something about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use cid::Cid;
use gemba_segment::{HeaderFault, WriteError, is_full, is_unreadable};

/// Why a store did not open. It never refuses because of a crash, a torn file or damaged blocks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody else has it open.
    #[error(
        "{} is locked by {}: stop it, or let it do the work", .path.display(),
        .pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    LockHeld {
        /// The lock file.
        path: PathBuf,
        /// The process that has it, if it is known.
        pid: Option<u32>,
    },
    /// Written by a newer gemba.
    #[error(
        "{} has store format {found}; this gemba knows formats up to {known}. Use the gemba that wrote it, or run \
         `gemba repo migrate` with a newer gemba", .path.display()
    )]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// There is no store in the folder.
    #[error("there is no block store in {}: `gemba init` makes one", .0.display())]
    Missing(PathBuf),
    /// The `version` file is not one, and no pack tells what it should say.
    #[error("{} is damaged, and no pack of the store is whole enough to write it anew", .0.display())]
    BadVersionFile(PathBuf),
    /// A pack that belongs to another store lies among the packs.
    #[error("{} is not a pack of this store: {fault}. Move it away", .path.display())]
    ForeignPack {
        /// The pack.
        path: PathBuf,
        /// What its header says.
        fault: HeaderFault,
    },
    /// The disk refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the disk answered.
        source: io::Error,
    },
}

/// Why a call to an open store failed. Cheap to clone: all callers of a group get the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was opened for reading only.
    #[error("the store is open for reading only")]
    ReadOnly,
    /// The store's own limit is reached. Nothing of the call is stored, all else still is; the disk itself may have room.
    #[error(
        "the store may take {limit} bytes and has taken {used}, so {needed} more find no room: run `gemba gc`, or raise the \
         limit"
    )]
    NoSpace {
        /// Bytes that the call needed on the disk.
        needed: u64,
        /// Bytes that the store takes on the disk now.
        used: u64,
        /// Bytes that it may take for calls of this kind: for puts the limit less the reserve.
        limit: u64,
    },
    /// The disk has no room. Nothing of the call is stored, all else still is; free some space and call again.
    #[error("the disk is full ({0}): run `gemba gc`, or free some space")]
    Full(Arc<io::Error>),
    /// The disk refused. Nothing of a failed write counts as stored; reads go on, and a later write is tried on a new file.
    #[error("the disk refused: {0}")]
    Io(Arc<io::Error>),
    /// A flush failed, so what was written may be lost, or may not. Nothing of the call counts as stored; a later write is tried on a new
    /// file, once what is left of this one was cut off.
    #[error("the disk failed to make the blocks durable ({0}): check the disk")]
    NotDurable(io::ErrorKind),
    /// A block is damaged on disk. Fetching and putting it again repairs it.
    #[error("block {cid} is damaged on disk (pack {pack}, offset {offset}): {what}")]
    Corrupt {
        /// The block, as it was asked for.
        cid: Box<Cid>,
        /// Number of the pack.
        pack: u32,
        /// Offset of its frame in the pack.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The medium does not give back which blocks stand in a pack. They may be whole all the same, and are read by their names.
    #[error("the disk cannot read which blocks stand in pack {pack} ({source}): check the disk")]
    Unlisted {
        /// Number of the pack.
        pack: u32,
        /// What the disk answered.
        source: Arc<io::Error>,
    },
    /// The block was moved by compaction again and again while it was read. Read it again.
    #[error("block {cid} was moved again and again while it was read; read it again")]
    Moving {
        /// The block, as it was asked for.
        cid: Box<Cid>,
    },
    /// Only one collection at a time can be under way.
    #[error("the store is collecting already; wait for the end of it")]
    Collecting,
    /// Larger than a block may be.
    #[error("block {cid} has {size} bytes; a block may have 2097152 at most")]
    TooLarge {
        /// The block.
        cid: Box<Cid>,
        /// Its size in bytes.
        size: usize,
    },
    /// The thread that wrote for this call died. What is stored of it is not known: call again.
    #[error("the thread that wrote for this call died; call again")]
    WriterDied,
    /// Pack numbers have run out (2^24 of them).
    #[error("the store has no free pack number")]
    TooManyPacks,
}

impl StoreError {
    /// An error of reading the list of blocks in a pack.
    pub(crate) fn listing(pack: u32, error: io::Error) -> Self {
        // A file that ends before its list was cut by somebody while the store is open: as lost as if the disk could not read it.
        if is_unreadable(&error) || error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Unlisted {
                pack,
                source: Arc::new(error),
            }
        } else {
            Self::io(error)
        }
    }

    pub(crate) fn io(error: io::Error) -> Self {
        if is_full(&error) {
            Self::Full(Arc::new(error))
        } else {
            Self::Io(Arc::new(error))
        }
    }
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Full(e) => Self::Full(Arc::new(e)),
            WriteError::Io(e) => Self::Io(Arc::new(e)),
            WriteError::Poisoned(kind) => Self::NotDurable(kind),
            other => Self::Io(Arc::new(io::Error::other(other))),
        }
    }
}
