//! dag-pb: the codec of directories and of the inner nodes of files (specs/unixfs.md §1).
//!
//! Decoding is a view: a [`Node`] keeps the block's bytes and the offsets of its links, so that a hostile block costs
//! less memory than it has bytes, and re-encoding is byte-exact because nothing is re-encoded. What is accepted is
//! exactly what go-codec-dagpb accepts: Data and Links in either order, but each section once; Hash, Name, Tsize in
//! that order, each once; no unknown field.

mod data;
mod wire;

use std::ops::Range;

use bytes::Bytes;
use cid::Cid;
use gemba_block::MAX_BLOCK_BYTES;

pub use data::{FsData, Kind, Mtime};
use wire::Cursor;

/// A decoded dag-pb block. Every link in it is known to parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    bytes: Bytes,
    links: Vec<(u32, u32)>,
    data: Option<Range<usize>>,
}

impl Node {
    /// Decodes a dag-pb block of at most 2 MiB.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        if bytes.len() > MAX_BLOCK_BYTES {
            return Err(WireError::TooLarge { bytes: bytes.len() });
        }
        let mut cursor = Cursor::new(&bytes);
        let mut links = Vec::new();
        let mut data = None;
        // go-codec-dagpb: the links are one section; Data between two links makes the second a duplicate section.
        let mut links_closed = false;
        while !cursor.is_empty() {
            let (number, wire_type) = cursor.tag()?;
            if wire_type != wire::BYTES {
                return Err(WireError::WireType(wire_type));
            }
            match number {
                1 => {
                    if data.is_some() {
                        return Err(WireError::Duplicate("Data"));
                    }
                    let (start, end) = cursor.bytes_range()?;
                    data = Some(start..end);
                    links_closed = !links.is_empty();
                }
                2 => {
                    if links_closed {
                        return Err(WireError::Duplicate("Links"));
                    }
                    let (start, end) = cursor.bytes_range()?;
                    parse_link(&bytes, start, end)?;
                    // Offsets fit: the block is at most 2 MiB.
                    links.push((start as u32, end as u32));
                }
                other => return Err(WireError::UnknownField(other)),
            }
        }
        Ok(Node { bytes, links, data })
    }

    /// The number of links.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there is no link.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The link at `index`, in the order of the wire.
    pub fn link(&self, index: usize) -> Option<Link<'_>> {
        let (start, end) = *self.links.get(index)?;
        Some(parse_link(&self.bytes, start as usize, end as usize).expect("parsed once in decode"))
    }

    /// All links, in the order of the wire.
    pub fn links(&self) -> impl ExactSizeIterator<Item = Link<'_>> + Clone {
        (0..self.len()).map(|index| self.link(index).expect("index below len"))
    }

    /// The Data field: for UnixFS an encoded [`FsData`].
    pub fn data(&self) -> Option<Bytes> {
        self.data.clone().map(|range| self.bytes.slice(range))
    }

    /// The name of link `index` as a slice that keeps the block alive.
    pub fn name(&self, index: usize) -> Option<Bytes> {
        self.link(index).map(|link| match link.name {
            Some(name) => self.bytes.slice_ref(name),
            None => Bytes::new(),
        })
    }

    /// The block's bytes, unchanged.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// One link of a [`Node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link<'a> {
    /// What it points to.
    pub cid: Cid,
    /// Its name; dag-pb says UTF-8, the network carries any bytes. `None` if the field is absent.
    pub name: Option<&'a [u8]>,
    /// Claimed size of the child block and everything below it, in bytes. Never trusted for arithmetic.
    pub tsize: Option<u64>,
}

impl<'a> Link<'a> {
    /// A link as Kubo writes it: all three fields present.
    pub fn new(cid: Cid, name: &'a [u8], tsize: u64) -> Self {
        Link {
            cid,
            name: Some(name),
            tsize: Some(tsize),
        }
    }

    /// The name, an absent one being empty.
    pub fn name(&self) -> &'a [u8] {
        self.name.unwrap_or_default()
    }
}

/// Encodes a node: links first, in the given order, then Data (specs/unixfs.md U-PB-1).
pub fn encode<'a>(links: impl Iterator<Item = Link<'a>> + Clone, data: Option<&[u8]>) -> Vec<u8> {
    let size: usize = links.clone().map(|link| encoded_link_len(&link)).sum();
    let data_len = data.map_or(0, encoded_data_len);
    let mut out = Vec::with_capacity(size + data_len);
    for link in links {
        put_link(&mut out, &link);
    }
    if let Some(data) = data {
        wire::put_bytes_field(&mut out, 1, data);
    }
    out
}

/// The bytes that `link` adds to an encoded node.
pub fn encoded_link_len(link: &Link<'_>) -> usize {
    let inner = link_inner_len(link);
    1 + wire::varint_len(inner as u64) + inner
}

/// The bytes that a Data field of this content adds to an encoded node.
pub fn encoded_data_len(data: &[u8]) -> usize {
    1 + wire::varint_len(data.len() as u64) + data.len()
}

