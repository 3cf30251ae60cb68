//! How files become DAGs. Two parties get the same CID for the same folder only if every setting here agrees.

use gemba_block::codec::{DAG_PB, RAW};
use gemba_block::{Block, BlockError, MAX_BLOCK_BYTES, MhCode};

use crate::error::ProfileError;

/// Framing of a dag-pb leaf that a chunk must leave room for (boxo chunker: ChunkOverheadBudget).
const FRAMING: usize = 256;
/// Largest chunk, in bytes (boxo chunker: ChunkSizeLimit).
pub const MAX_CHUNK_BYTES: usize = MAX_BLOCK_BYTES - FRAMING;
/// Most links of one file node. A link with its block size takes at most 64 bytes, so a node stays at half a block.
pub const MAX_FILE_LINKS: usize = 16_384;
/// Widest HAMT that is written or read. Kubo writes 256; wider ones than 1024 make nodes near the block limit.
pub const MAX_FANOUT: u32 = 1024;

/// CID version of everything an import makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CidVersion {
    /// `Qm…`: dag-pb with sha2-256 only; raw leaves keep CIDv1.
    V0,
    /// `bafy…`, `bafk…`.
    V1,
}

/// How the size of a directory is measured before it becomes a HAMT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Estimation {
    /// Sum of name lengths and CID lengths: what Kubo did up to 0.39 and does by default.
    Links,
    /// Exact size of the directory's block (IPIP-499).
    Block,
}

/// All settings that decide a CID.
///
/// Setters chain by value: `Profile::unixfs_v0_2015().cid_version(CidVersion::V1)`. The hash is always sha2-256 and
/// the layout balanced; other layouts are read, not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    cid_version: CidVersion,
    /// `None`: follows the CID version, as `ipfs add` does.
    raw_leaves: Option<bool>,
    chunk_size: usize,
    max_links: usize,
    hamt_threshold: u64,
    estimation: Estimation,
    hamt_fanout: u32,
    preserve_mode: bool,
    preserve_mtime: bool,
}

impl Default for Profile {
    /// [`Profile::unixfs_v1_2025`].
    fn default() -> Self {
        Self::unixfs_v1_2025()
    }
}

impl Profile {
    /// `unixfs-v1-2025` (IPIP-499): CIDv1, raw leaves, 1 MiB chunks, 1024 links, HAMT above 256 KiB of block size.
    pub fn unixfs_v1_2025() -> Self {
        Profile {
            cid_version: CidVersion::V1,
            raw_leaves: Some(true),
            chunk_size: 1024 * 1024,
            max_links: 1024,
            hamt_threshold: 256 * 1024,
            estimation: Estimation::Block,
            hamt_fanout: 256,
            preserve_mode: false,
            preserve_mtime: false,
        }
    }

    /// `unixfs-v0-2015`, what Kubo 0.42 does when nothing is configured: CIDv0, dag-pb leaves, 256 KiB chunks,
    /// 174 links, HAMT above 256 KiB of names and CIDs.
    pub fn unixfs_v0_2015() -> Self {
        Profile {
            cid_version: CidVersion::V0,
            raw_leaves: None,
            chunk_size: 256 * 1024,
            max_links: 174,
            hamt_threshold: 256 * 1024,
            estimation: Estimation::Links,
            hamt_fanout: 256,
            preserve_mode: false,
            preserve_mtime: false,
        }
    }

    /// A profile by the name that Kubo gives it.
    pub fn from_name(name: &str) -> Result<Self, ProfileError> {
        match name {
            "unixfs-v1-2025" => Ok(Self::unixfs_v1_2025()),
            "unixfs-v0-2015" | "legacy-cid-v0" => Ok(Self::unixfs_v0_2015()),
            other => Err(ProfileError::UnknownName(other.to_owned())),
        }
    }

    /// Sets the CID version. Raw leaves follow it unless they were chosen (`ipfs add --cid-version=1` means raw leaves).
    pub fn cid_version(mut self, version: CidVersion) -> Self {
        self.cid_version = version;
        self
    }

    /// Leaves as raw blocks (CIDv1 always) or as dag-pb files.
    pub fn raw_leaves(mut self, raw: bool) -> Self {
        self.raw_leaves = Some(raw);
        self
    }

    /// Chunk size in bytes: 1 to [`MAX_CHUNK_BYTES`].
    pub fn chunk_size(mut self, bytes: usize) -> Result<Self, ProfileError> {
        if bytes == 0 || bytes > MAX_CHUNK_BYTES {
            return Err(ProfileError::ChunkSize {
                bytes: bytes as u64,
            });
        }
        self.chunk_size = bytes;
        Ok(self)
    }

