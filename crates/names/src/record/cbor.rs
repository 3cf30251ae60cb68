//! The signed data: one map of dag-cbor, in its one canonical form (wire clause 06, specs/names.md §2.2).
//!
//! Numbers in their shortest form, keys in order (shorter first, then by bytes) and each once, definite lengths, nothing behind the map. Keys
//! beside the five of the format are the publisher's own: kept, and skipped where their values are more than a text, bytes, a number or a truth.

use super::{Fields, Unsigned};
use crate::{
    error::{RecordError, SignError},
    wall::Wall,
};
use std::collections::BTreeMap;

/// The value of a publisher's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meta {
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A whole number of −2^64 to 2^64 − 1. Kubo reads −2^63 to 2^63 − 1, and only these can be signed.
    Int(i128),
    /// Yes or no.
    Bool(bool),
    /// Anything else of dag-cbor, as it stands in the record. It can be read and not signed.
    Other(Vec<u8>),
}

/// The keys of the format.
const RESERVED: [&str; 5] = ["TTL", "Value", "Sequence", "Validity", "ValidityType"];
/// Deepest nesting of a publisher's own value: a guess, beyond what anybody writes and below what costs anything.
const MAX_DEPTH: usize = 16;

pub(super) fn encode(unsigned: &Unsigned) -> Result<Vec<u8>, SignError> {
    let validity = unsigned.validity.to_string();
    let mut entries: Vec<(&str, Vec<u8>)> = vec![
        ("TTL", number(unsigned.ttl_ns)),
        ("Value", bytes(&unsigned.value)),
        ("Sequence", number(unsigned.sequence)),
        ("Validity", bytes(validity.as_bytes())),
        ("ValidityType", number(0)),
    ];
    for (key, value) in &unsigned.metadata {
        if RESERVED.contains(&key.as_str()) {
            return Err(SignError::ReservedKey(key.clone()));
        }
        entries.push((key, meta(key, value)?));
    }
    entries.sort_by_key(|(key, _)| (key.len(), *key));
    let mut out = head(5, entries.len() as u64);
    for (key, value) in entries {
        out.extend(text(key));
        out.extend(value);
    }
    Ok(out)
}

pub(super) fn decode(data: &[u8]) -> Result<Fields, RecordError> {
    let mut reader = Reader(data);
    let (5, entries) = reader.head()? else {
        return Err(RecordError::Cbor("it is no map"));
    };
    let mut last: Option<&str> = None;
    let mut found = Found::default();
    for _ in 0..entries {
        let key = reader.text()?;
        if last.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
            return Err(RecordError::Cbor(
                "its keys are not in order, or one comes twice",
            ));
        }
        last = Some(key);
        found.take(key, &mut reader)?;
    }
    if !reader.0.is_empty() {
        return Err(RecordError::Cbor("there are bytes behind it"));
    }
    found.finish()
}

#[derive(Default)]
struct Found {
    ttl_ns: Option<u64>,
    value: Option<Vec<u8>>,
    sequence: Option<u64>,
    validity: Option<Vec<u8>>,
    validity_type: Option<u64>,
    metadata: BTreeMap<String, Meta>,
}

