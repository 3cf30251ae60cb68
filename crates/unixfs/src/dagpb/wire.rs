//! The protobuf wire: varints, tags, length-delimited fields.
//!
//! Reading follows Go's `protowire`, because that is what decides which blocks the network accepts: over-long varints
//! are legal up to ten bytes, field numbers are 1..2^29-1. Nothing here allocates.

use super::WireError;

/// Protobuf wire types that dag-pb and UnixFS use.
pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const BYTES: u8 = 2;
pub(super) const GROUP_START: u8 = 3;
pub(super) const GROUP_END: u8 = 4;
pub(super) const FIXED32: u8 = 5;

/// A cursor over one message. Every offset it hands out lies inside `bytes`.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor {
            bytes,
            at: 0,
            end: bytes.len(),
        }
    }

    /// A cursor over `bytes[start..end]` that still reports offsets of the whole slice.
    pub(super) fn within(bytes: &'a [u8], start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= bytes.len());
        Cursor {
            bytes,
            at: start,
            end,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes[..self.end]
                .get(self.at)
                .ok_or(WireError::Truncated)?;
            self.at += 1;
            // The tenth byte carries one bit only (protowire.ConsumeVarint).
            if shift == 63 && byte > 1 {
                return Err(WireError::VarintOverflow);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::VarintOverflow)
    }

    /// Field number and wire type.
    pub(super) fn tag(&mut self) -> Result<(u32, u8), WireError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::FieldNumber)?;
        if number == 0 || number > (1 << 29) - 1 {
            return Err(WireError::FieldNumber);
        }
        Ok((number, (tag & 7) as u8))
    }

    /// The range of a length-delimited field, as offsets of the whole slice.
    pub(super) fn bytes_range(&mut self) -> Result<(usize, usize), WireError> {
        let length = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
        let start = self.at;
        let end = start
            .checked_add(length)
            .filter(|end| *end <= self.end)
            .ok_or(WireError::Truncated)?;
        self.at = end;
        Ok((start, end))
    }

    pub(super) fn fixed32(&mut self) -> Result<u32, WireError> {
        let end = self
            .at
            .checked_add(4)
            .filter(|end| *end <= self.end)
            .ok_or(WireError::Truncated)?;
        let mut four = [0u8; 4];
        four.copy_from_slice(&self.bytes[self.at..end]);
        self.at = end;
        Ok(u32::from_le_bytes(four))
    }

    /// Skips one field of an unknown number. Groups nest: their depth is counted, not recursed.
    pub(super) fn skip(&mut self, wire_type: u8) -> Result<(), WireError> {
        let mut depth = 0usize;
        let mut wire_type = wire_type;
        loop {
            match wire_type {
                VARINT => {
                    self.varint()?;
                }
                FIXED64 => {
                    self.fixed32()?;
                    self.fixed32()?;
                }
                BYTES => {
                    self.bytes_range()?;
                }
                GROUP_START => depth += 1,
                GROUP_END => depth = depth.checked_sub(1).ok_or(WireError::WireType(GROUP_END))?,
                FIXED32 => {
                    self.fixed32()?;
                }
                other => return Err(WireError::WireType(other)),
            }
            if depth == 0 {
                return Ok(());
            }
            wire_type = self.tag()?.1;
        }
    }
}

/// How many bytes `value` takes as a varint.
pub(super) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number << 3 | u32::from(wire_type)));
}

pub(super) fn put_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    put_tag(out, number, VARINT);
    put_varint(out, value);
}

pub(super) fn put_bytes_field(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