    /// Chunker as Kubo writes it: `size-N`, or `default` for what the profile has. Content-defined chunkers
    /// (`rabin`, `buzhash`) are refused by name: their DAGs are read, not written.
    pub fn chunker(self, text: &str) -> Result<Self, ProfileError> {
        if text.is_empty() || text == "default" {
            return Ok(self);
        }
        let refused = || ProfileError::Chunker(text.to_owned());
        let digits = text.strip_prefix("size-").ok_or_else(refused)?;
        let bytes = digits.parse::<u64>().map_err(|_| refused())?;
        self.chunk_size(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Most links of a file node: 2 to [`MAX_FILE_LINKS`].
    pub fn max_links(mut self, links: usize) -> Result<Self, ProfileError> {
        if !(2..=MAX_FILE_LINKS).contains(&links) {
            return Err(ProfileError::MaxLinks { links });
        }
        self.max_links = links;
        Ok(self)
    }

    /// A directory larger than this many bytes becomes a HAMT; one of exactly this size stays basic. 0: never.
    pub fn hamt_threshold(mut self, bytes: u64, estimation: Estimation) -> Self {
        self.hamt_threshold = bytes;
        self.estimation = estimation;
        self
    }

    /// Width of a HAMT: a power of two, 8 to [`MAX_FANOUT`].
    pub fn hamt_fanout(mut self, fanout: u32) -> Result<Self, ProfileError> {
        if !(8..=MAX_FANOUT).contains(&fanout) || !fanout.is_power_of_two() {
            return Err(ProfileError::Fanout { fanout });
        }
        self.hamt_fanout = fanout;
        Ok(self)
    }

    /// Stores permission bits. Turns raw leaves off, as Kubo does: a raw block has no place for them.
    pub fn preserve_mode(mut self, preserve: bool) -> Self {
        self.preserve_mode = preserve;
        self
    }

    /// Stores modification times. Turns raw leaves off, as Kubo does.
    pub fn preserve_mtime(mut self, preserve: bool) -> Self {
        self.preserve_mtime = preserve;
        self
    }

    /// Chunk size in bytes.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_size
    }

    /// Whether permission bits are stored.
    pub fn preserves_mode(&self) -> bool {
        self.preserve_mode
    }

    /// Whether modification times are stored.
    pub fn preserves_mtime(&self) -> bool {
        self.preserve_mtime
    }

    pub(crate) fn links_per_node(&self) -> usize {
        self.max_links
    }

    pub(crate) fn threshold(&self) -> (u64, Estimation) {
        (self.hamt_threshold, self.estimation)
    }

    pub(crate) fn fanout(&self) -> u32 {
        self.hamt_fanout
    }

    /// Whether leaves are raw blocks, all settings considered.
    pub fn leaves_are_raw(&self) -> bool {
        let preserved = self.preserve_mode || self.preserve_mtime;
        !preserved
            && self
                .raw_leaves
                .unwrap_or(self.cid_version == CidVersion::V1)
    }

    /// Hashes a dag-pb node under this profile's CID version.
    pub(crate) fn node(&self, bytes: Vec<u8>) -> Result<Block, BlockError> {
        match self.cid_version {
            CidVersion::V0 => Block::v0(bytes),
            CidVersion::V1 => Block::encode(DAG_PB, MhCode::Sha2_256, bytes),
        }
    }

    /// Hashes a leaf: raw as it is, or already framed as dag-pb.
    pub(crate) fn leaf(&self, bytes: bytes::Bytes) -> Result<Block, BlockError> {
        if self.leaves_are_raw() {
            return Block::encode(RAW, MhCode::Sha2_256, bytes);
        }
        match self.cid_version {
            CidVersion::V0 => Block::v0(bytes),
            CidVersion::V1 => Block::encode(DAG_PB, MhCode::Sha2_256, bytes),
        }
    }
}

/// What is stored beside the content of a file, directory or symlink, if the profile preserves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with set-uid, set-gid and sticky: the low 12 bits are kept, 0 is not written.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<crate::dagpb::Mtime>,
}

impl Meta {
    /// What of this the profile stores.
    pub(crate) fn kept(&self, profile: &Profile) -> Meta {
        Meta {
            mode: self
                .mode
                .map(|mode| mode & 0xfff)
                .filter(|mode| profile.preserve_mode && *mode != 0),
            mtime: self.mtime.filter(|_| profile.preserve_mtime),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.mode.is_none() && self.mtime.is_none()
    }
}
