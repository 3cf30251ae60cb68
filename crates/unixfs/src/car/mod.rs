//! CAR: a DAG as one stream of blocks (specs/unixfs.md §7).
//!
//! Version 1 is written; versions 1 and 2 are read, the index of a version 2 is ignored. Every block's hash is checked,
//! every length is checked before it is allocated, and an archive that stops early says where.

mod decode;
mod export;
mod header;
mod write;

pub use decode::{CarReadError, CarReader, CarStep, Decoder};
pub use export::{DagWalk, WalkError, WalkStep, export_dag};
pub use write::{CarWriter, Dups};

use gemba_block::{BlockError, MAX_BLOCK_BYTES, MAX_CID_BYTES};

/// Longest header, in bytes: some 27,000 roots (go-car has 32 MiB; nobody writes such).
pub const MAX_HEADER_BYTES: usize = 1024 * 1024;
/// Longest section: a CID and a block, in bytes.
pub const MAX_SECTION_BYTES: usize = MAX_CID_BYTES + MAX_BLOCK_BYTES;

/// Why an archive is refused. Offsets count from the beginning of the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarError {
    /// The stream ends where it must not: the download or the disk cut it off.
    #[error("the archive is cut off in {part} at byte {offset} (section {section})")]
    Truncated {
        /// What was being read.
        part: &'static str,
        /// Where the stream ends.
        offset: u64,
        /// Which block it was, counted from 1; 0: still before the first.
        section: u64,
    },
    /// A length that is 0, over-long or above the limit.
    #[error(
        "{part} at byte {offset} (section {section}) has a length of {length}, the limit is {limit} bytes"
    )]
    Length {
        /// What has this length.
        part: &'static str,
        /// Where the length stands.
        offset: u64,
        /// Which block, counted from 1.
        section: u64,
        /// What it says; `u64::MAX` for a varint of more than 64 bits.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// The header is not `{roots: [CID …], version: 1}` in DAG-CBOR.
    #[error("the header is not that of a CAR: {0}")]
    Header(&'static str),
    /// A version other than 1 and 2.
    #[error("version {0} of CAR is not known: 1 and 2 are")]
    Version(u64),
    /// The offsets in the header of a version 2 contradict each other.
    #[error("the header of the CARv2 contradicts itself")]
    V2Header,
    /// A section does not begin with a CID.
    #[error("section {section} at byte {offset} does not begin with a CID")]
    Cid {
        /// Where the section begins.
        offset: u64,
        /// Which block, counted from 1.
        section: u64,
    },
    /// A block is not what its CID says: the archive is damaged or forged.
    #[error("section {section} at byte {offset}: {source}")]
    Block {
        /// Where the section begins.
        offset: u64,
        /// Which block, counted from 1.
        section: u64,
        /// What is wrong with it.
        source: BlockError,
    },
}
