//! Reading: bytes in pieces of any size in, roots and checked blocks out.

use std::io::Read;

use bytes::{Buf, Bytes, BytesMut};
use cid::Cid;
use gemba_block::Block;

use super::{CarError, MAX_HEADER_BYTES, MAX_SECTION_BYTES, header};

/// The fixed header of version 2 behind its pragma: characteristics, data offset, data size, index offset.
const V2_HEADER: usize = 40;
/// Length of the pragma of version 2, whose offsets count from its beginning.
const V2_PRAGMA: u64 = 11;
/// How much [`CarReader`] reads at once.
const READ_BYTES: usize = 64 * 1024;

/// What a [`Decoder`] says next.
#[derive(Debug, PartialEq, Eq)]
pub enum CarStep {
    /// Feed more bytes, or call [`Decoder::end`].
    NeedBytes,
    /// The header: its roots, which need not be among the blocks.
    Roots(Vec<Cid>),
    /// A block; its hash was checked.
    Block(Block),
    /// The archive is complete. Whatever follows in the stream (an index) is ignored.
    End,
}

/// Reads an archive from pieces of bytes; does no input of its own.
///
/// `feed` and `poll` in turn; `end` when the stream ended, then `poll` until `End`. Holds at most one section more
/// than was fed at once. After an error it is of no further use.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// Position of the buffer's beginning in the stream.
    offset: u64,
    section: u64,
    state: State,
    /// Where the inner version 1 of a version 2 ends.
    data_end: Option<u64>,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    V2Header,
    /// Padding up to the inner version 1.
    Skip(u64),
    Inner,
    Sections,
    Done,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Decoder {
            buffer: BytesMut::new(),
            offset: 0,
            section: 0,
            state: State::Header,
            data_end: None,
            ended: false,
        }
    }

    /// Takes the next piece of the stream. Feed only when `poll` says [`CarStep::NeedBytes`]: nothing else bounds the
    /// buffer.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.state != State::Done {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Says that the stream has ended.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What comes next.
    ///
    /// # Errors
    /// See [`CarError`].
    pub fn poll(&mut self) -> Result<CarStep, CarError> {
        loop {
            match self.state {
                State::Header | State::Inner => match self.header()? {
                    Some(CarStep::NeedBytes) => {}
                    Some(step) => return Ok(step),
                    None => return self.starved("the header"),
                },
                State::V2Header => {
                    if self.buffer.len() < V2_HEADER {
                        return self.starved("the header of version 2");
                    }
                    self.v2_header()?;
                }
                State::Skip(left) => {
                    let here = left.min(self.buffer.len() as u64);
                    self.consume(here as usize);
                    if here < left {
                        self.state = State::Skip(left - here);
                        return self.starved("the padding before the blocks");
                    }
                    self.state = State::Inner;
                }
                State::Sections => {
                    if self.at_end() {
                        self.buffer.clear();
                        self.state = State::Done;
                        continue;
                    }
                    return match self.section()? {
                        Some(block) => Ok(CarStep::Block(block)),
                        None => self.starved("a block"),
                    };
                }
                State::Done => return Ok(CarStep::End),
            }
        }
    }

    /// Whether the archive ends here: where version 2 says, or where the stream of a version 1 does.
    fn at_end(&self) -> bool {
        match self.data_end {
            Some(end) => self.offset >= end,
            None => self.ended && self.buffer.is_empty(),
        }
    }

    /// `Some(NeedBytes)`: another state is next.
    fn header(&mut self) -> Result<Option<CarStep>, CarError> {
        let Some((length, prefix)) = self.length("the header", MAX_HEADER_BYTES)? else {
            return Ok(None);
        };
        if self.buffer.len() < prefix + length {
            return Ok(None);
        }
        let header = header::decode(&self.buffer[prefix..prefix + length])?;
        self.consume(prefix + length);
        match (header.version, self.state) {
            (1, _) => {
                self.state = State::Sections;
                Ok(Some(CarStep::Roots(header.roots)))
            }
            (2, State::Header) if self.offset == V2_PRAGMA => {
                self.state = State::V2Header;
                Ok(Some(CarStep::NeedBytes))
            }
            (version, _) => Err(CarError::Version(version)),
        }
    }

    fn v2_header(&mut self) -> Result<(), CarError> {
        // Characteristics describe the index, which is ignored.
        self.consume(16);
        let start = self.buffer.get_u64_le();
        let size = self.buffer.get_u64_le();
        let index = self.buffer.get_u64_le();
        self.offset += 24;
        let skip = start.checked_sub(self.offset).ok_or(CarError::V2Header)?;
        let end = start.checked_add(size).ok_or(CarError::V2Header)?;
        if size == 0 || (index != 0 && index < end) {
            return Err(CarError::V2Header);
        }
        self.data_end = Some(end);
        self.state = State::Skip(skip);
        Ok(())
    }

    fn section(&mut self) -> Result<Option<Block>, CarError> {
        let number = self.section + 1;
        let Some((length, prefix)) = self.length("a block", MAX_SECTION_BYTES)? else {
            return Ok(None);
        };
        if self
            .data_end
            .is_some_and(|end| self.offset + (prefix + length) as u64 > end)
        {
            return Err(CarError::V2Header);
        }
        if self.buffer.len() < prefix + length {
            return Ok(None);
        }
        let offset = self.offset;
        self.consume(prefix);
        self.offset += length as u64;
        let section = self.buffer.split_to(length).freeze();
        let mut rest = &section[..];
        let cid = Cid::read_bytes(&mut rest).map_err(|_| CarError::Cid {
            offset,
            section: number,
        })?;
        let data: Bytes = section.slice(section.len() - rest.len()..);
        let block = Block::new(cid, data).map_err(|source| CarError::Block {
            offset,
            section: number,
            source,
        })?;
        self.section = number;
        Ok(Some(block))
    }

    /// The length at the front of the buffer and how many bytes it takes; `None` if it is not there wholly.
    fn length(&self, part: &'static str, limit: usize) -> Result<Option<(usize, usize)>, CarError> {
        let refused = |length| CarError::Length {
            part,
            offset: self.offset,
            section: self.section + u64::from(self.state == State::Sections),
            length,
            limit: limit as u64,
        };
        let mut value = 0u64;
        for (index, byte) in self.buffer.iter().enumerate() {
            // Both limits fit four bytes; a longer varint is too large or padded.
            if index == 4 {
                return Err(refused(u64::MAX));
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                let length = value as usize;
                if length == 0 || length > limit {
                    return Err(refused(value));
                }
                return Ok(Some((length, index + 1)));
            }
        }
        Ok(None)
    }

    fn starved(&self, part: &'static str) -> Result<CarStep, CarError> {
        if !self.ended {
            return Ok(CarStep::NeedBytes);
        }
        let section = self.section + u64::from(self.state == State::Sections);
        Err(CarError::Truncated {
            part,
            offset: self.offset + self.buffer.len() as u64,
            section,
        })
    }

    fn consume(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        self.offset += bytes as u64;
    }
}

