//! The outer form: protobuf, nine fields (wire clause 06; boxo `ipns/pb/record.proto`).

use crate::error::RecordError;

/// The fields as they stand in the bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) signature_v1: Option<&'a [u8]>,
    pub(crate) validity_type: Option<u64>,
    pub(crate) validity: Option<&'a [u8]>,
    pub(crate) sequence: Option<u64>,
    pub(crate) ttl: Option<u64>,
    pub(crate) public_key: Option<&'a [u8]>,
    pub(crate) signature_v2: Option<&'a [u8]>,
    pub(crate) data: Option<&'a [u8]>,
}

/// In the order of the field numbers; a number that is there is written even if it is 0, as Go does.
pub(crate) fn encode(parts: &Parts<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    put_bytes(&mut out, 1, parts.value);
    put_bytes(&mut out, 2, parts.signature_v1);
    put_number(&mut out, 3, parts.validity_type);
    put_bytes(&mut out, 4, parts.validity);
    put_number(&mut out, 5, parts.sequence);
    put_number(&mut out, 6, parts.ttl);
    put_bytes(&mut out, 7, parts.public_key);
    put_bytes(&mut out, 8, parts.signature_v2);
    put_bytes(&mut out, 9, parts.data);
    out
}

/// As protobuf has it: a field that comes twice counts once, the last time; fields that are unknown, or known with another wire type, are
/// skipped. Groups, which no writer of records has ever used, are refused.
pub(crate) fn decode(mut rest: &[u8]) -> Result<Parts<'_>, RecordError> {
    let mut parts = Parts::default();
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let field = tag >> 3;
        if field == 0 || field > MAX_FIELD {
            return Err(RecordError::Protobuf("a field's number is out of range"));
        }
        match tag & 7 {
            0 => {
                let number = varint(&mut rest)?;
                match field {
                    3 => parts.validity_type = Some(number),
                    5 => parts.sequence = Some(number),
                    6 => parts.ttl = Some(number),
                    _ => {}
                }
            }
            1 => skip(&mut rest, 8)?,
            2 => {
                let bytes = length_delimited(&mut rest)?;
                let place = match field {
                    1 => &mut parts.value,
                    2 => &mut parts.signature_v1,
                    4 => &mut parts.validity,
                    7 => &mut parts.public_key,
                    8 => &mut parts.signature_v2,
                    9 => &mut parts.data,
                    _ => continue,
                };
                *place = Some(bytes);
            }
            5 => skip(&mut rest, 4)?,
            _ => return Err(RecordError::Protobuf("a wire type that no record has")),
        }
    }
    Ok(parts)
}

/// The largest number of a field in protobuf.
const MAX_FIELD: u64 = (1 << 29) - 1;

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: Option<&[u8]>) {
    if let Some(bytes) = bytes {
        out.push(field << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

pub(crate) fn put_number(out: &mut Vec<u8>, field: u8, number: Option<u64>) {
    if let Some(number) = number {
        out.push(field << 3);
        put_varint(out, number);
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Any form of a number of at most 64 bits: protobuf allows the longer ones.
pub(crate) fn varint(rest: &mut &[u8]) -> Result<u64, RecordError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest
            .split_first()
            .ok_or(RecordError::Protobuf("it ends within a number"))?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(RecordError::Protobuf("a number of more than 64 bits"))
}

pub(crate) fn length_delimited<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], RecordError> {
    let len = varint(rest)?;
    let split = usize::try_from(len)
        .ok()
        .and_then(|len| rest.split_at_checked(len));
    let (bytes, tail) = split.ok_or(RecordError::Protobuf("it ends within a field"))?;
    *rest = tail;
    Ok(bytes)
}

pub(crate) fn skip(rest: &mut &[u8], len: usize) -> Result<(), RecordError> {
    *rest = rest
        .get(len..)
        .ok_or(RecordError::Protobuf("it ends within a field"))?;
    Ok(())
}
