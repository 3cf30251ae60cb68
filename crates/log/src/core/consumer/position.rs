//! The row of a feed: how far the consumer is, and what it owes. Byte table in specs/log-replication.md §2.

use crate::{
    feed::{EventHash, Seq},
    varint::{put_varint, varint},
};

/// The version that is written.
pub const POSITION_VERSION: u8 = 1;
/// Longest row: beyond it none is read.
pub const MAX_POSITION_BYTES: usize = 256 << 10;
/// Most marks.
const MAX_MARKS: usize = 8;
/// A mark is set after this many events; a guess: what is done twice after a rewind, against 37 bytes.
const MARK_EVERY: u64 = 256;

/// How far a consumer is in one feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The first event that is not acknowledged.
    pub next: Seq,
    /// Hash of the event before it: proves the whole prefix (L8). None at 0, and where retention took that event.
    pub hash: Option<EventHash>,
    /// What may be in the hands of a worker.
    pub given: Given,
    /// How many events are given at once; it shrinks when a worker dies and grows with each acknowledgement.
    pub window: u32,
    /// How often the event `next` failed.
    pub attempts: u32,
    /// For how long, in milliseconds.
    pub held_ms: u64,
    /// Refused events that wait for their next attempt, by number.
    pub aside: Vec<Aside>,
    /// Earlier places, to rewind to; the further back, the wider apart.
    pub marks: Vec<Mark>,
}

/// What may be in the hands of a worker. It is durable before the worker has it, so that a crash in the middle is known for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Nothing.
    Nothing,
    /// Events from `next` on.
    Main,
    /// Those set aside that are marked as given.
    Asides,
}

/// A refused event that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside {
    /// Its number.
    pub seq: Seq,
    /// How often it failed.
    pub attempts: u32,
    /// For how long, in milliseconds.
    pub held_ms: u64,
    /// Whether it is a dead letter that is tried again.
    pub letter: bool,
    /// Whether it is in the hands of a worker.
    pub given: bool,
    /// Whether it is given by itself: it was among several when a worker died.
    pub alone: bool,
}

impl Aside {
    pub(super) fn new(seq: Seq, letter: bool) -> Self {
        Self {
            seq,
            attempts: 0,
            held_ms: 0,
            letter,
            given: false,
            alone: false,
        }
    }
}

/// An earlier place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// As [`Position::next`].
    pub next: Seq,
    /// As [`Position::hash`].
    pub hash: EventHash,
}

/// A row that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// It was written by a newer program.
    #[error(
        "the row has version {found}, this program reads {POSITION_VERSION}: install the newer program again"
    )]
    Newer {
        /// Its version.
        found: u8,
    },
    /// It is damaged.
    #[error("the row is damaged at {0}: seek the feed explicitly")]
    Damaged(&'static str),
}

