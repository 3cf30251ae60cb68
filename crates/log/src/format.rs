//! The bytes of a log's files beside the batches themselves (specs/log.md §6). Pure.

use std::path::{Path, PathBuf};

use gemba_segment::{Identity, Kind};

use crate::feed::{Author, Epoch, FeedId, FeedKey, Seq};
use crate::stream::StreamName;

/// Format of the files.
pub(crate) const FILES: u32 = 1;
/// A batch; its tag says what an index needs.
pub(crate) const BATCH: Kind = Kind(16);
/// The end of own feeds at that moment is in doubt: the next events go into new epochs.
pub(crate) const DOUBT: Kind = Kind(17);
/// A part of a full segment's index by feed and place.
pub(crate) const PAGE: Kind = Kind(18);
/// A part of a full segment's index by digest.
pub(crate) const NAMES: Kind = Kind(19);
/// Which feeds a full segment has, and where.
pub(crate) const SPANS: Kind = Kind(20);
/// All that must be known of what lies before.
pub(crate) const STATE: Kind = Kind(21);
/// Where the four others stand; the last frame of a full segment but for the mark of an orderly end.
pub(crate) const TRAILER: Kind = Kind(22);

/// The tag of a doubt: no epoch below this one begins.
pub(crate) fn put_doubt(least_epoch: u64) -> Vec<u8> {
    least_epoch.to_le_bytes().to_vec()
}

pub(crate) fn take_doubt(tag: &[u8]) -> u64 {
    tag.try_into().map_or(0, u64::from_le_bytes)
}

/// Bytes of a batch's tag.
pub(crate) const TAG: usize = 85;
/// Entries of one page of the index by place.
pub(crate) const PAGE_ENTRIES: usize = 512;
/// Bytes of each.
pub(crate) const PAGE_ENTRY: usize = 28;
/// Entries of one page of the index by digest.
pub(crate) const NAME_ENTRIES: usize = 1024;
/// Bytes of each.
pub(crate) const NAME_ENTRY: usize = 12;
/// Bytes of the trailer's payload.
pub(crate) const TRAILER_LEN: usize = 40;
/// Largest number of a segment.
pub(crate) const MAX_SEGMENT: u32 = u32::MAX - 1;

/// Names of the files below a log's folder.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    pub(crate) fn version(&self) -> PathBuf {
        self.dir.join("version")
    }

    pub(crate) fn version_temporary(&self) -> PathBuf {
        self.dir.join("version.tmp")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("log.lock")
    }

    pub(crate) fn reserve(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    pub(crate) fn doubt(&self) -> PathBuf {
        self.dir.join("doubt")
    }

    pub(crate) fn segment(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08}.seg"))
    }
}

/// The number of a segment's file name; a number has one name.
pub(crate) fn segment_number(name: &str) -> Option<u32> {
    let number: u32 = name.strip_suffix(".seg")?.parse().ok()?;
    (number > 0 && number <= MAX_SEGMENT && format!("{number:08}.seg") == name).then_some(number)
}

pub(crate) fn identity(salt: u64, number: u32) -> Identity {
    Identity {
        purpose: *b"GLOG",
        number,
        // Differs from file to file, so that a frame of one is none of another.
        salt: salt ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// The salt of the log whose segment begins with this header.
pub(crate) fn salt_of(header: &[u8; gemba_segment::FILE_HEADER], number: u32) -> Option<u64> {
    let mut salt = [0; 8];
    salt.copy_from_slice(&header[16..24]);
    let salt = identity(u64::from_le_bytes(salt), number).salt;
    identity(salt, number).check(header).is_ok().then_some(salt)
}

pub(crate) fn version_text(salt: u64) -> String {
    let body = format!("gemba-log {FILES}\nid {salt:016x}\n");
    let crc = crc32c::crc32c(body.as_bytes());
    format!("{body}crc {crc:08x}\n")
}

/// What a `version` file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Known(u64),
    Newer(u32),
}

pub(crate) fn parse_version(text: &str) -> Option<Version> {
    let first = text.lines().next()?;
    let format: u32 = first.strip_prefix("gemba-log ")?.parse().ok()?;
    if format > FILES {
        return Some(Version::Newer(format));
    }
    let salt = text.lines().nth(1)?.strip_prefix("id ")?;
    let salt = u64::from_str_radix(salt, 16).ok()?;
    (version_text(salt) == text).then_some(Version::Known(salt))
}

/// What the tag of a batch's frame says: all that an index and a start need, so that payloads stay unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) key: FeedKey,
    pub(crate) digest: [u8; 32],
    pub(crate) first: Seq,
    pub(crate) count: u32,
    pub(crate) number: u64,
    pub(crate) lamport: u64,
    /// Wall-clock time of the last event.
    pub(crate) time: i64,
    /// Some event has a producer, and the author is this log's.
    pub(crate) has_producers: bool,
}

impl Tag {
    pub(crate) fn end(&self) -> Seq {
        self.first + u64::from(self.count)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TAG);
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.digest);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.lamport.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.push(u8::from(self.has_producers));
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Take(bytes);
        let tag = Self {
            key: FeedKey(from.array()?),
            digest: from.array()?,
            first: from.u64()?,
            count: from.u32()?,
            number: from.u64()?,
            lamport: from.u64()?,
            time: from.u64()? as i64,
            has_producers: from.flag()?,
        };
        // A frame of ours is whole by its checksum; this is for a file that somebody made.
        let sound = from.0.is_empty() && tag.count > 0 && tag.first <= crate::feed::MAX_NUMBER;
        sound.then_some(tag)
    }
}