/// Writes the dag-pb header of a leaf in front of `payload` bytes of content, and its trailer behind.
///
/// A leaf without raw leaves is Data{File, content, filesize}; the content is framed where it lies, without a copy.
pub(crate) fn leaf_frame(payload: usize) -> (Vec<u8>, Vec<u8>) {
    let mut trailer = Vec::with_capacity(12);
    wire::put_varint_field(&mut trailer, 3, payload as u64);
    let mut inner = vec![0x08, Kind::File as u8];
    if payload > 0 {
        wire::put_tag(&mut inner, 2, wire::BYTES);
        wire::put_varint(&mut inner, payload as u64);
    }
    let mut header = Vec::with_capacity(inner.len() + 6);
    wire::put_tag(&mut header, 1, wire::BYTES);
    wire::put_varint(&mut header, (inner.len() + payload + trailer.len()) as u64);
    header.extend_from_slice(&inner);
    (header, trailer)
}

fn link_inner_len(link: &Link<'_>) -> usize {
    let cid = link.cid.encoded_len();
    let mut inner = 1 + wire::varint_len(cid as u64) + cid;
    if let Some(name) = link.name {
        inner += 1 + wire::varint_len(name.len() as u64) + name.len();
    }
    if let Some(tsize) = link.tsize {
        inner += 1 + wire::varint_len(tsize);
    }
    inner
}

fn put_link(out: &mut Vec<u8>, link: &Link<'_>) {
    wire::put_tag(out, 2, wire::BYTES);
    wire::put_varint(out, link_inner_len(link) as u64);
    wire::put_tag(out, 1, wire::BYTES);
    wire::put_varint(out, link.cid.encoded_len() as u64);
    link.cid
        .write_bytes(&mut *out)
        .expect("writing to a Vec cannot fail");
    if let Some(name) = link.name {
        wire::put_bytes_field(out, 2, name);
    }
    if let Some(tsize) = link.tsize {
        wire::put_varint_field(out, 3, tsize);
    }
}

fn parse_link(bytes: &[u8], start: usize, end: usize) -> Result<Link<'_>, WireError> {
    let mut cursor = Cursor::within(bytes, start, end);
    let mut cid = None;
    let mut name = None;
    let mut tsize = None;
    while !cursor.is_empty() {
        let (number, wire_type) = cursor.tag()?;
        // go-codec-dagpb, unmarshalLink: each field once, in the order Hash, Name, Tsize.
        match (number, wire_type) {
            (1, wire::BYTES) => {
                if cid.is_some() {
                    return Err(WireError::Duplicate("Hash"));
                }
                if name.is_some() || tsize.is_some() {
                    return Err(WireError::Order);
                }
                let (start, end) = cursor.bytes_range()?;
                cid = Some(parse_cid(&bytes[start..end])?);
            }
            (2, wire::BYTES) => {
                if name.is_some() {
                    return Err(WireError::Duplicate("Name"));
                }
                if tsize.is_some() {
                    return Err(WireError::Order);
                }
                let (start, end) = cursor.bytes_range()?;
                name = Some(&bytes[start..end]);
            }
            (3, wire::VARINT) => {
                if tsize.is_some() {
                    return Err(WireError::Duplicate("Tsize"));
                }
                tsize = Some(cursor.varint()?);
            }
            (1..=3, other) => return Err(WireError::WireType(other)),
            (other, _) => return Err(WireError::UnknownField(other)),
        }
    }
    let cid = cid.ok_or(WireError::Missing("Hash"))?;
    Ok(Link { cid, name, tsize })
}

/// Reads the CID at the start of `bytes`. Bytes behind it are ignored, as go-codec-dagpb ignores them.
fn parse_cid(mut bytes: &[u8]) -> Result<Cid, WireError> {
    Cid::read_bytes(&mut bytes).map_err(|error| WireError::Cid(error.to_string()))
}

/// Why bytes are not a dag-pb node or not a UnixFS message. Always the fault of who made the block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The block is larger than any block may be (2 MiB).
    #[error("a dag-pb block of {bytes} bytes is larger than 2 MiB")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A field reaches beyond the end of the message.
    #[error("the message ends inside a field")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("a varint has more than 64 bits")]
    VarintOverflow,
    /// A field number of 0 or above 2^29-1.
    #[error("a field number is out of range")]
    FieldNumber,
    /// A field whose wire type does not fit it.
    #[error("wire type {0} does not fit the field")]
    WireType(u8),
    /// dag-pb nodes and links carry no other fields than the specified ones.
    #[error("field {0} is not part of dag-pb")]
    UnknownField(u32),
    /// A section that may occur once occurs again.
    #[error("{0} occurs twice")]
    Duplicate(&'static str),
    /// The fields of a link are not in the order Hash, Name, Tsize.
    #[error("the fields of a link are not in the order Hash, Name, Tsize")]
    Order,
    /// A required field is absent.
    #[error("{0} is absent")]
    Missing(&'static str),
    /// The Hash of a link is not a CID.
    #[error("the hash of a link is not a CID: {0}")]
    Cid(String),
}
