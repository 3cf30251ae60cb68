//! Chunks of content as leaves: framing, hashing, and the buffers they travel in.
//!
//! A chunk is read behind a little headroom, so that the dag-pb frame of a leaf is written around it in place. Buffers
//! come back by themselves when the last `Bytes` of them is dropped, wherever that happens; the pool keeps a bounded
//! number of them, because fresh pages cost more than hashing saves.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gemba_block::{Block, BlockError};

use crate::config::Profile;
use crate::dagpb;

/// Room in front of a chunk for its dag-pb header (at most 14 bytes) and behind it for its trailer (at most 5).
const HEADROOM: usize = 32;
/// A chunk shorter than this part of its buffer is copied into memory of its own size.
const COPY_BELOW: usize = 2;
/// Memory that the pool keeps for reuse, in bytes.
const POOL_BYTES: usize = 20 * 1024 * 1024;

/// A leaf before hashing: the bytes of the block to be, and how much content they hold.
pub(crate) struct Chunk {
    bytes: Bytes,
    content: u64,
}

impl Chunk {
    /// Frames content that lies in memory already; copies if the profile wants dag-pb leaves.
    pub(crate) fn of(profile: &Profile, content: &[u8]) -> Self {
        let bytes = if profile.leaves_are_raw() {
            Bytes::copy_from_slice(content)
        } else {
            let (header, trailer) = dagpb::leaf_frame(content.len());
            Bytes::from([&header[..], content, &trailer[..]].concat())
        };
        Chunk {
            bytes,
            content: content.len() as u64,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    pub(crate) fn hash(self, profile: &Profile) -> Result<Leaf, BlockError> {
        Ok(Leaf {
            block: profile.leaf(self.bytes)?,
            content: self.content,
        })
    }
}

/// A hashed leaf.
pub(crate) struct Leaf {
    pub(crate) block: Block,
    pub(crate) content: u64,
}

/// Reads a stream as chunks.
pub(crate) struct Chunker {
    pool: Arc<Pool>,
    spare: Option<Vec<u8>>,
    chunk_size: usize,
    raw: bool,
}

impl Chunker {
    pub(crate) fn new(profile: &Profile) -> Self {
        let buffer = HEADROOM + profile.chunk_bytes() + HEADROOM;
        let keep = (POOL_BYTES / buffer).max(1);
        Chunker {
            pool: Arc::new(Pool {
                buffers: Mutex::new(Vec::new()),
                keep,
                buffer,
            }),
            spare: None,
            chunk_size: profile.chunk_bytes(),
            raw: profile.leaves_are_raw(),
        }
    }

    /// The next chunk, `None` at the end of the stream, and whether the stream is known to end with it.
    pub(crate) fn next(&mut self, reader: &mut dyn Read) -> std::io::Result<(Option<Chunk>, bool)> {
        let mut buffer = self.spare.take().unwrap_or_else(|| self.pool.take());
        let filled = fill(reader, &mut buffer[HEADROOM..HEADROOM + self.chunk_size]);
        let filled = match filled {
            Ok(filled) => filled,
            Err(error) => {
                self.spare = Some(buffer);
                return Err(error);
            }
        };
        let ended = filled < self.chunk_size;
        if filled == 0 {
            self.spare = Some(buffer);
            return Ok((None, true));
        }
        let (start, end) = self.frame(&mut buffer, filled);
        let bytes = if filled < self.chunk_size / COPY_BELOW {
            let bytes = Bytes::copy_from_slice(&buffer[start..end]);
            self.spare = Some(buffer);
            bytes
        } else {
            Bytes::from_owner(Pooled {
                buffer,
                start,
                end,
                pool: self.pool.clone(),
            })
        };
        Ok((
            Some(Chunk {
                bytes,
                content: filled as u64,
            }),
            ended,
        ))
    }

    /// Writes the dag-pb frame around the content, if leaves are not raw; where the block lies in the buffer.
    fn frame(&self, buffer: &mut [u8], filled: usize) -> (usize, usize) {
        let end = HEADROOM + filled;
        if self.raw {
            return (HEADROOM, end);
        }
        let (header, trailer) = dagpb::leaf_frame(filled);
        buffer[HEADROOM - header.len()..HEADROOM].copy_from_slice(&header);
        buffer[end..end + trailer.len()].copy_from_slice(&trailer);
        (HEADROOM - header.len(), end + trailer.len())
    }
}

/// Reads until `buffer` is full or the stream ends.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Buffers waiting for reuse.
struct Pool {
    buffers: Mutex<Vec<Vec<u8>>>,
    keep: usize,
    buffer: usize,
}

impl Pool {
    fn take(&self) -> Vec<u8> {
        let waiting = self
            .buffers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        waiting.unwrap_or_else(|| vec![0; self.buffer])
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < self.keep {
            buffers.push(buffer);
        }
    }
}

/// A buffer that returns to its pool when the last `Bytes` over it is gone.
struct Pooled {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}