/// Where a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) first: Seq,
    pub(crate) count: u32,
    /// Offset in the segment, which has at most 1 GiB and one group.
    pub(crate) at: u32,
    /// Bytes of the batch.
    pub(crate) len: u32,
    /// Wall-clock time of its last event.
    pub(crate) time: i64,
}

impl Place {
    pub(crate) fn end(&self) -> Seq {
        self.first + u64::from(self.count)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
    }

    pub(crate) fn take(from: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            first: from.u64()?,
            count: from.u32()?,
            at: from.u32()?,
            len: from.u32()?,
            time: from.u64()? as i64,
        })
    }
}

/// What a segment has of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) key: FeedKey,
    pub(crate) first: Seq,
    pub(crate) end: Seq,
    /// Which entries of the index by place.
    pub(crate) from: u32,
    pub(crate) entries: u32,
    pub(crate) bytes: u64,
    /// The latest wall-clock time of any last event.
    pub(crate) time: i64,
}

impl Span {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.end.to_le_bytes());
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
    }

    pub(crate) fn take(from: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            key: FeedKey(from.array()?),
            first: from.u64()?,
            end: from.u64()?,
            from: from.u32()?,
            entries: from.u32()?,
            bytes: from.u64()?,
            time: from.u64()? as i64,
        })
    }
}

/// Where the index of a full segment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) pages_at: u64,
    pub(crate) names_at: u64,
    pub(crate) entries: u32,
    pub(crate) spans_len: u32,
    pub(crate) spans_at: u64,
    pub(crate) state_len: u32,
}

impl Trailer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER_LEN);
        out.extend_from_slice(&self.pages_at.to_le_bytes());
        out.extend_from_slice(&self.names_at.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&self.spans_len.to_le_bytes());
        out.extend_from_slice(&self.spans_at.to_le_bytes());
        out.extend_from_slice(&self.state_len.to_le_bytes());
        out.extend_from_slice(&FILES.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Take(bytes);
        let trailer = Self {
            pages_at: from.u64()?,
            names_at: from.u64()?,
            entries: from.u32()?,
            spans_len: from.u32()?,
            spans_at: from.u64()?,
            state_len: from.u32()?,
        };
        (from.u32()? == FILES && from.0.is_empty()).then_some(trailer)
    }

    /// Where the state stands: behind the spans.
    pub(crate) fn state_at(&self) -> u64 {
        self.spans_at + gemba_segment::frame_len(0, self.spans_len as usize)
    }
}

pub(crate) fn put_feed(id: &FeedId, out: &mut Vec<u8>) {
    out.extend_from_slice(&id.author.0);
    out.extend_from_slice(&id.epoch.0.to_le_bytes());
    put_text(id.stream.as_str(), out);
}

pub(crate) fn take_feed(from: &mut Take<'_>) -> Option<FeedId> {
    Some(FeedId {
        author: Author(from.array()?),
        epoch: Epoch(from.u64()?),
        stream: StreamName::new(from.text()?).ok()?,
    })
}

pub(crate) fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Takes values off the front of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn flag(&mut self) -> Option<bool> {
        match self.bytes(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    pub(crate) fn text(&mut self) -> Option<&'a str> {
        let len = u16::from_le_bytes(self.array()?);
        std::str::from_utf8(self.bytes(usize::from(len))?).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_put_is_taken() {
        let tag = Tag {
            key: FeedKey([1; 16]),
            digest: [2; 32],
            first: 3,
            count: 4,
            number: 5,
            lamport: 6,
            time: -7,
            has_producers: true,
        };
        assert_eq!(tag.encode().len(), TAG);
        assert_eq!(Tag::decode(&tag.encode()), Some(tag));
        assert_eq!(Tag::decode(&tag.encode()[..84]), None);
        let place = Place {
            first: 1,
            count: 2,
            at: 3,
            len: 4,
            time: -5,
        };
        let mut out = Vec::new();
        place.put(&mut out);
        assert_eq!(out.len(), PAGE_ENTRY);
        assert_eq!(Place::take(&mut Take(&out)), Some(place));
        let trailer = Trailer {
            pages_at: 1,
            names_at: 2,
            entries: 3,
            spans_len: 4,
            spans_at: 5,
            state_len: 6,
        };
        assert_eq!(trailer.encode().len(), TRAILER_LEN);
        assert_eq!(Trailer::decode(&trailer.encode()), Some(trailer));
    }

    #[test]
    fn version_files_and_names_have_one_form() {
        let text = version_text(0xfeed);
        assert_eq!(parse_version(&text), Some(Version::Known(0xfeed)));
        assert_eq!(parse_version("gemba-log 2\nx"), Some(Version::Newer(2)));
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let known = String::from_utf8(bytes)
                .ok()
                .and_then(|text| parse_version(&text));
            assert!(!matches!(known, Some(Version::Known(_))), "bit {bit}");
        }
        assert_eq!(segment_number("00000001.seg"), Some(1));
        for bad in ["1.seg", "00000000.seg", "+0000001.seg", "00000001.se", "x"] {
            assert_eq!(segment_number(bad), None, "{bad}");
        }
        let header = identity(77, 5).header();
        assert_eq!(salt_of(&header, 5), Some(77));
        assert_eq!(salt_of(&header, 6), None);
    }
}
