//! Appending: one write for a group of frames, one flush after it, and an honest end after an error.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use crate::disk::{DiskFile, is_full, write_all_at};
use crate::footer::{FooterBuilder, Remembered};
use crate::frame::{FILE_HEADER, FrameHeader, Identity, Kind, MAX_PAYLOAD, MAX_TAG};
use crate::reader::Reader;
use crate::walk::Entry;

/// Payloads up to this size are copied next to their headers; larger ones are written from where they lie.
const COPY: usize = 4 << 10;

/// Capacity that a writer keeps between groups for headers, tags and small payloads. A fresh buffer for each group costs page faults:
/// a tenth of the time of a group of 64 blocks of 1 KiB.
const KEEP: usize = 128 << 10;

/// How far a file is extended ahead of small appends, in bytes. The space is not taken: only the length is set, so that
/// most flushes need not write the file's metadata (measured: 12 k to 19 k flushes of 200 bytes a second; nothing is gained
/// for groups of 64 KiB, so only groups below a sixteenth of this extend).
pub const EXTEND: u64 = 64 << 10;

/// A frame to be written. Making one computes the checksum of its payload: do it outside of locks.
#[derive(Clone, Debug)]
pub struct Frame<P> {
    kind: Kind,
    tag: Vec<u8>,
    payload: P,
    payload_crc: u32,
}

impl<P: AsRef<[u8]>> Frame<P> {
    /// A frame of the caller's own kind.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] if the tag is longer than [`MAX_TAG`] or the payload than [`MAX_PAYLOAD`].
    pub fn new(kind: Kind, tag: Vec<u8>, payload: P) -> Result<Self, WriteError> {
        let len = payload.as_ref().len();
        if tag.len() > MAX_TAG || len > MAX_PAYLOAD {
            return Err(WriteError::TooLarge);
        }
        let payload_crc = crc32c::crc32c(payload.as_ref());
        Ok(Self {
            kind,
            tag,
            payload,
            payload_crc,
        })
    }

    /// What the frame is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> &[u8] {
        &self.tag
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &P {
        &self.payload
    }

    /// Bytes on disk.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        crate::frame::frame_len(self.tag.len(), self.payload.as_ref().len())
    }
}

