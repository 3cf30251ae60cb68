//! The protobuf wire format as far as an RPC needs it: fields in order, nothing copied, nothing allocated.

use super::WireError;

/// One field: its number, its value, where its header begins, whether every number in the header was written as short as possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
    /// Offset of the header.
    pub(super) at: usize,
    /// Offset of the value.
    pub(super) start: usize,
    pub(super) minimal: bool,
}

/// A value by wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Fixed width: nothing here has one, all are skipped.
    Fixed,
}

/// Iterates over the fields of a message; ends after the first error.
pub(super) struct Fields<'a> {
    whole: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(whole: &'a [u8]) -> Self {
        Self { whole, at: 0 }
    }

    #[inline]
    fn varint(&mut self) -> Result<(u64, bool), WireError> {
        let (value, len) = varint(&self.whole[self.at..])?.ok_or(WireError::Truncated)?;
        self.at += len;
        Ok((value, len == varint_len(value)))
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let rest = &self.whole[self.at..];
        let piece = usize::try_from(len)
            .ok()
            .and_then(|len| rest.get(..len))
            .ok_or(WireError::Truncated)?;
        self.at += piece.len();
        Ok(piece)
    }

    #[inline]
    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let at = self.at;
        let (key, mut minimal) = self.varint()?;
        let number = key >> 3;
        if number == 0 || number > 0x1fff_ffff {
            return Err(WireError::BadField);
        }
        let mut start = self.at;
        let value = match key & 7 {
            0 => {
                let (value, short) = self.varint()?;
                minimal &= short;
                Value::Varint(value)
            }
            1 => {
                self.take(8)?;
                Value::Fixed
            }
            2 => {
                let (len, short) = self.varint()?;
                minimal &= short;
                start = self.at;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed
            }
            _ => return Err(WireError::BadField),
        };
        Ok(Field {
            number,
            value,
            at,
            start,
            minimal,
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.whole.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.whole.len();
        }
        Some(field)
    }
}

/// Value and length of the number at the beginning of `bytes`; none if it goes on behind them.
#[inline]
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, WireError> {
    let mut value = 0_u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        if i == 9 && *byte > 1 {
            return Err(WireError::BadNumber);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= 10 {
        return Err(WireError::BadNumber);
    }
    Ok(None)
}

/// Length of the shortest form of a number.
pub(super) const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn put_number(out: &mut Vec<u8>, number: u64, value: u64) {
    put_varint(out, number << 3);
    put_varint(out, value);
}

/// Length of a field of bytes.
pub(crate) const fn bytes_field_len(number: u64, len: usize) -> usize {
    varint_len(number << 3 | 2) + varint_len(len as u64) + len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_long_as_they_are_written() {
        for value in [
            0,
            1,
            127,
            128,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX,
        ] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_len(value), "{value}");
            assert_eq!(varint(&bytes), Ok(Some((value, bytes.len()))));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), Ok(None));
        }
        assert_eq!(varint(&[0xff; 10]), Err(WireError::BadNumber));
        assert_eq!(varint(&[0x80; 11]), Err(WireError::BadNumber));
    }

    #[test]
    fn longer_numbers_than_needed_are_seen() {
        let minimal: Vec<bool> = Fields::new(&[0x12, 0x81, 0x00, 7, 0x12, 1, 7, 0x92, 0x00, 0])
            .map(|f| f.is_ok_and(|f| f.minimal))
            .collect();
        assert_eq!(minimal, [false, true, false]);
    }

    #[test]
    fn malformed_messages_end_with_one_error() {
        for bad in [
            &[0x08][..],
            &[0x12, 5, 1],
            &[0x00, 1],
            &[0x0b],
            &[0x0f, 1],
            &[0x1d, 1],
        ] {
            let all: Vec<_> = Fields::new(bad).collect();
            assert_eq!(all.len(), 1, "{bad:?}");
            assert!(all[0].is_err(), "{bad:?}");
        }
    }
}
