//! Reading single frames.

use std::io;
use std::sync::Arc;

use crate::disk::{DiskFile, read_exact_at};
use crate::frame::{FRAME_HEADER, FrameHeader, Identity, Kind, MAX_PAYLOAD, MAX_TAG};
use crate::walk::Walk;

/// The reading side of a file; cheap to clone. Reads never wait for a writer.
#[derive(Clone, Debug)]
pub struct Reader {
    file: Arc<dyn DiskFile>,
    identity: Identity,
}

/// Why a frame was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What stands at the offset is not the frame that was asked for.
    #[error("damaged at offset {at}: {what}")]
    Damaged {
        /// Offset of the frame.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A frame that was read.
#[derive(Debug)]
pub struct StoredFrame {
    /// What the frame is.
    pub kind: Kind,
    bytes: Vec<u8>,
    tag_len: usize,
}

impl StoredFrame {
    /// The tag.
    #[must_use]
    pub fn tag(&self) -> &[u8] {
        &self.bytes[FRAME_HEADER..FRAME_HEADER + self.tag_len]
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_at()..]
    }

    /// All bytes of the frame, and where the payload begins in them: for taking the payload without a copy.
    #[must_use]
    pub fn into_bytes(self) -> (Vec<u8>, usize) {
        let at = self.payload_at();
        (self.bytes, at)
    }

    fn payload_at(&self) -> usize {
        FRAME_HEADER + self.tag_len
    }
}

impl Reader {
    /// Reads from a file that is known to be whole enough: one that [`crate::open`] or [`crate::create`] has seen.
    #[must_use]
    pub fn new(file: Arc<dyn DiskFile>, identity: Identity) -> Self {
        Self { file, identity }
    }

    /// Which file this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The file underneath.
    #[must_use]
    pub fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Reads the frame at `at` whose tag and payload have these lengths, in one call to the disk. The header is always
    /// checked; the payload's checksum if `check_payload`.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if it is not a whole frame of just these lengths.
    pub fn read(
        &self,
        at: u64,
        tag_len: usize,
        len: usize,
        check_payload: bool,
    ) -> Result<StoredFrame, ReadError> {
        let damaged = |what| Err(ReadError::Damaged { at, what });
        if tag_len > MAX_TAG || len > MAX_PAYLOAD {
            return damaged("its lengths are impossible");
        }
        let mut bytes = zeros(FRAME_HEADER + tag_len + len);
        match read_exact_at(self.file.as_ref(), &mut bytes, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return damaged("the file ends before it");
            }
            other => other?,
        }
        let Some((header, _)) = FrameHeader::decode(&self.identity, at, &bytes) else {
            return damaged("its header is not whole");
        };
        if header.tag_len as usize != tag_len || header.len as usize != len {
            return damaged("another frame stands there");
        }
        if check_payload && crc32c::crc32c(&bytes[FRAME_HEADER + tag_len..]) != header.payload_crc {
            return damaged("its payload is not what was written");
        }
        Ok(StoredFrame {
            kind: header.kind,
            bytes,
            tag_len,
        })
    }

    /// Walks over all frames before `end`.
    #[must_use]
    pub fn walk(&self, end: u64) -> Walk {
        Walk::new(
            Arc::clone(&self.file),
            self.identity,
            crate::frame::FILE_HEADER as u64,
            end,
        )
    }
}

/// `vec![0; len]`, but memory that was used before: some allocators serve a request for zeros by giving pages back to the system and
/// taking fresh ones, which costs a fault for each (measured with jemalloc: 64 faults a block of 256 KiB).
fn zeros(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    // Else the compiler may make such a request of both steps.
    std::hint::black_box(&mut bytes).resize(len, 0);
    bytes
}