/// Why something was not written. In every case nothing of the group counts as written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// No room. What was written of the group was taken back; the writer can be used again.
    #[error("no room on the disk: {0}")]
    Full(#[source] io::Error),
    /// The disk refused the write; it was taken back, the writer can be used again.
    #[error("the disk refused a write: {0}")]
    Io(#[source] io::Error),
    /// A flush failed, now or earlier. What the disk holds since the last good flush is not known, and asking again could
    /// get a false yes: this writer writes no more. Frames of earlier groups are safe.
    #[error("a flush failed ({0}); nothing more is written to this file")]
    Poisoned(io::ErrorKind),
    /// Tag or payload are larger than a frame may be.
    #[error("larger than a frame may be")]
    TooLarge,
}

/// The writing side of one file. One thread at a time: share it behind a [`crate::GroupCommit`].
#[derive(Debug)]
pub struct Writer {
    file: Arc<dyn DiskFile>,
    identity: Identity,
    /// Where the next frame goes.
    end: u64,
    /// Everything before it is known to be durable.
    durable: u64,
    /// Frames claim no more than this to be durable: gaps behind it stay what they are, also behind a footer that a crash
    /// leaves half written.
    claim_limit: u64,
    /// Length that the file was given ahead of the frames.
    extended: u64,
    /// The file ends with a mark that all is durable (or holds no frame): closing needs no other.
    marked: bool,
    poisoned: Option<io::ErrorKind>,
    /// Room for headers, tags and small payloads of a group, at most [`KEEP`] bytes between groups.
    buffer: Vec<u8>,
    /// The footer of all frames so far, if it is kept: see [`Writer::remembering`].
    remembered: Option<Box<Remembered>>,
}

impl Writer {
    /// Goes on at the file's end, before which everything is durable.
    pub(crate) fn resume(file: Arc<dyn DiskFile>, identity: Identity, end: u64) -> Self {
        Self {
            file,
            identity,
            end,
            durable: end,
            claim_limit: u64::MAX,
            extended: end,
            marked: end <= FILE_HEADER as u64,
            poisoned: None,
            buffer: Vec::new(),
            remembered: None,
        }
    }

    /// Goes on at the mark of an orderly stop, which ends at `len` and is overwritten: it may stand only in the kernel's cache,
    /// and nothing that is written later may rest on it.
    pub(crate) fn resume_closed(
        file: Arc<dyn DiskFile>,
        identity: Identity,
        mark: u64,
        len: u64,
    ) -> Self {
        let mut writer = Self::resume(file, identity, mark);
        writer.extended = len;
        writer.marked = true;
        writer
    }

    /// Frames from now on claim no more to be durable than what lies before `offset`.
    pub(crate) fn claiming_only(mut self, offset: u64) -> Self {
        self.claim_limit = offset;
        self
    }

    /// Keeps the footer in memory as it grows, 14 bytes and the tag for each frame, so that [`Writer::seal`] need not read the file
    /// once more. Only a file without frames begins this way; another one is walked when it is sealed.
    #[must_use]
    pub fn remembering(mut self) -> Self {
        self.remembered = (self.end <= FILE_HEADER as u64).then(Box::default);
        self
    }

    /// Offset behind the last frame.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Offset before which everything is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether a flush failed.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.is_some()
    }

    /// The reading side of the same file.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.file), self.identity)
    }

    /// Writes frames one after the other, in one write, and gives the offset of each. They are not durable before
    /// [`Writer::sync`].
    ///
    /// # Errors
    /// See [`WriteError`]: all frames or none.
    pub fn append<P: AsRef<[u8]>>(&mut self, frames: &[Frame<P>]) -> Result<Vec<u64>, WriteError> {
        self.check()?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut parts = Vec::with_capacity(frames.len());
        let mut offsets = Vec::with_capacity(frames.len());
        let mut at = self.end;
        let mut started = 0;
        for (i, frame) in frames.iter().enumerate() {
            let payload = frame.payload.as_ref();
            let header = FrameHeader {
                kind: frame.kind,
                tag_len: frame.tag.len() as u8,
                len: payload.len() as u32,
                payload_crc: frame.payload_crc,
                durable: self.durable.min(self.claim_limit),
            };
            buffer.extend_from_slice(&header.encode(&self.identity, at, &frame.tag));
            buffer.extend_from_slice(&frame.tag);
            if payload.len() <= COPY {
                buffer.extend_from_slice(payload);
            } else {
                parts.push(Part::Buffer(started..buffer.len()));
                parts.push(Part::Payload(i));
                started = buffer.len();
            }
            offsets.push(at);
            at += header.frame_len();
        }
        parts.push(Part::Buffer(started..buffer.len()));
        let mut slices: Vec<_> = parts
            .iter()
            .map(|part| match part {
                Part::Buffer(range) => IoSlice::new(&buffer[range.clone()]),
                Part::Payload(i) => IoSlice::new(frames[*i].payload.as_ref()),
            })
            .collect();
        self.extend(at);
        self.marked = false;
        let written = write_all_at(self.file.as_ref(), &mut slices, self.end);
        buffer.shrink_to(KEEP);
        self.buffer = buffer;
        match written {
            Ok(()) => {
                self.end = at;
                self.extended = self.extended.max(at);
                self.remember(frames, &offsets);
                Ok(offsets)
            }
            Err(e) => Err(self.take_back(e)),
        }
    }

    /// Makes everything that was appended durable.
    ///
    /// # Errors
    /// [`WriteError::Poisoned`]: frames since the last good flush are not durable, and this writer writes no more.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        self.check()?;
        if self.durable == self.end {
            return Ok(());
        }
        if let Err(e) = self.file.sync_data() {
            self.poisoned = Some(e.kind());
            // The kernel may show the lost bytes until it drops them from its cache. Whoever opens this file again must not
            // take them for stored: cut them off if that still works.
            let _ = self.file.set_len(self.durable);
            self.end = self.durable;
            return Err(WriteError::Poisoned(e.kind()));
        }
        self.durable = self.end;
        Ok(())
    }

    /// Appends and flushes: when it returns, the frames survive a power cut.
    ///
    /// # Errors
    /// See [`WriteError`]: all frames or none.
    pub fn commit<P: AsRef<[u8]>>(&mut self, frames: &[Frame<P>]) -> Result<Vec<u64>, WriteError> {
        let offsets = self.append(frames)?;
        self.sync()?;
        Ok(offsets)
    }

    /// Ends the file with an index of its frames, so that it opens without a walk. `entries` shows all of them, in order; it is not
    /// asked if this writer [remembers](Writer::remembering) them. Gives the length of the file.
    ///
    /// # Errors
    /// See [`WriteError`]. The file stays good without its footer.
    pub fn seal(
        mut self,
        entries: impl FnOnce(&mut dyn FnMut(&Entry)) -> io::Result<()>,
    ) -> Result<u64, WriteError> {
        self.sync()?;
        let index_at = self.end;
        let builder = match self.remembered.take() {
            Some(remembered) => self.append_remembered(*remembered)?,
            None => self.append_shown(entries)?,
        };
        let (part, seal) = builder.finish(index_at);
        if let Some(part) = part {
            self.append_internal(Kind::INDEX, part)?;
        }
        self.append_internal(Kind::SEAL, seal)?;
        self.trim()?;
        self.sync()?;
        Ok(self.end)
    }

    /// Ends the writing in order: cuts what was extended ahead and says in the file that all before is durable, so that
    /// damage that comes later is known as damage and not taken for an unfinished append.
    ///
    /// # Errors
    /// See [`WriteError`]. The file stays good without the mark.
    pub fn close(mut self) -> Result<(), WriteError> {
        self.sync()?;
        if self.marked {
            return Ok(());
        }
        self.append_internal(Kind::CLOSE, Vec::new())?;
        self.trim()?;
        self.sync()
    }

    fn append_remembered(&mut self, remembered: Remembered) -> Result<FooterBuilder, WriteError> {
        let (full, builder) = remembered.into_parts();
        for part in full {
            self.append_internal(Kind::INDEX, part)?;
        }
        Ok(builder)
    }

    fn append_shown(
        &mut self,
        entries: impl FnOnce(&mut dyn FnMut(&Entry)) -> io::Result<()>,
    ) -> Result<FooterBuilder, WriteError> {
        let mut builder = FooterBuilder::default();
        let mut failed = None;
        let shown = entries(&mut |entry| {
            if let Some(part) = builder.push(entry.at, entry.len, entry.kind, &entry.tag)
                && failed.is_none()
            {
                failed = self.append_internal(Kind::INDEX, part).err();
            }
        });
        if let Some(e) = failed {
            return Err(e);
        }
        shown.map_err(WriteError::Io)?;
        Ok(builder)
    }

    fn remember<P: AsRef<[u8]>>(&mut self, frames: &[Frame<P>], offsets: &[u64]) {
        let Some(remembered) = &mut self.remembered else {
            return;
        };
        for (frame, at) in frames.iter().zip(offsets) {
            if !frame.kind.is_internal() {
                let len = frame.payload.as_ref().len() as u32;
                remembered.push(*at, len, frame.kind, &frame.tag);
            }
        }
    }

    fn append_internal(&mut self, kind: Kind, payload: Vec<u8>) -> Result<(), WriteError> {
        self.append(&[Frame::new(kind, Vec::new(), payload)?])?;
        Ok(())
    }

    fn check(&self) -> Result<(), WriteError> {
        match self.poisoned {
            Some(kind) => Err(WriteError::Poisoned(kind)),
            None => Ok(()),
        }
    }

    /// Sets the length ahead of a small group that ends at `end`.
    fn extend(&mut self, end: u64) {
        let small = end - self.end < EXTEND / 16;
        if small && end > self.extended {
            let ahead = end + EXTEND;
            // A file system that cannot is none the worse.
            if self.file.set_len(ahead).is_ok() {
                self.extended = ahead;
            }
        }
    }

    /// Cuts what was extended ahead.
    fn trim(&mut self) -> Result<(), WriteError> {
        if self.extended > self.end {
            self.file.set_len(self.end).map_err(WriteError::Io)?;
            self.extended = self.end;
        }
        Ok(())
    }

    /// After a failed write: cuts off what there is of it, so that the next group begins where this one did.
    fn take_back(&mut self, error: io::Error) -> WriteError {
        match self.file.set_len(self.end) {
            Ok(()) => self.extended = self.end,
            Err(e) => {
                self.poisoned = Some(e.kind());
                return WriteError::Poisoned(e.kind());
            }
        }
        if is_full(&error) {
            WriteError::Full(error)
        } else {
            WriteError::Io(error)
        }
    }
}

/// A stretch of the group's bytes.
enum Part {
    /// Of the buffer that holds headers, tags and small payloads.
    Buffer(Range<usize>),
    /// The payload of that frame.
    Payload(usize),
}