impl Position {
    /// Before this event, of a feed that nobody read yet.
    pub fn at(next: Seq, hash: Option<EventHash>, window: u32) -> Self {
        Self {
            next,
            hash,
            given: Given::Nothing,
            window: window.max(1),
            attempts: 0,
            held_ms: 0,
            aside: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Everything before `next` is done.
    pub(super) fn advance(&mut self, next: Seq, hash: EventHash, batch: u32) {
        let since = self.marks.last().map_or(0, |mark| mark.next);
        if let Some(before) = self.hash
            && self.next >= since + MARK_EVERY
        {
            self.marks.push(Mark {
                next: self.next,
                hash: before,
            });
            self.thin(next);
        }
        self.next = next;
        self.hash = Some(hash);
        self.window = self.window.saturating_mul(2).clamp(1, batch.max(1));
        (self.attempts, self.held_ms) = (0, 0);
    }

    /// Drops the mark that is missed least: the one whose neighbours are nearest to each other, by their age.
    fn thin(&mut self, head: Seq) {
        if self.marks.len() <= MAX_MARKS {
            return;
        }
        let cost = |i: usize| {
            let gap = u128::from(self.marks[i + 1].next - self.marks[i - 1].next);
            (gap << 32) / u128::from(head.saturating_sub(self.marks[i].next).max(1))
        };
        if let Some(victim) = (1..self.marks.len() - 1).min_by_key(|i| cost(*i)) {
            self.marks.remove(victim);
        }
    }

    /// A worker died with what was given.
    pub(super) fn crash(&mut self) {
        match self.given {
            Given::Nothing => {}
            // The window closes in on the event in few steps: 1,000 → 31 → 1. Only alone does an event count its failures, so that one
            // power cut is never held against it.
            Given::Main if self.window > 1 => self.window = (self.window / 32).max(1),
            Given::Main => self.attempts = self.attempts.saturating_add(1),
            Given::Asides => {
                let alone = self.aside.iter().filter(|aside| aside.given).count() == 1;
                for aside in self.aside.iter_mut().filter(|aside| aside.given) {
                    aside.attempts = aside.attempts.saturating_add(u32::from(alone));
                    aside.alone = true;
                }
            }
        }
        self.take_back();
    }

    /// Nothing is in anybody's hands.
    pub(super) fn take_back(&mut self) {
        self.given = Given::Nothing;
        self.aside.iter_mut().for_each(|aside| aside.given = false);
    }

    pub(super) fn aside_mut(&mut self, seq: Seq) -> Option<&mut Aside> {
        let at = self.aside.binary_search_by_key(&seq, |a| a.seq).ok()?;
        self.aside.get_mut(at)
    }

    pub(super) fn put_aside(&mut self, aside: Aside) {
        match self.aside.binary_search_by_key(&aside.seq, |a| a.seq) {
            Ok(at) => self.aside[at] = aside,
            Err(at) => self.aside.insert(at, aside),
        }
    }

    pub(super) fn take_aside(&mut self, seq: Seq) -> Option<Aside> {
        let at = self.aside.binary_search_by_key(&seq, |a| a.seq).ok()?;
        Some(self.aside.remove(at))
    }

    /// The row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.aside.len() * 8 + self.marks.len() * 40);
        out.push(POSITION_VERSION);
        let kind = match self.given {
            Given::Nothing => 0,
            Given::Main => 1,
            Given::Asides => 2,
        };
        out.push(kind | u8::from(self.hash.is_some()) << 7);
        put_varint(&mut out, self.next);
        out.extend(self.hash.iter().flat_map(|hash| hash.0));
        put_varint(&mut out, u64::from(self.window));
        put_varint(&mut out, u64::from(self.attempts));
        put_varint(&mut out, self.held_ms);
        put_varint(&mut out, self.aside.len() as u64);
        for aside in &self.aside {
            put_varint(&mut out, aside.seq);
            let flags =
                u64::from(aside.letter) | u64::from(aside.given) << 1 | u64::from(aside.alone) << 2;
            put_varint(&mut out, u64::from(aside.attempts) << 3 | flags);
            put_varint(&mut out, aside.held_ms);
        }
        put_varint(&mut out, self.marks.len() as u64);
        for mark in &self.marks {
            put_varint(&mut out, mark.next);
            out.extend(mark.hash.0);
        }
        // A checksum of its own: a user's store may have none, and a wrong offset is the worst that can happen to a consumer.
        let sum = crc32c::crc32c(&out);
        out.extend(sum.to_be_bytes());
        out
    }

    /// Reads a row; there is one encoding of each.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn decode(row: &[u8]) -> Result<Self, RowError> {
        use RowError::Damaged;
        if row.len() > MAX_POSITION_BYTES {
            return Err(Damaged("its length"));
        }
        let (body, sum) = row.split_last_chunk::<4>().ok_or(Damaged("its end"))?;
        if crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
            return Err(Damaged("its checksum"));
        }
        let mut rest = body;
        match byte(&mut rest)? {
            POSITION_VERSION => {}
            0 => return Err(Damaged("its version")),
            found => return Err(RowError::Newer { found }),
        }
        let flags = byte(&mut rest)?;
        let next = number(&mut rest)?;
        let hash = (flags & 0x80 != 0).then(|| hash(&mut rest)).transpose()?;
        let given = match flags & 0x7f {
            0 => Given::Nothing,
            1 => Given::Main,
            2 => Given::Asides,
            _ => return Err(Damaged("what was given")),
        };
        let mut position = Self {
            next,
            hash,
            given,
            window: small(&mut rest)?,
            attempts: small(&mut rest)?,
            held_ms: number(&mut rest)?,
            aside: Vec::new(),
            marks: Vec::new(),
        };
        // Counts are not believed: each entry must be there before the next one is made room for.
        for _ in 0..number(&mut rest)? {
            let seq = number(&mut rest)?;
            let attempts = number(&mut rest)?;
            let aside = Aside {
                seq,
                attempts: u32::try_from(attempts >> 3).map_err(|_| Damaged("attempts"))?,
                letter: attempts & 1 != 0,
                given: attempts & 2 != 0,
                alone: attempts & 4 != 0,
                held_ms: number(&mut rest)?,
            };
            if position.aside.last().is_some_and(|last| last.seq >= seq) {
                return Err(Damaged("the order of what was set aside"));
            }
            position.aside.push(aside);
        }
        for _ in 0..number(&mut rest)? {
            let mark = Mark {
                next: number(&mut rest)?,
                hash: self::hash(&mut rest)?,
            };
            if position
                .marks
                .last()
                .is_some_and(|last| last.next >= mark.next)
            {
                return Err(Damaged("the order of marks"));
            }
            position.marks.push(mark);
        }
        if !rest.is_empty() || position.window == 0 || position.marks.len() > MAX_MARKS {
            return Err(Damaged("its end"));
        }
        Ok(position)
    }
}

