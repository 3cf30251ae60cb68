//! Errors by operation, each variant named after who can do something about it.

use std::path::PathBuf;

use cid::Cid;
use gemba_block::BlockError;

use crate::config::MAX_CHUNK_BYTES;
use crate::dagpb::{Kind, WireError};

/// An error of the embedder's own: of a sink, a source or a reader it handed in.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A setting that cannot be used. The caller's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No profile has this name.
    #[error("unknown profile {0:?}: known are unixfs-v1-2025 and unixfs-v0-2015")]
    UnknownName(String),
    /// The chunk size is 0 or above the limit.
    #[error("chunk size {bytes} is not between 1 and {MAX_CHUNK_BYTES}")]
    ChunkSize {
        /// What was asked for.
        bytes: u64,
    },
    /// Not a chunker that is written.
    #[error("chunker {0:?} is not supported: use size-N with N from 1 to {MAX_CHUNK_BYTES}")]
    Chunker(String),
    /// A file node needs 2 to 16384 links.
    #[error("max links {links} is not between 2 and 16384")]
    MaxLinks {
        /// What was asked for.
        links: usize,
    },
    /// A HAMT is a power of two wide, 8 to 1024.
    #[error("fanout {fanout} is not a power of two between 8 and 1024")]
    Fanout {
        /// What was asked for.
        fanout: u32,
    },
}

/// Why an import stopped. Blocks given to the sink before stay there and are harmless.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Something in the file system could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A socket, fifo or device: it has no content that ends.
    #[error("{} is a {kind}: only files, folders and symlinks can be added", path.display())]
    Special {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// More folders inside one another than an export could make again.
    #[error("{} lies more than {limit} folders deep", path.display())]
    TooDeep {
        /// Where it was given up.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A followed symlink leads to a folder that it lies in.
    #[error("{} leads back to a folder around it", path.display())]
    Loop {
        /// The link.
        path: PathBuf,
    },
    /// The sink refused blocks.
    #[error("the blocks could not be stored: {0}")]
    Sink(#[source] BoxError),
    /// Two entries of one directory have the same name.
    #[error("the directory has two entries called {0:?}")]
    DuplicateName(String),
    /// An entry's name is empty, holds `/` or NUL, or is `.` or `..`.
    #[error("{0:?} cannot be the name of an entry")]
    BadName(String),
    /// The hashes of two names agree in all 64 bits, so no HAMT can hold both. Kubo refuses it too.
    #[error("two names of the directory have the same 64-bit hash: no HAMT can hold both")]
    HamtTooDeep,
    /// A node came out larger than a block may be.
    #[error("a node is too large for a block: {0}")]
    Block(#[from] BlockError),
    /// The events do not describe one tree: the driver's mistake.
    #[error("the import was driven wrongly: {0}")]
    Misuse(&'static str),
}

/// Why a file, directory or path cannot be read out of a DAG. CIDs are boxed: a CID alone has 96 bytes. Except for the last two, the DAG's maker is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The block is not dag-pb or not UnixFS.
    #[error("{cid}: {source}")]
    Wire {
        /// Which block.
        cid: Box<Cid>,
        /// What is wrong with it.
        source: WireError,
    },
    /// A node claims other sizes than it has.
    #[error("{cid}: {claim} says {claimed} bytes, there are {actual}")]
    SizeLie {
        /// Which block.
        cid: Box<Cid>,
        /// Which field lies.
        claim: &'static str,
        /// What it says.
        claimed: u64,
        /// What is true.
        actual: u64,
    },
    /// The sizes of a node's children do not fit 64 bits together.
    #[error("{cid}: the sizes add up to more than 64 bits")]
    SizeOverflow {
        /// Which block.
        cid: Box<Cid>,
    },
    /// As many block sizes as links, or none.
    #[error("{cid}: {links} links but {sizes} block sizes")]
    SizeCount {
        /// Which block.
        cid: Box<Cid>,
        /// Links of the node.
        links: usize,
        /// Block sizes of the node.
        sizes: usize,
    },
    /// Not the kind of node that belongs here.
    #[error("{cid} is a {kind:?}, which is not {wanted}")]
    WrongKind {
        /// Which block.
        cid: Box<Cid>,
        /// What it is.
        kind: Kind,
        /// What was wanted.
        wanted: &'static str,
    },
    /// Neither raw nor dag-pb.
    #[error("{cid} has codec 0x{:x}: UnixFS is raw or dag-pb", cid.codec())]
    Codec {
        /// Which block.
        cid: Box<Cid>,
    },
    /// More levels than any sound file or directory has.
    #[error("{cid} lies more than {limit} levels deep")]
    TooDeep {
        /// Where it was given up.
        cid: Box<Cid>,
        /// The limit.
        limit: usize,
    },
    /// The inner nodes on one path need more memory than is granted.
    #[error("{cid}: the nodes above it take more than {limit} bytes of memory")]
    TooWide {
        /// Where it was given up.
        cid: Box<Cid>,
        /// The limit in bytes.
        limit: usize,
    },
    /// Very many blocks without one byte of content: a bomb.
    #[error("{blocks} blocks in a row brought no content")]
    NoProgress {
        /// How many were read.
        blocks: u32,
    },
    /// A HAMT shard that breaks the rules.
    #[error("{cid}: {source}")]
    Hamt {
        /// Which block.
        cid: Box<Cid>,
        /// What is wrong with it.
        source: crate::hamt::HamtError,
    },
    /// There is no such entry.
    #[error("{directory} has no entry {name:?}")]
    NotFound {
        /// The directory that was searched.
        directory: Box<Cid>,
        /// What was searched for.
        name: String,
    },
    /// A block was handed in that was not asked for: the driver's mistake.
    #[error("block {given} was given, {wanted:?} was wanted")]
    WrongBlock {
        /// What came.
        given: Box<Cid>,
        /// What was asked for.
        wanted: Option<Box<Cid>>,
    },
}

/// Why a source of blocks did not give one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The block is not there.
    #[error("block {0} is not there")]
    Missing(Box<Cid>),
    /// The source failed.
    #[error("block {cid} could not be had: {source}")]
    Failed {
        /// Which block.
        cid: Box<Cid>,
        /// Why.
        source: BoxError,
    },
}

impl SourceError {
    /// The block is not there.
    pub fn missing(cid: &Cid) -> Self {
        SourceError::Missing(Box::new(*cid))
    }

    /// The source failed.
    pub fn failed(cid: &Cid, source: impl Into<BoxError>) -> Self {
        SourceError::Failed {
            cid: Box::new(*cid),
            source: source.into(),
        }
    }
}