impl Found {
    fn take(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<(), RecordError> {
        match key {
            "TTL" => self.ttl_ns = Some(reader.number("TTL")?),
            "Value" => self.value = Some(reader.bytes("Value")?),
            "Sequence" => self.sequence = Some(reader.number("Sequence")?),
            "Validity" => self.validity = Some(reader.bytes("Validity")?),
            "ValidityType" => self.validity_type = Some(reader.number("ValidityType")?),
            _ => {
                self.metadata.insert(key.to_owned(), reader.meta()?);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Fields, RecordError> {
        let validity_type = self
            .validity_type
            .ok_or(RecordError::Missing("ValidityType"))?;
        if validity_type != 0 {
            return Err(RecordError::ValidityType(validity_type));
        }
        let validity_text = self.validity.ok_or(RecordError::Missing("Validity"))?;
        let validity = std::str::from_utf8(&validity_text)
            .ok()
            .and_then(|text| text.parse::<Wall>().ok())
            .ok_or(RecordError::Validity)?;
        Ok(Fields {
            value: self.value.ok_or(RecordError::Missing("Value"))?,
            sequence: self.sequence.ok_or(RecordError::Missing("Sequence"))?,
            validity,
            validity_text,
            ttl_ns: self.ttl_ns.ok_or(RecordError::Missing("TTL"))?,
            metadata: self.metadata,
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Major type and argument, the argument in its shortest form.
    fn head(&mut self) -> Result<(u8, u64), RecordError> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let len = match info {
            0..=23 => return Ok((major, u64::from(info))),
            24..=27 => 1usize << (info - 24),
            _ => return Err(RecordError::Cbor("a length that is not given in advance")),
        };
        let argument = self
            .take(len)?
            .iter()
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        let least = match len {
            1 => 24,
            2 => 1 << 8,
            4 => 1 << 16,
            _ => 1 << 32,
        };
        // The bits of a float are no number: each of them has its one form.
        if argument < least && major != 7 {
            return Err(RecordError::Cbor("a number in a longer form than it needs"));
        }
        Ok((major, argument))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(RecordError::Cbor("it ends within a value"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// `len` comes from the bytes: what is not there is not allocated.
    fn take_long(&mut self, len: u64) -> Result<&'a [u8], RecordError> {
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        let (3, len) = self.head()? else {
            return Err(RecordError::Cbor("a key is no text"));
        };
        std::str::from_utf8(self.take_long(len)?)
            .map_err(|_| RecordError::Cbor("a text is not UTF-8"))
    }

    fn bytes(&mut self, field: &'static str) -> Result<Vec<u8>, RecordError> {
        match self.head()? {
            (2, len) => Ok(self.take_long(len)?.to_vec()),
            _ => Err(RecordError::WrongKind(field)),
        }
    }

    /// A number that Go reads into an int64.
    fn number(&mut self, field: &'static str) -> Result<u64, RecordError> {
        match self.head()? {
            (0, number) if number <= super::MAX_SEQUENCE => Ok(number),
            (0, number) => Err(RecordError::OutOfRange { field, number }),
            _ => Err(RecordError::WrongKind(field)),
        }
    }

    fn meta(&mut self) -> Result<Meta, RecordError> {
        let start = self.0;
        let (major, argument) = self.head()?;
        Ok(match major {
            0 => Meta::Int(i128::from(argument)),
            1 => Meta::Int(-1 - i128::from(argument)),
            2 => Meta::Bytes(self.take_long(argument)?.to_vec()),
            3 => Meta::Text(
                std::str::from_utf8(self.take_long(argument)?)
                    .map_err(|_| RecordError::Cbor("a text is not UTF-8"))?
                    .to_owned(),
            ),
            7 if start[0] == FALSE => Meta::Bool(false),
            7 if start[0] == TRUE => Meta::Bool(true),
            _ => {
                self.0 = start;
                self.skip(0)?;
                Meta::Other(start[..start.len() - self.0.len()].to_vec())
            }
        })
    }

    /// Steps over one value, checking its form.
    fn skip(&mut self, depth: usize) -> Result<(), RecordError> {
        if depth > MAX_DEPTH {
            return Err(RecordError::Cbor("it is nested too deeply"));
        }
        let first = *self
            .0
            .first()
            .ok_or(RecordError::Cbor("it ends within a value"))?;
        let (major, argument) = self.head()?;
        match major {
            0 | 1 => {}
            2 => {
                self.take_long(argument)?;
            }
            3 => {
                std::str::from_utf8(self.take_long(argument)?)
                    .map_err(|_| RecordError::Cbor("a text is not UTF-8"))?;
            }
            // As many rounds as there are bytes: each value takes at least one, and the first that is missing ends it.
            4 => {
                for _ in 0..argument {
                    self.skip(depth + 1)?;
                }
            }
            5 => self.skip_map(argument, depth)?,
            6 => self.skip_link(argument)?,
            _ => check_simple(first, argument)?,
        }
        Ok(())
    }

    fn skip_map(&mut self, entries: u64, depth: usize) -> Result<(), RecordError> {
        let mut last: Option<&str> = None;
        for _ in 0..entries {
            let key = self.text()?;
            if last.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
                return Err(RecordError::Cbor(
                    "its keys are not in order, or one comes twice",
                ));
            }
            last = Some(key);
            self.skip(depth + 1)?;
        }
        Ok(())
    }

    /// dag-cbor has one tag: 42, a CID in bytes behind a zero.
    fn skip_link(&mut self, tag: u64) -> Result<(), RecordError> {
        let (2, len) = self.head()? else {
            return Err(RecordError::Cbor("a tag that is not of a link"));
        };
        match (tag, self.take_long(len)?.first()) {
            (42, Some(0)) => Ok(()),
            _ => Err(RecordError::Cbor("a tag that is not of a link")),
        }
    }
}

const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;
const FLOAT: u8 = 0xfb;

/// False, true, null, and floats of 64 bits that are numbers.
fn check_simple(first: u8, argument: u64) -> Result<(), RecordError> {
    match first {
        FALSE | TRUE | NULL => Ok(()),
        FLOAT if f64::from_bits(argument).is_finite() => Ok(()),
        _ => Err(RecordError::Cbor("a simple value that dag-cbor has not")),
    }
}

fn meta(key: &str, value: &Meta) -> Result<Vec<u8>, SignError> {
    Ok(match value {
        Meta::Text(value) => text(value),
        Meta::Bytes(value) => bytes(value),
        Meta::Bool(false) => vec![FALSE],
        Meta::Bool(true) => vec![TRUE],
        Meta::Int(value) => match i64::try_from(*value) {
            Ok(value) if value < 0 => head(1, value.unsigned_abs() - 1),
            Ok(value) => number(value.unsigned_abs()),
            Err(_) => return Err(SignError::MetaValue(key.to_owned())),
        },
        Meta::Other(_) => return Err(SignError::MetaValue(key.to_owned())),
    })
}

fn number(value: u64) -> Vec<u8> {
    head(0, value)
}

fn bytes(value: &[u8]) -> Vec<u8> {
    [head(2, value.len() as u64).as_slice(), value].concat()
}

fn text(value: &str) -> Vec<u8> {
    [head(3, value.len() as u64).as_slice(), value.as_bytes()].concat()
}

/// Major type and argument in the shortest form.
fn head(major: u8, argument: u64) -> Vec<u8> {
    let first = major << 5;
    match argument {
        0..=23 => vec![first | argument as u8],
        24..=0xff => vec![first | 24, argument as u8],
        0x100..=0xffff => [&[first | 25], &(argument as u16).to_be_bytes()[..]].concat(),
        0x1_0000..=0xffff_ffff => [&[first | 26], &(argument as u32).to_be_bytes()[..]].concat(),
        _ => [&[first | 27], &argument.to_be_bytes()[..]].concat(),
    }
}
