//! What can go wrong, one small enum an operation.

use crate::format::RECORD_VERSION;
use cid::Cid;

/// A change of the desired set that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// Caller: there is no pin with this root.
    #[error("{0} is not pinned")]
    NotPinned(Cid),
    /// Caller: a recursive pin already holds the block; making it direct would release the rest of its DAG. Remove the pin first.
    #[error("{0} is already pinned recursively; remove that pin first")]
    AlreadyRecursive(Cid),
    /// Caller: the work was done for an older pin of this root, which has been removed, replaced or widened since. The result is void.
    #[error("{cid}: result of pin {id}, but the pin is now {current}")]
    Superseded {
        /// The root.
        cid: Cid,
        /// The pin the result belongs to.
        id: u64,
        /// The pin there is.
        current: u64,
    },
    /// Environment: a stored pin has the highest id there is, which no writer reaches; remove it first and start anew.
    #[error(
        "a stored pin has the last id there is, so nothing can be pinned: its record is damaged; remove that pin and start again"
    )]
    IdsUsedUp,
}

/// A change was planned on a state that is no longer there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the pin of {0} was changed after this change was planned; plan it again")]
pub struct StaleChange(pub Cid);

/// A text that cannot name a pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A name of no characters; leave the name out instead.
    #[error("a pin's name must not be empty")]
    Empty,
    /// Longer than the 255 bytes that Kubo and the Pinning Service API accept.
    #[error("a pin's name has at most 255 bytes, this one has {0}")]
    TooLong(usize),
}

/// Stored bytes that are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Environment: a newer gemba wrote it.
    #[error(
        "pin record of version {found}, this program reads versions 1 to {RECORD_VERSION}: run the newer gemba that wrote it"
    )]
    Newer {
        /// The version in the record.
        found: u8,
    },
    /// The record ends inside a field.
    #[error("the pin record ends within its {0}")]
    Truncated(&'static str),
    /// A field holds what no writer writes.
    #[error("the {0} of the pin record is none that a writer writes")]
    Invalid(&'static str),
    /// Bytes behind the last field.
    #[error("the pin record has {0} bytes too many")]
    Trailing(usize),
    /// The key is not one CID in its shortest form.
    #[error("key of a pin record is not a CID: {0}")]
    Key(String),
    /// Two records with one root: the keys of a table are unique, so the input was not one table.
    #[error("two pin records for {0}")]
    Duplicate(Cid),
}

/// A DAG that the walk will not go through. The walk has ended; a new one with other limits starts from the root and fetches nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// Publisher: a path longer than [`max_depth`](crate::WalkConfig::max_depth).
    #[error("{cid} lies deeper than the limit of {limit} links below the root")]
    TooDeep {
        /// The first block beyond the limit.
        cid: Cid,
        /// The limit, in links.
        limit: u32,
    },
    /// Publisher: more distinct blocks than [`max_blocks`](crate::WalkConfig::max_blocks).
    #[error("the DAG has more than {limit} blocks")]
    TooManyBlocks {
        /// The limit.
        limit: u64,
    },
    /// Publisher: more bytes than [`max_bytes`](crate::WalkConfig::max_bytes).
    #[error("the DAG has more than {limit} bytes")]
    TooManyBytes {
        /// The limit, in bytes.
        limit: u64,
    },
    /// Publisher: the links of one block do not fit into [`max_frontier_bytes`](crate::WalkConfig::max_frontier_bytes), even after all
    /// that can give way has.
    #[error("the links waiting to be visited need more than {limit} bytes, as of {cid}")]
    TooWide {
        /// The block whose links went over the limit.
        cid: Cid,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Publisher: a block of the DAG matches its hash but cannot be read as its codec says, so its links are unknowable.
    #[error("{cid} cannot be read: {reason}")]
    Unreadable {
        /// The block.
        cid: Cid,
        /// What its codec says.
        reason: String,
    },
}

/// Why a block could not be had. The walk goes on with the others and names these at the end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MissingCause {
    /// Environment: no peer was connected to ask.
    #[error("no peer to ask")]
    NoPeers,
    /// Peers: all that were asked said no.
    #[error("none of {asked} peers has it")]
    NotFound {
        /// How many were asked.
        asked: usize,
    },
    /// Peers: somebody has it, and nothing came.
    #[error("no byte arrived in time")]
    Stalled,
    /// This device: the block came and could not be stored, or is stored and could not be read.
    #[error("local storage: {0}")]
    Local(String),
    /// Whatever else the owner says.
    #[error("{0}")]
    Other(String),
}
