//! The persisted record of one pin (`specs/pins.md`).
//!
//! The key is the root's CID in binary. The value, version 1, and version 2 where the size is known:
//!
//! | field | bytes |
//! |---|---|
//! | version | 1 byte, `01` or `02` |
//! | flags | 1 byte: bit 0 direct, bit 1 complete, bit 2 was complete and lacks a block since, the others 0 |
//! | id | unsigned LEB128, shortest form |
//! | since | unsigned LEB128, shortest form: milliseconds since 1970 |
//! | size | version 2 alone: blocks, then bytes, each unsigned LEB128 in its shortest form |
//! | name | 1 byte length, 0 for none, then UTF-8 |
//!
//! One value has one encoding (PIN-4), so records compare as bytes.

use crate::{
    desired::{Kind, Name, Pin, Size},
    error::RecordError,
};
use cid::Cid;

/// The newest version this program writes and reads.
pub const RECORD_VERSION: u8 = 2;
/// The version of a record without a size.
const UNSIZED: u8 = 1;

const FLAG_DIRECT: u8 = 1;
const FLAG_COMPLETE: u8 = 2;
const FLAG_LACKS: u8 = 4;

/// The key of the record of a root.
pub fn encode_key(cid: &Cid) -> Vec<u8> {
    cid.to_bytes()
}

/// The root of a key.
///
/// # Errors
/// [`RecordError::Key`] if it is not exactly one CID in its shortest form.
pub fn decode_key(key: &[u8]) -> Result<Cid, RecordError> {
    let cid = Cid::try_from(key).map_err(|e| RecordError::Key(e.to_string()))?;
    if cid.to_bytes() != key {
        return Err(RecordError::Key("not in its shortest form".into()));
    }
    Ok(cid)
}

/// The value of the record of a pin.
pub fn encode_record(pin: &Pin) -> Vec<u8> {
    let name = pin.name.as_ref().map_or("", Name::as_str);
    let mut out = Vec::with_capacity(2 + 4 * 10 + 1 + name.len());
    let direct = if pin.kind == Kind::Direct {
        FLAG_DIRECT
    } else {
        0
    };
    let complete = if pin.complete { FLAG_COMPLETE } else { 0 };
    let lacks = if pin.lacks && !pin.complete {
        FLAG_LACKS
    } else {
        0
    };
    let size = pin.size.filter(|_| pin.complete);
    let version = if size.is_some() {
        RECORD_VERSION
    } else {
        UNSIZED
    };
    out.extend([version, direct | complete | lacks]);
    put_varint(&mut out, pin.id);
    put_varint(&mut out, pin.since_ms);
    if let Some(size) = size {
        put_varint(&mut out, size.blocks);
        put_varint(&mut out, size.bytes);
    }
    out.push(u8::try_from(name.len()).expect("a Name has at most 255 bytes"));
    out.extend(name.as_bytes());
    out
}

/// Reads the value of the record of `cid`.
///
/// # Errors
/// [`RecordError`]; a newer version is told apart from damage.
pub fn decode_record(cid: Cid, value: &[u8]) -> Result<Pin, RecordError> {
    let mut input = value;
    let version = match take_byte(&mut input, "version")? {
        0 => return Err(RecordError::Invalid("version")),
        version @ UNSIZED..=RECORD_VERSION => version,
        found => return Err(RecordError::Newer { found }),
    };
    let flags = take_byte(&mut input, "flags")?;
    let both = FLAG_COMPLETE | FLAG_LACKS;
    if flags & !(FLAG_DIRECT | both) != 0 || flags & both == both {
        return Err(RecordError::Invalid("flags"));
    }
    let id = take_varint(&mut input, "id")?;
    let since_ms = take_varint(&mut input, "since")?;
    let size = match version {
        UNSIZED => None,
        _ if flags & FLAG_COMPLETE == 0 => return Err(RecordError::Invalid("flags")),
        _ => Some(Size {
            blocks: take_varint(&mut input, "size")?,
            bytes: take_varint(&mut input, "size")?,
        }),
    };
    let name = take_name(&mut input)?;
    if !input.is_empty() {
        return Err(RecordError::Trailing(input.len()));
    }
    let kind = if flags & FLAG_DIRECT == 0 {
        Kind::Recursive
    } else {
        Kind::Direct
    };
    Ok(Pin {
        cid,
        kind,
        name,
        complete: flags & FLAG_COMPLETE != 0,
        lacks: flags & FLAG_LACKS != 0,
        id,
        since_ms,
        size,
    })
}

fn take_name(input: &mut &[u8]) -> Result<Option<Name>, RecordError> {
    let len = usize::from(take_byte(input, "name")?);
    let (bytes, rest) = input
        .split_at_checked(len)
        .ok_or(RecordError::Truncated("name"))?;
    *input = rest;
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| RecordError::Invalid("name"))?;
    Ok(Some(
        Name::new(text).map_err(|_| RecordError::Invalid("name"))?,
    ))
}

fn take_byte(input: &mut &[u8], field: &'static str) -> Result<u8, RecordError> {
    let (&first, rest) = input.split_first().ok_or(RecordError::Truncated(field))?;
    *input = rest;
    Ok(first)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(input: &mut &[u8], field: &'static str) -> Result<u64, RecordError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(input, field)?;
        let part = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && part > 1 {
            return Err(RecordError::Invalid(field));
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            // A last byte of zero after others is not the shortest form.
            return if byte == 0 && shift > 0 {
                Err(RecordError::Invalid(field))
            } else {
                Ok(value)
            };
        }
    }
    Err(RecordError::Invalid(field))
}
