//! Protobuf's fields, as far as `/gemba/log/1` has them.

use super::WireError;
use crate::varint::{put_bytes, put_varint, varint};

/// The value of a field.
pub(super) enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a kind that is not used here.
    Other,
}

/// The next field and its value.
pub(super) fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(u64, Part<'a>)>, WireError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let tag = number(rest)?;
    let part = match tag & 7 {
        0 => Part::Number(number(rest)?),
        1 => skip(rest, 8)?,
        2 => {
            let bytes = crate::varint::bytes(rest);
            Part::Bytes(bytes.ok_or(WireError("it ends within a field"))?)
        }
        5 => skip(rest, 4)?,
        _ => return Err(WireError("a kind of field that nobody sends")),
    };
    Ok(Some((tag >> 3, part)))
}

pub(super) fn put_number_field(out: &mut Vec<u8>, field: u8, number: u64) {
    out.push(field << 3);
    put_varint(out, number);
}

pub(super) fn put_bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_bytes(out, bytes);
}

fn number(rest: &mut &[u8]) -> Result<u64, WireError> {
    varint(rest).ok_or(WireError(
        "a number that is cut, or not in its shortest form",
    ))
}

fn skip<'a>(rest: &mut &[u8], len: usize) -> Result<Part<'a>, WireError> {
    *rest = rest.get(len..).ok_or(WireError("it ends within a field"))?;
    Ok(Part::Other)
}
