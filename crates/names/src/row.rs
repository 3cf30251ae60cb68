//! The persisted row of a name: one encoding each, as specs/names.md §4 has it. Readers refuse every other form.

use crate::{
    error::RowError,
    io::{Source, Version},
    name::Name,
    record::{MAX_RECORD_BYTES, Record},
    wall::Wall,
};
use libp2p_identity::PeerId;

/// The version that is written.
pub const ROW_VERSION: u8 = 1;

/// What is durable of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Row {
    /// This device holds the key.
    pub(crate) own: bool,
    /// Somebody here wants to be told of it, and helps to keep it alive.
    pub(crate) followed: bool,
    /// What was published under it lately is not known: the book was restored or damaged.
    pub(crate) unsure: bool,
    /// The number of the last change of what it points to, among all changes of the book.
    pub(crate) changed: u64,
    /// The number of the last change of its complete version, likewise.
    pub(crate) completed: u64,
    /// The highest sequence that ever was durable here. It outlives the record.
    pub(crate) floor: Option<u64>,
    /// How long own records live, in seconds.
    pub(crate) lifetime_s: u64,
    pub(crate) best: Option<Held>,
    /// The version that is whole on this device.
    pub(crate) complete: Option<Version>,
    /// Another record under the number of `best`, with another value.
    pub(crate) other: Option<Record>,
}

/// A record and how it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) record: Record,
    pub(crate) source: Source,
    /// Wall clock at its arrival, for display.
    pub(crate) received: Wall,
}

const OWN: u8 = 1;
const FOLLOWED: u8 = 2;
const UNSURE: u8 = 4;
const FLOOR: u8 = 8;
const BEST: u8 = 16;
const COMPLETE: u8 = 32;
const OTHER: u8 = 64;

impl Row {
    /// Whether there is nothing worth a row.
    pub(crate) fn is_empty(&self) -> bool {
        *self
            == Self {
                changed: self.changed,
                completed: self.completed,
                lifetime_s: self.lifetime_s,
                ..Self::default()
            }
    }

    /// The number of its last change.
    pub(crate) fn revision(&self) -> u64 {
        self.changed.max(self.completed)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![ROW_VERSION];
        out.push(
            [
                (self.own, OWN),
                (self.followed, FOLLOWED),
                (self.unsure, UNSURE),
                (self.floor.is_some(), FLOOR),
                (self.best.is_some(), BEST),
                (self.complete.is_some(), COMPLETE),
                (self.other.is_some(), OTHER),
            ]
            .iter()
            .filter(|(is, _)| *is)
            .fold(0, |flags, (_, flag)| flags | flag),
        );
        put(&mut out, self.changed);
        put(&mut out, self.completed);
        put(&mut out, self.lifetime_s);
        if let Some(floor) = self.floor {
            put(&mut out, floor);
        }
        if let Some(best) = &self.best {
            put_bytes(&mut out, best.record.bytes());
            let (kind, peer) = best.source.code();
            out.push(kind);
            put_bytes(&mut out, &peer.map(|p| p.to_bytes()).unwrap_or_default());
            out.extend(best.received.unix_seconds().to_be_bytes());
            out.extend(best.received.nanos().to_be_bytes());
        }
        if let Some(complete) = &self.complete {
            put(&mut out, complete.sequence);
            put_bytes(&mut out, &complete.value);
        }
        if let Some(other) = &self.other {
            put_bytes(&mut out, other.bytes());
        }
        out
    }

    /// Reads a row and verifies the records in it anew: a disk may have changed them.
    pub(crate) fn decode(name: Name, value: &[u8]) -> Result<Self, RowError> {
        let mut rest = value;
        match byte(&mut rest, "version")? {
            ROW_VERSION => {}
            0 => return Err(RowError::Invalid("version")),
            found => return Err(RowError::Newer { found }),
        }
        let flags = byte(&mut rest, "flags")?;
        if flags & 0x80 != 0 {
            return Err(RowError::Invalid("flags"));
        }
        let has = |flag: u8| flags & flag != 0;
        let mut row = Self {
            own: has(OWN),
            followed: has(FOLLOWED),
            unsure: has(UNSURE),
            changed: number(&mut rest, "revision")?,
            completed: number(&mut rest, "revision of the complete version")?,
            lifetime_s: number(&mut rest, "lifetime")?,
            ..Self::default()
        };
        if has(FLOOR) {
            row.floor = Some(number(&mut rest, "floor")?);
        }
        if has(BEST) {
            row.best = Some(held(name, &mut rest)?);
        }
        if has(COMPLETE) {
            row.complete = Some(Version {
                sequence: number(&mut rest, "complete sequence")?,
                value: bytes(&mut rest, "complete value")?.to_vec(),
            });
        }
        if has(OTHER) {
            row.other = Some(record(name, &mut rest)?);
        }
        if !rest.is_empty() {
            return Err(RowError::Trailing(rest.len()));
        }
        Ok(row)
    }
}

fn held(name: Name, rest: &mut &[u8]) -> Result<Held, RowError> {
    let record = record(name, rest)?;
    let kind = byte(rest, "source")?;
    let peer = match bytes(rest, "source's peer")? {
        [] => None,
        id => Some(PeerId::from_bytes(id).map_err(|_| RowError::Invalid("source's peer"))?),
    };
    let source = Source::from_code(kind, peer).ok_or(RowError::Invalid("source"))?;
    let seconds = i64::from_be_bytes(array(rest, "time")?);
    let nanos = u32::from_be_bytes(array(rest, "time")?);
    let received = Wall::from_unix(seconds, nanos);
    if (received.unix_seconds(), received.nanos()) != (seconds, nanos) {
        return Err(RowError::Invalid("time"));
    }
    Ok(Held {
        record,
        source,
        received,
    })
}

fn record(name: Name, rest: &mut &[u8]) -> Result<Record, RowError> {
    Record::open(name, bytes(rest, "record")?).map_err(RowError::Record)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn byte(rest: &mut &[u8], field: &'static str) -> Result<u8, RowError> {
    Ok(array::<1>(rest, field)?[0])
}

fn array<const N: usize>(rest: &mut &[u8], field: &'static str) -> Result<[u8; N], RowError> {
    let (head, tail) = rest.split_first_chunk().ok_or(RowError::Truncated(field))?;
    *rest = tail;
    Ok(*head)
}

fn bytes<'a>(rest: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], RowError> {
    let len = number(rest, field)?;
    if len > MAX_RECORD_BYTES as u64 {
        return Err(RowError::Invalid(field));
    }
    let (head, tail) = rest
        .split_at_checked(len as usize)
        .ok_or(RowError::Truncated(field))?;
    *rest = tail;
    Ok(head)
}

/// Unsigned LEB128 in its shortest form.
fn number(rest: &mut &[u8], field: &'static str) -> Result<u64, RowError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = byte(rest, field)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(RowError::Invalid(field));
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return if byte == 0 && shift > 0 {
                Err(RowError::Invalid(field))
            } else {
                Ok(value)
            };
        }
    }
    Err(RowError::Invalid(field))
}
