//! `/gemba/names/1`: who is interested in which names, what he has of them, and the records themselves. Byte table in specs/names.md §6.

use crate::{
    error::RecordError,
    name::Name,
    record::{
        MAX_RECORD_BYTES,
        proto::{length_delimited, put_bytes, put_number, skip, varint},
    },
    wall::Wall,
};

/// The protocol's id.
pub const PROTOCOL: &str = "/gemba/names/1";
/// Most bytes of one message, without its length in front.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Most entries of one message of each kind.
const MAX_ENTRIES: usize = 1_024;

/// One message; each part may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Names whose changes the sender wants to be told.
    pub interests: Vec<Interest>,
    /// Names he no longer wants to be told of.
    pub gone: Vec<Name>,
    /// Records.
    pub records: Vec<(Name, Vec<u8>)>,
}

/// A name that a peer wants to be told of, and what he says he has: a hint that saves sending what he knows. Nothing else depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// The name.
    pub name: Name,
    /// Sequence and end of life of his record.
    pub has: Option<(u64, Wall)>,
}

impl Message {
    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for interest in &self.interests {
            let mut body = Vec::new();
            put_bytes(&mut body, 1, Some(&interest.name.to_bytes()));
            if let Some((sequence, end)) = interest.has {
                put_number(&mut body, 2, Some(sequence));
                put_number(&mut body, 3, Some(zigzag(end.unix_seconds())));
                put_number(&mut body, 4, Some(u64::from(end.nanos())));
            }
            put_bytes(&mut out, 1, Some(&body));
        }
        for name in &self.gone {
            put_bytes(&mut out, 2, Some(&name.to_bytes()));
        }
        for (name, record) in &self.records {
            let mut body = Vec::new();
            put_bytes(&mut body, 1, Some(&name.to_bytes()));
            put_bytes(&mut body, 2, Some(record));
            put_bytes(&mut out, 3, Some(&body));
        }
        out
    }

    /// Reads a message within its limits; records in it are not looked at.
    ///
    /// # Errors
    /// [`RecordError::Protobuf`]: no message, too long, or too many entries.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(RecordError::Protobuf("a message of more than 64 KiB"));
        }
        let mut message = Self::default();
        let mut rest = bytes;
        while let Some((field, body)) = next(&mut rest)? {
            match (field, body) {
                (1, Part::Bytes(body)) => message.interests.push(interest(body)?),
                (2, Part::Bytes(body)) => message.gone.push(name(body)?),
                (3, Part::Bytes(body)) => message.records.push(record(body)?),
                _ => {}
            }
            let most = message
                .interests
                .len()
                .max(message.gone.len())
                .max(message.records.len());
            if most > MAX_ENTRIES {
                return Err(RecordError::Protobuf("a message of too many entries"));
            }
        }
        Ok(message)
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.interests.is_empty() && self.gone.is_empty() && self.records.is_empty()
    }
}

enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Skipped,
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(u64, Part<'a>)>, RecordError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let tag = varint(rest)?;
    let part = match tag & 7 {
        0 => Part::Number(varint(rest)?),
        2 => Part::Bytes(length_delimited(rest)?),
        1 => {
            skip(rest, 8)?;
            Part::Skipped
        }
        5 => {
            skip(rest, 4)?;
            Part::Skipped
        }
        _ => return Err(RecordError::Protobuf("a wire type that nobody sends")),
    };
    Ok(Some((tag >> 3, part)))
}

fn name(bytes: &[u8]) -> Result<Name, RecordError> {
    Name::from_bytes(bytes).map_err(|_| RecordError::Protobuf("an entry without a name"))
}

fn interest(mut body: &[u8]) -> Result<Interest, RecordError> {
    let (mut id, mut sequence, mut seconds, mut nanos) = (None, None, 0, 0);
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Bytes(bytes)) => id = Some(name(bytes)?),
            (2, Part::Number(number)) => sequence = Some(number),
            (3, Part::Number(number)) => seconds = unzigzag(number),
            (4, Part::Number(number)) => nanos = u32::try_from(number).unwrap_or(u32::MAX),
            _ => {}
        }
    }
    let end = Wall::from_unix(seconds, nanos);
    Ok(Interest {
        name: id.ok_or(RecordError::Protobuf("an entry without a name"))?,
        has: sequence.map(|sequence| (sequence, end)),
    })
}

fn record(mut body: &[u8]) -> Result<(Name, Vec<u8>), RecordError> {
    let (mut id, mut record) = (None, &[][..]);
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Bytes(bytes)) => id = Some(name(bytes)?),
            (2, Part::Bytes(bytes)) => record = bytes,
            _ => {}
        }
    }
    if record.len() > MAX_RECORD_BYTES {
        return Err(RecordError::Oversized(record.len()));
    }
    let id = id.ok_or(RecordError::Protobuf("an entry without a name"))?;
    Ok((id, record.to_vec()))
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}