/// Why a [`CarReader`] stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CarReadError {
    /// The archive is not sound.
    #[error(transparent)]
    Car(#[from] CarError),
    /// The stream could not be read.
    #[error("the archive could not be read: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads an archive from a stream; iterates over its blocks.
pub struct CarReader<R> {
    input: R,
    decoder: Decoder,
    roots: Vec<Cid>,
    piece: Vec<u8>,
    failed: bool,
}

impl<R: Read> CarReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// See [`CarReadError`].
    pub fn new(input: R) -> Result<Self, CarReadError> {
        let mut reader = CarReader {
            input,
            decoder: Decoder::new(),
            roots: Vec::new(),
            piece: vec![0; READ_BYTES],
            failed: false,
        };
        if let CarStep::Roots(roots) = reader.step()? {
            reader.roots = roots;
        }
        Ok(reader)
    }

    /// The roots of the header.
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    fn step(&mut self) -> Result<CarStep, CarReadError> {
        loop {
            match self.decoder.poll()? {
                CarStep::NeedBytes => match self.input.read(&mut self.piece) {
                    Ok(0) => self.decoder.end(),
                    Ok(read) => self.decoder.feed(&self.piece[..read]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                },
                step => return Ok(step),
            }
        }
    }
}

impl<R: Read> Iterator for CarReader<R> {
    type Item = Result<Block, CarReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match self.step() {
            Ok(CarStep::Block(block)) => Some(Ok(block)),
            Ok(_) => None,
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}
