//! A walk over the tags of a message that counts, before anything is allocated, what decoding would allocate.

use super::MAX_ITEMS;
use super::decode::DecodeError;

/// Field numbers of `Message` that repeat (message.proto).
const WANTLIST: u64 = 1;
const BLOCKS: u64 = 2;
const PAYLOAD: u64 = 3;
const PRESENCES: u64 = 4;

/// Refuses a message with more than [`MAX_ITEMS`] entries, blocks and presences together. A two-byte empty entry
/// becomes a struct of about sixty bytes: without this, 4 MiB on the wire would be 120 MiB in memory.
pub(super) fn check(message: &[u8]) -> Result<(), DecodeError> {
    let mut items = 0_usize;
    for field in Fields(message) {
        match field? {
            (WANTLIST, Some(list)) => {
                for entry in Fields(list) {
                    entry?;
                    items += 1;
                }
            }
            (BLOCKS | PAYLOAD | PRESENCES, Some(_)) => items += 1,
            _ => {}
        }
        if items > MAX_ITEMS {
            return Err(DecodeError::TooManyItems);
        }
    }
    Ok(())
}

/// Iterates over (field number, bytes if length-delimited).
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Option<&'a [u8]>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Option<&'a [u8]>), DecodeError> {
        let tag = self.varint()?;
        let bytes = match tag & 7 {
            0 => {
                self.varint()?;
                None
            }
            1 => {
                self.take(8)?;
                None
            }
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
                Some(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                None
            }
            // Groups were never part of this protocol and nest without bound.
            _ => return Err(DecodeError::WireType),
        };
        Ok((tag >> 3, bytes))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for (at, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_entries_across_repeated_wantlists() {
        let mut message = Vec::new();
        for _ in 0..MAX_ITEMS {
            message.extend_from_slice(&[0x0a, 0x02, 0x0a, 0x00]);
        }
        assert_eq!(check(&message), Ok(()));
        message.extend_from_slice(&[0x0a, 0x02, 0x0a, 0x00]);
        assert_eq!(check(&message), Err(DecodeError::TooManyItems));
    }

    #[test]
    fn truncated_and_grouped_fields_are_refused() {
        assert_eq!(check(&[0x0a, 0x05, 0x00]), Err(DecodeError::Truncated));
        assert_eq!(check(&[0x80]), Err(DecodeError::Truncated));
        assert_eq!(check(&[0x33]), Err(DecodeError::WireType));
        assert_eq!(check(&[0xff; 12]), Err(DecodeError::Truncated));
    }
}
