//! Walking over the frames of a file, past damage, without reading payloads.

use std::io;
use std::sync::Arc;

use crate::disk::{DiskFile, read_exact_at};
use crate::frame::{FRAME_HEADER, FRAME_MAGIC, FrameHeader, Identity, Kind, MAX_TAG};

/// Bytes read at a time; what a walk keeps in memory.
const WINDOW: usize = 256 << 10;
/// Bytes read where a large payload was passed over: the next frame's header, and perhaps a few small frames.
const GLANCE: usize = 4 << 10;
/// A payload that reaches further beyond the window than this is passed over: one more read costs less than what it spares.
const LARGE: u64 = 64 << 10;

/// A frame as a walk or a footer names it: all but its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offset of the frame in its file.
    pub at: u64,
    /// What the frame is.
    pub kind: Kind,
    /// The frame's tag.
    pub tag: Vec<u8>,
    /// Bytes of the payload.
    pub len: u32,
}

impl Entry {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        crate::frame::frame_len(self.tag.len(), self.len as usize)
    }

    /// Offset behind the frame.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at + self.frame_len()
    }
}

/// A stretch of bytes in which no frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where it begins.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// One step of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A frame whose header and tag are whole. Its payload was not looked at.
    Frame(Entry, FrameHeader),
    /// Bytes that are no frame.
    Gap(Gap),
}

/// An iterator over the frames between two offsets. Everything it allocates is bounded by its window.
#[derive(Debug)]
pub struct Walk {
    file: Arc<dyn DiskFile>,
    identity: Identity,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    found: Option<(Entry, FrameHeader)>,
}

impl Walk {
    /// Walks from the frame at `from` to the offset `end`, which is no more than the file's length.
    #[must_use]
    pub fn new(file: Arc<dyn DiskFile>, identity: Identity, from: u64, end: u64) -> Self {
        Self {
            file,
            identity,
            at: from,
            end,
            window: Vec::new(),
            window_at: 0,
            found: None,
        }
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// What the disk answers to a read; the walk may be asked again.
    pub fn next_step(&mut self) -> io::Result<Option<Step>> {
        if let Some((entry, header)) = self.found.take() {
            self.at = entry.end();
            return Ok(Some(Step::Frame(entry, header)));
        }
        if self.at >= self.end {
            return Ok(None);
        }
        let gap_at = self.at;
        let mut probe = self.at;
        while probe < self.end {
            self.load(probe)?;
            let from = (probe - self.window_at) as usize;
            let Some(skip) = find_magic(&self.window[from..]) else {
                // The magic may lie across the window's end.
                let next = self.window_at + self.window.len() as u64;
                probe = if next >= self.end { self.end } else { next - 3 };
                continue;
            };
            probe += skip as u64;
            if let Some(found) = self.frame_at(probe)? {
                if probe == gap_at {
                    self.at = found.0.end();
                    return Ok(Some(Step::Frame(found.0, found.1)));
                }
                self.found = Some(found);
                break;
            }
            probe += 1;
        }
        let probe = probe.min(self.end);
        self.at = probe;
        Ok(Some(Step::Gap(Gap {
            at: gap_at,
            len: probe - gap_at,
        })))
    }

    /// The frame at `at`, if its header is whole and all of it lies before the end.
    fn frame_at(&mut self, at: u64) -> io::Result<Option<(Entry, FrameHeader)>> {
        self.load(at)?;
        let bytes = &self.window[(at - self.window_at) as usize..];
        let Some((header, tag)) = FrameHeader::decode(&self.identity, at, bytes) else {
            return Ok(None);
        };
        let entry = Entry {
            at,
            kind: header.kind,
            tag: tag.to_vec(),
            len: header.len,
        };
        Ok((entry.end() <= self.end).then_some((entry, header)))
    }

    /// Makes the window hold all that a header with tag at `at` may need, as far as the file goes.
    fn load(&mut self, at: u64) -> io::Result<()> {
        let want = ((FRAME_HEADER + MAX_TAG) as u64).min(self.end - at);
        let have = self.window_at + self.window.len() as u64;
        if at >= self.window_at && at + want <= have {
            return Ok(());
        }
        let window = if at >= have + LARGE { GLANCE } else { WINDOW };
        let len = (window as u64).min(self.end - at) as usize;
        self.window.resize(len, 0);
        self.window_at = at;
        let read = read_exact_at(self.file.as_ref(), &mut self.window, at);
        if read.is_err() {
            self.window.clear();
        }
        read
    }
}

/// Where the first magic begins in `bytes`.
fn find_magic(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let skip = bytes[from..].iter().position(|b| *b == FRAME_MAGIC[0])?;
        from += skip;
        if bytes[from..].starts_with(&FRAME_MAGIC) {
            return Some(from);
        }
        from += 1;
    }
}