fn byte(rest: &mut &[u8]) -> Result<u8, RowError> {
    let (&byte, tail) = rest.split_first().ok_or(RowError::Damaged("its length"))?;
    *rest = tail;
    Ok(byte)
}

fn number(rest: &mut &[u8]) -> Result<u64, RowError> {
    varint(rest).ok_or(RowError::Damaged("a number"))
}

fn small(rest: &mut &[u8]) -> Result<u32, RowError> {
    u32::try_from(number(rest)?).map_err(|_| RowError::Damaged("a number"))
}

fn hash(rest: &mut &[u8]) -> Result<EventHash, RowError> {
    let (hash, tail) = rest
        .split_first_chunk::<32>()
        .ok_or(RowError::Damaged("a hash"))?;
    *rest = tail;
    Ok(EventHash(*hash))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn some() -> Position {
        let mut position = Position::at(0, None, 4);
        for i in 1..2_000 {
            position.advance(i * 100, EventHash([i as u8; 32]), 1_000);
        }
        for seq in [9, 3, 7] {
            position.put_aside(Aside {
                seq,
                attempts: seq as u32,
                held_ms: 5,
                letter: seq == 7,
                given: seq == 7,
                alone: seq == 9,
            });
        }
        position.given = Given::Asides;
        position
    }

    #[test]
    fn a_row_reads_as_it_was_written_and_every_flip_is_found() {
        for position in [some(), Position::at(0, None, 1)] {
            let row = position.encode();
            assert_eq!(Position::decode(&row), Ok(position));
            for bit in 0..row.len() * 8 {
                let mut bad = row.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Position::decode(&bad).is_err(), "bit {bit}");
            }
            for cut in 0..row.len() {
                assert!(Position::decode(&row[..cut]).is_err());
            }
        }
    }

    #[test]
    fn marks_lie_the_wider_apart_the_older_they_are() {
        let marks = some().marks;
        assert_eq!(marks.len(), MAX_MARKS);
        let ages: Vec<u64> = marks.iter().map(|mark| 199_900 - mark.next).collect();
        assert!(*ages.last().unwrap() < 2 * MARK_EVERY, "{ages:?}");
        assert!(ages[0] > 100_000, "{ages:?}");
    }

    #[test]
    fn a_crash_closes_in_on_one_event_before_it_counts() {
        let mut position = Position::at(0, None, 1_000);
        let mut seen = Vec::new();
        for _ in 0..4 {
            position.given = Given::Main;
            position.crash();
            seen.push((position.window, position.attempts));
        }
        assert_eq!(seen, [(31, 0), (1, 0), (1, 1), (1, 2)]);
    }

    #[test]
    fn a_crash_with_several_that_were_set_aside_gives_them_alone_first() {
        let mut position = some();
        position
            .aside
            .iter_mut()
            .for_each(|aside| aside.given = true);
        let before: Vec<u32> = position.aside.iter().map(|aside| aside.attempts).collect();
        position.crash();
        assert!(
            position
                .aside
                .iter()
                .all(|aside| aside.alone && !aside.given)
        );
        assert_eq!(
            before,
            position
                .aside
                .iter()
                .map(|a| a.attempts)
                .collect::<Vec<_>>()
        );
        (position.given, position.aside[0].given) = (Given::Asides, true);
        position.crash();
        assert_eq!(position.aside[0].attempts, before[0] + 1);
    }
}
