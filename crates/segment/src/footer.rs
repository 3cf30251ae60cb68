//! The footer of a sealed file: an index of its frames, so that opening reads no more than that (specs/segment.md §6).

use std::io;
use std::sync::Arc;

use crate::disk::{DiskFile, read_exact_at};
use crate::frame::{
    FILE_HEADER, FRAME_HEADER, FrameHeader, Identity, Kind, frame_len, u32_at, u64_at,
};
use crate::walk::Entry;

/// Payload bytes after which a part of the index is closed: what reading one part costs in memory.
pub(crate) const PART: usize = 256 << 10;
/// Bytes of the last frame's payload.
const SEAL_PAYLOAD: usize = 16;
/// Bytes of an entry without its tag.
const ENTRY: usize = 14;

/// Collects entries into the payloads of a footer.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    part: Vec<u8>,
    entries: u64,
}

/// A footer that grows with the frames of a file, so that sealing need not walk them again.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    full: Vec<Vec<u8>>,
    builder: FooterBuilder,
}

impl Remembered {
    /// Adds the frame at `at` that has `len` bytes of payload.
    pub(crate) fn push(&mut self, at: u64, len: u32, kind: Kind, tag: &[u8]) {
        self.full.extend(self.builder.push(at, len, kind, tag));
    }

    /// The parts that are full, and the rest.
    pub(crate) fn into_parts(self) -> (Vec<Vec<u8>>, FooterBuilder) {
        (self.full, self.builder)
    }
}

impl FooterBuilder {
    /// Adds an entry; gives a payload whenever a part is full.
    pub(crate) fn push(&mut self, at: u64, len: u32, kind: Kind, tag: &[u8]) -> Option<Vec<u8>> {
        self.part.extend_from_slice(&at.to_le_bytes());
        self.part.extend_from_slice(&len.to_le_bytes());
        self.part.push(kind.0);
        // A frame's tag was written with a length of one byte.
        self.part.push(tag.len() as u8);
        self.part.extend_from_slice(tag);
        self.entries += 1;
        (self.part.len() >= PART).then(|| std::mem::take(&mut self.part))
    }

    /// The last part, if it is not empty, and the payload of the seal.
    pub(crate) fn finish(self, index_at: u64) -> (Option<Vec<u8>>, Vec<u8>) {
        let mut seal = Vec::with_capacity(SEAL_PAYLOAD);
        seal.extend_from_slice(&index_at.to_le_bytes());
        seal.extend_from_slice(&self.entries.to_le_bytes());
        let part = (!self.part.is_empty()).then_some(self.part);
        (part, seal)
    }
}

/// The footer of a sealed file, checked as a whole when it is opened.
#[derive(Clone, Debug)]
pub struct Footer {
    file: Arc<dyn DiskFile>,
    identity: Identity,
    index_at: u64,
    seal_at: u64,
    entries: u64,
}

impl Footer {
    /// Reads and checks the footer of a file of `len` bytes. `None` if it has none, or a damaged one: then it is walked.
    ///
    /// # Errors
    /// What the disk answers to a read.
    pub fn open(
        file: &Arc<dyn DiskFile>,
        identity: &Identity,
        len: u64,
    ) -> io::Result<Option<Self>> {
        let Some(seal_at) = len
            .checked_sub(frame_len(0, SEAL_PAYLOAD))
            .filter(|at| *at >= FILE_HEADER as u64)
        else {
            return Ok(None);
        };
        let Some((header, payload)) = read_frame(file.as_ref(), identity, seal_at, len)? else {
            return Ok(None);
        };
        if header.kind != Kind::SEAL || payload.len() != SEAL_PAYLOAD {
            return Ok(None);
        }
        let footer = Self {
            file: Arc::clone(file),
            identity: *identity,
            index_at: u64_at(&payload, 0),
            seal_at,
            entries: u64_at(&payload, 8),
        };
        let mut seen = 0;
        let whole = footer.parts(&mut |_| seen += 1)?;
        Ok((whole && seen == footer.entries).then_some(footer))
    }

    /// Offset behind the last frame that is not the footer's.
    #[must_use]
    pub fn index_at(&self) -> u64 {
        self.index_at
    }

