//! The bytes of a segment: file header and frames (specs/segment.md §3, §4). Pure: no file is touched here.

/// Bytes of the header that opens a file.
pub const FILE_HEADER: usize = 32;
/// Bytes of a frame's header without its tag.
pub const FRAME_HEADER: usize = 28;
/// Longest payload that is written or believed, in bytes: what bounds an allocation for a damaged length.
pub const MAX_PAYLOAD: usize = 16 << 20;
/// Longest tag, in bytes.
pub const MAX_TAG: usize = 255;
/// Version of the format that is written (specs/segment.md §3).
pub const FORMAT: u16 = 1;

/// First bytes of a file.
const FILE_MAGIC: [u8; 8] = *b"gembaseg";
/// First bytes of a frame. Not ASCII, and no prefix of itself, so that a search for it never has to step back.
pub(crate) const FRAME_MAGIC: [u8; 4] = [0xf7, b'g', b'm', b'f'];

/// What a frame is. 0 to 15 are kept for this crate, the rest is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u8);

impl Kind {
    /// In a footer only: a stretch of damaged bytes.
    pub const HOLE: Self = Self(0);
    /// A part of the footer index of a sealed file.
    pub const INDEX: Self = Self(1);
    /// The last frame of a sealed file: where its footer index begins.
    pub const SEAL: Self = Self(2);
    /// The writer was closed in order: everything before is durable.
    pub const CLOSE: Self = Self(3);
    /// In a footer only: a stretch of the last group before an unclean stop, unfinished or damaged.
    pub const DOUBT: Self = Self(4);
    /// The first kind that callers may use.
    pub const FIRST_FREE: Self = Self(16);

    /// Whether the kind belongs to this crate.
    #[must_use]
    pub fn is_internal(self) -> bool {
        self < Self::FIRST_FREE
    }
}

/// Which file a file is. Frames are checked against it, so that bytes of another file (an old one whose sectors were used
/// again, a misdirected write, a frame inside somebody's payload) are never taken for frames of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What the file holds, as four letters.
    pub purpose: [u8; 4],
    /// The file's number among its kind.
    pub number: u32,
    /// A value that whoever supplies payloads cannot know.
    pub salt: u64,
}

/// Why the header of a file was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The bytes are not a header, or are damaged.
    #[error("the file header is damaged")]
    Damaged,
    /// Written by a newer version.
    #[error("the file has format {0}, newer than format {FORMAT}, the newest known")]
    Newer(u16),
    /// A header of another file.
    #[error("the file header belongs to another file (number {0})")]
    Foreign(u32),
}

impl Identity {
    /// The header of a new file.
    #[must_use]
    pub fn header(&self) -> [u8; FILE_HEADER] {
        let mut out = [0; FILE_HEADER];
        out[..8].copy_from_slice(&FILE_MAGIC);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&self.purpose);
        out[16..24].copy_from_slice(&self.salt.to_le_bytes());
        out[24..28].copy_from_slice(&self.number.to_le_bytes());
        let crc = crc32c::crc32c(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Checks that `bytes` are the header of this very file.
    ///
    /// # Errors
    /// See [`HeaderFault`].
    pub fn check(&self, bytes: &[u8; FILE_HEADER]) -> Result<(), HeaderFault> {
        if bytes[..8] != FILE_MAGIC || u32_at(bytes, 28) != crc32c::crc32c(&bytes[..28]) {
            return Err(HeaderFault::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > FORMAT {
            return Err(HeaderFault::Newer(version));
        }
        if *bytes != self.header() {
            return Err(HeaderFault::Foreign(u32_at(bytes, 24)));
        }
        Ok(())
    }

    /// CRC of a frame's header: over salt, own offset, the first 24 bytes and the tag.
    fn frame_crc(&self, at: u64, fixed: &[u8], tag: &[u8]) -> u32 {
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&self.salt.to_le_bytes());
        seed[8..].copy_from_slice(&at.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&seed), fixed);
        crc32c::crc32c_append(crc, tag)
    }
}

/// The checked header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: Kind,
    /// Bytes of the tag, which follows the header.
    pub tag_len: u8,
    /// Bytes of the payload, which follows the tag.
    pub len: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// Everything before this offset was durable when the frame was written.
    pub durable: u64,
}

impl FrameHeader {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        frame_len(self.tag_len as usize, self.len as usize)
    }

    /// The header's bytes for a frame at offset `at` of the file `identity`.
    #[must_use]
    pub fn encode(&self, identity: &Identity, at: u64, tag: &[u8]) -> [u8; FRAME_HEADER] {
        debug_assert_eq!(tag.len(), self.tag_len as usize);
        let mut out = [0; FRAME_HEADER];
        out[..4].copy_from_slice(&FRAME_MAGIC);
        out[4] = self.kind.0;
        out[5] = self.tag_len;
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.durable.to_le_bytes());
        let crc = identity.frame_crc(at, &out[..24], tag);
        out[24..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads header and tag from `bytes`, which stand at offset `at` of the file `identity`.
    ///
    /// `None` if they are not a frame's beginning, are damaged, or `bytes` end before the tag does: [`Self::wanted`] tells
    /// the last case apart.
    #[must_use]
    pub fn decode<'a>(identity: &Identity, at: u64, bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let fixed = bytes.get(..FRAME_HEADER)?;
        if fixed[..4] != FRAME_MAGIC {
            return None;
        }
        let tag = bytes.get(FRAME_HEADER..FRAME_HEADER + fixed[5] as usize)?;
        if u32_at(fixed, 24) != identity.frame_crc(at, &fixed[..24], tag) {
            return None;
        }
        let header = Self {
            kind: Kind(fixed[4]),
            tag_len: fixed[5],
            len: u32_at(fixed, 8),
            payload_crc: u32_at(fixed, 12),
            durable: u64_at(fixed, 16),
        };
        // A right checksum over an impossible frame can only come from a hostile file: not believed either.
        let possible =
            header.len as usize <= MAX_PAYLOAD && header.durable <= at && fixed[6..8] == [0, 0];
        possible.then_some((header, tag))
    }

    /// Bytes that [`Self::decode`] needs for the frame that seems to begin at `bytes`.
    #[must_use]
    pub fn wanted(bytes: &[u8]) -> usize {
        FRAME_HEADER + bytes.get(5).map_or(0, |len| *len as usize)
    }
}

/// Bytes of a frame with such a tag and payload.
#[must_use]
pub fn frame_len(tag: usize, payload: usize) -> u64 {
    (FRAME_HEADER + tag + payload) as u64
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}
