//! The UnixFS message inside the Data field of a dag-pb node (specs/unixfs.md §2).
//!
//! Reading is what Go's proto2 does: unknown fields and known numbers with another wire type are skipped, the last of
//! several values wins, `blocksizes` may be packed. Writing is what Kubo does: field order, `blocksizes` unpacked.

use bytes::Bytes;

use super::WireError;
use super::wire::{self, Cursor};

/// What a node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Content bytes; what trickle layouts use for leaves.
    Raw = 0,
    /// A directory whose links are its entries.
    Directory = 1,
    /// A file, or a part of one.
    File = 2,
    /// A wrapper with a MIME type around its only child; never written.
    Metadata = 3,
    /// A symbolic link; the Data field is its target.
    Symlink = 4,
    /// One shard of a directory that is a hash array mapped trie.
    HamtShard = 5,
}

impl Kind {
    fn from_wire(value: u64) -> Option<Kind> {
        Some(match value {
            0 => Kind::Raw,
            1 => Kind::Directory,
            2 => Kind::File,
            3 => Kind::Metadata,
            4 => Kind::Symlink,
            5 => Kind::HamtShard,
            _ => return None,
        })
    }
}

/// A modification time: seconds since 1970 and nanoseconds that always count forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// 0 to 999,999,999; 0 is not written.
    pub nanos: u32,
}

/// The UnixFS message of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsData {
    /// What the node stands for.
    pub kind: Kind,
    /// Content, symlink target or HAMT bitfield.
    pub data: Option<Bytes>,
    /// Content bytes of this node and everything below it. A claim.
    pub filesize: Option<u64>,
    /// Content bytes per child. A claim.
    pub blocksizes: Vec<u64>,
    /// Multihash code of a HAMT's hash.
    pub hash_type: Option<u64>,
    /// Width of a HAMT.
    pub fanout: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<Mtime>,
}

impl FsData {
    /// An otherwise empty message.
    pub fn new(kind: Kind) -> Self {
        FsData {
            kind,
            data: None,
            filesize: None,
            blocksizes: Vec::new(),
            hash_type: None,
            fanout: None,
            mode: None,
            mtime: None,
        }
    }

    /// Decodes the Data field of a node; `data` shares its memory.
    pub fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        let mut kind = None;
        let mut out = FsData::new(Kind::Raw);
        // Counted first, so that the list is allocated once and exactly.
        out.blocksizes.reserve_exact(count_blocksizes(bytes)?);
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            let (number, wire_type) = cursor.tag()?;
            match (number, wire_type) {
                (1, wire::VARINT) => {
                    // A closed enum: an unknown value counts as an unknown field.
                    if let Some(known) = Kind::from_wire(cursor.varint()?) {
                        kind = Some(known);
                    }
                }
                (2, wire::BYTES) => {
                    let (start, end) = cursor.bytes_range()?;
                    out.data = Some(bytes.slice(start..end));
                }
                (3, wire::VARINT) => out.filesize = Some(cursor.varint()?),
                (4, wire::VARINT) => out.blocksizes.push(cursor.varint()?),
                (4, wire::BYTES) => {
                    let (start, end) = cursor.bytes_range()?;
                    let mut packed = Cursor::within(bytes, start, end);
                    while !packed.is_empty() {
                        out.blocksizes.push(packed.varint()?);
                    }
                }
                (5, wire::VARINT) => out.hash_type = Some(cursor.varint()?),
                (6, wire::VARINT) => out.fanout = Some(cursor.varint()?),
                // uint32: protobuf keeps the low 32 bits.
                (7, wire::VARINT) => out.mode = Some(cursor.varint()? as u32),
                (8, wire::BYTES) => {
                    let (start, end) = cursor.bytes_range()?;
                    out.mtime = Some(decode_mtime(Cursor::within(bytes, start, end))?);
                }
                (_, other) => cursor.skip(other)?,
            }
        }
        out.kind = kind.ok_or(WireError::Missing("Type"))?;
        Ok(out)
    }

    /// The message as Kubo writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            32 + self.data.as_ref().map_or(0, Bytes::len) + self.blocksizes.len() * 4,
        );
        wire::put_varint_field(&mut out, 1, self.kind as u64);
        if let Some(data) = &self.data {
            wire::put_bytes_field(&mut out, 2, data);
        }
        if let Some(filesize) = self.filesize {
            wire::put_varint_field(&mut out, 3, filesize);
        }
        for size in &self.blocksizes {
            wire::put_varint_field(&mut out, 4, *size);
        }
        if let Some(hash_type) = self.hash_type {
            wire::put_varint_field(&mut out, 5, hash_type);
        }
        if let Some(fanout) = self.fanout {
            wire::put_varint_field(&mut out, 6, fanout);
        }
        if let Some(mode) = self.mode {
            wire::put_varint_field(&mut out, 7, u64::from(mode));
        }
        if let Some(mtime) = self.mtime {
            wire::put_bytes_field(&mut out, 8, &encode_mtime(mtime));
        }
        out
    }
}

fn count_blocksizes(bytes: &[u8]) -> Result<usize, WireError> {
    let mut count = 0;
    let mut cursor = Cursor::new(bytes);
    while !cursor.is_empty() {
        match cursor.tag()? {
            (4, wire::VARINT) => {
                cursor.varint()?;
                count += 1;
            }
            (4, wire::BYTES) => {
                let (start, end) = cursor.bytes_range()?;
                // Every varint ends in exactly one byte below 0x80.
                count += bytes[start..end]
                    .iter()
                    .filter(|byte| **byte < 0x80)
                    .count();
            }
            (_, other) => cursor.skip(other)?,
        }
    }
    Ok(count)
}

fn decode_mtime(mut cursor: Cursor<'_>) -> Result<Mtime, WireError> {
    let mut seconds = None;
    let mut nanos = 0;
    while !cursor.is_empty() {
        match cursor.tag()? {
            // int64: negative values are ten bytes of two's complement.
            (1, wire::VARINT) => seconds = Some(cursor.varint()? as i64),
            (2, wire::FIXED32) => nanos = cursor.fixed32()?,
            (_, other) => cursor.skip(other)?,
        }
    }
    let seconds = seconds.ok_or(WireError::Missing("mtime seconds"))?;
    Ok(Mtime { seconds, nanos })
}

fn encode_mtime(mtime: Mtime) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    wire::put_varint_field(&mut out, 1, mtime.seconds as u64);
    if mtime.nanos > 0 {
        wire::put_tag(&mut out, 2, wire::FIXED32);
        out.extend_from_slice(&mtime.nanos.to_le_bytes());
    }
    out
}