    /// Length of the file.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.seal_at + frame_len(0, SEAL_PAYLOAD)
    }

    /// How many entries there are.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Shows every entry, in the order of the file.
    ///
    /// # Errors
    /// What the disk answers to a read; [`io::ErrorKind::InvalidData`] if the footer was damaged since it was opened.
    pub fn for_each(&self, visit: &mut dyn FnMut(Entry)) -> io::Result<()> {
        if self.parts(visit)? {
            Ok(())
        } else {
            Err(damaged_since())
        }
    }

    /// Where [`Self::page`] begins.
    #[must_use]
    pub fn first_page(&self) -> FooterPage {
        FooterPage {
            at: self.index_at,
            last_end: FILE_HEADER as u64,
        }
    }

    /// The entries of one part, in the order of the file, and where the next part begins; `None` behind the last one. What
    /// it takes in memory is one part, about 256 KiB.
    ///
    /// # Errors
    /// As [`Self::for_each`].
    pub fn page(&self, page: FooterPage) -> io::Result<Option<(Vec<Entry>, FooterPage)>> {
        if page.at >= self.seal_at {
            return Ok(None);
        }
        let mut shown = Vec::new();
        let mut last_end = page.last_end;
        let next = self.part(page.at, &mut last_end, &mut |entry| shown.push(entry))?;
        match next {
            Some(at) => Ok(Some((shown, FooterPage { at, last_end }))),
            None => Err(damaged_since()),
        }
    }

    /// Whether all parts are whole.
    fn parts(&self, visit: &mut dyn FnMut(Entry)) -> io::Result<bool> {
        let mut at = self.index_at;
        // The last frame that an entry named: entries stand in order and do not overlap.
        let mut last_end = FILE_HEADER as u64;
        if at < last_end {
            return Ok(false);
        }
        while at < self.seal_at {
            match self.part(at, &mut last_end, visit)? {
                Some(next) => at = next,
                None => return Ok(false),
            }
        }
        Ok(at == self.seal_at)
    }

    /// Shows the entries of the part at `at` and gives the offset behind it; `None` if it is not whole.
    fn part(
        &self,
        at: u64,
        last_end: &mut u64,
        visit: &mut dyn FnMut(Entry),
    ) -> io::Result<Option<u64>> {
        let frame = read_frame(self.file.as_ref(), &self.identity, at, self.seal_at)?;
        let Some((header, payload)) = frame else {
            return Ok(None);
        };
        let whole = header.kind == Kind::INDEX && entries(&payload, self.index_at, last_end, visit);
        Ok(whole.then(|| at + header.frame_len()))
    }
}

/// Where a part of a footer begins, for [`Footer::page`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterPage {
    at: u64,
    /// The last frame that an entry named: entries stand in order and do not overlap.
    last_end: u64,
}

fn damaged_since() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the footer index was damaged after it was opened",
    )
}

/// Shows the entries of one part; `false` if they are not well formed or name bytes outside of the file's frames.
fn entries(
    mut payload: &[u8],
    index_at: u64,
    last_end: &mut u64,
    visit: &mut dyn FnMut(Entry),
) -> bool {
    while !payload.is_empty() {
        if payload.len() < ENTRY {
            return false;
        }
        let tag_end = ENTRY + payload[13] as usize;
        let Some(tag) = payload.get(ENTRY..tag_end) else {
            return false;
        };
        let entry = Entry {
            at: u64_at(payload, 0),
            len: u32_at(payload, 8),
            kind: Kind(payload[12]),
            tag: tag.to_vec(),
        };
        if entry.at < *last_end || entry.at >= index_at {
            return false;
        }
        if entry.kind != Kind::HOLE && entry.kind != Kind::DOUBT {
            if entry.end() > index_at {
                return false;
            }
            *last_end = entry.end();
        }
        visit(entry);
        payload = &payload[tag_end..];
    }
    true
}

/// A whole frame that ends at or before `end`, with its payload checked; `None` if there is none at `at`.
fn read_frame(
    file: &dyn DiskFile,
    identity: &Identity,
    at: u64,
    end: u64,
) -> io::Result<Option<(FrameHeader, Vec<u8>)>> {
    if end.saturating_sub(at) < FRAME_HEADER as u64 {
        return Ok(None);
    }
    let mut head = [0; FRAME_HEADER];
    read_exact_at(file, &mut head, at)?;
    // Frames of a footer have no tag.
    let Some((header, _)) = FrameHeader::decode(identity, at, &head) else {
        return Ok(None);
    };
    if header.frame_len() > end - at {
        return Ok(None);
    }
    let mut payload = vec![0; header.len as usize];
    read_exact_at(file, &mut payload, at + FRAME_HEADER as u64)?;
    let whole = crc32c::crc32c(&payload) == header.payload_crc;
    Ok(whole.then_some((header, payload)))
}
