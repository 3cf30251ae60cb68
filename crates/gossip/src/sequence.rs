//! Sequence numbers that never go back (specs/gossip.md §5).
//!
//! Kubo drops every message whose number is not above the highest that it ever saw of the author, so a number that goes back, after a
//! restart with a wrong clock or from an old backup, makes a node mute. Numbers are therefore reserved on disk in blocks before they are
//! used; a start begins behind the last block, or at the wall clock if that is further.

use std::io;

/// Numbers that are reserved at a time.
pub const BLOCK: u64 = 1 << 20;

/// Where the reservation is kept. Calls may block: the driver makes them on a thread of its own.
pub trait SequenceStore: Send {
    /// The first number that was never reserved; none at the very first start.
    ///
    /// # Errors
    /// Of the medium. A damaged file is an error, not "none": a number that goes back is worse than a start that fails.
    fn load(&mut self) -> io::Result<Option<u64>>;

    /// Makes `upto` the first number that is not reserved. Returns when that is durable.
    ///
    /// # Errors
    /// Of the medium.
    fn reserve(&mut self, upto: u64) -> io::Result<()>;
}

/// The highest number of an author that was delivered or sent on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorNumber {
    /// The author's id, as messages have it. At most 255 bytes.
    pub author: Box<[u8]>,
    /// The number.
    pub highest: u64,
}

/// Where the numbers of others are kept, so that a node that is started again does not deliver what its neighbours still echo. Calls of
/// [`save`](Self::save) may block: the driver makes them on a thread of its own.
pub trait ReplayStore: Send {
    /// What was saved, the author that was heard last at the end.
    ///
    /// # Errors
    /// Of the medium.
    fn load(&mut self) -> io::Result<Vec<AuthorNumber>>;

    /// Adds to what was saved: once a second at most, when something was heard. It need not survive a power cut: what is lost may be
    /// delivered once more.
    ///
    /// # Errors
    /// Of the medium. It is tried again with what comes next.
    fn save(&mut self, grown: &[AuthorNumber]) -> io::Result<()>;
}

/// A reservation that is forgotten with the process: for tests, and for nodes that start with a right clock.
#[derive(Clone, Debug, Default)]
pub struct MemorySequence(Option<u64>);

impl SequenceStore for MemorySequence {
    fn load(&mut self) -> io::Result<Option<u64>> {
        Ok(self.0)
    }

    fn reserve(&mut self, upto: u64) -> io::Result<()> {
        self.0 = Some(upto);
        Ok(())
    }
}

/// Hands out numbers within what is reserved, as a value.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// The number that is used next; none before [`Sequence::start`].
    next: Option<u64>,
    /// The first that is not reserved.
    reserved: u64,
    /// What was asked for and is not confirmed.
    asked: Option<u64>,
}

impl Sequence {
    /// Knows no number yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins behind what was `stored`, or at the wall clock in nanoseconds since 1970 if that is further. A clock beyond the year 2200 is
    /// not believed where something is stored: numbers would never come back from there.
    pub fn start(&mut self, stored: Option<u64>, wall_nanos: u64) {
        const YEAR_2200: u64 = 7_258_118_400 * 1_000_000_000;
        let wall = if wall_nanos < YEAR_2200 {
            wall_nanos
        } else {
            0
        };
        let next = stored.unwrap_or(0).max(wall).max(1);
        self.next = Some(next);
        self.reserved = next;
        self.asked = None;
    }

    /// Up to where a reservation is to be made now: when less than half a block is left. Asks once, until [`reserved`](Self::reserved) or
    /// [`failed`](Self::failed).
    pub fn wants(&mut self) -> Option<u64> {
        let next = self.next?;
        if self.asked.is_some() || self.reserved.saturating_sub(next) > BLOCK / 2 {
            return None;
        }
        let upto = next.saturating_add(BLOCK);
        self.asked = Some(upto);
        self.asked
    }

    /// The reservation is durable.
    pub fn reserved(&mut self, upto: u64) {
        self.reserved = self.reserved.max(upto);
        self.asked = None;
    }

    /// It is not: it will be asked for again.
    pub fn failed(&mut self) {
        self.asked = None;
    }

    /// The next number; none while nothing is reserved.
    pub fn take(&mut self) -> Option<u64> {
        let next = self.next.filter(|next| *next < self.reserved)?;
        self.next = Some(next + 1);
        Some(next)
    }

    /// Whether a number can be taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.next.is_some_and(|next| next < self.reserved)
    }

    /// Whether the number was not handed out here.
    #[must_use]
    pub fn is_unused(&self, number: u64) -> bool {
        self.next.is_some_and(|next| number >= next)
    }

    /// Somebody else used `number` with our key. If we did not use it ourselves, go on behind it and say so.
    pub fn heard(&mut self, number: u64) -> bool {
        match self.next {
            Some(next) if number >= next => {
                // Nobody comes back from the end of the numbers.
                if number < u64::MAX / 2 {
                    self.next = Some(number + 1);
                }
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process with this store, until its power is cut.
    fn run(store: &mut MemorySequence, wall: u64, take: u64) -> Vec<u64> {
        let mut sequence = Sequence::new();
        sequence.start(store.load().unwrap(), wall);
        (0..take)
            .map(|_| {
                if let Some(upto) = sequence.wants() {
                    store.reserve(upto).unwrap();
                    sequence.reserved(upto);
                }
                sequence.take().unwrap()
            })
            .collect()
    }

    #[test]
    fn numbers_grow_over_restarts_with_any_clock() {
        let mut store = MemorySequence::default();
        let mut last = 0;
        let year = 365 * 86_400 * 1_000_000_000_u64;
        for wall in [56 * year, 0, 70 * year, 69 * year, u64::MAX, 0, 3] {
            let numbers = run(&mut store, wall, 1000);
            assert!(numbers[0] > last, "{wall}");
            assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1));
            last = numbers[999];
        }
        assert!(last < 71 * year, "a clock of 2554 is not believed");
    }

    #[test]
    fn nothing_is_used_before_it_is_reserved() {
        let mut sequence = Sequence::new();
        assert_eq!((sequence.wants(), sequence.take()), (None, None));
        sequence.start(None, 100);
        let upto = sequence.wants().unwrap();
        assert_eq!(upto, 100 + BLOCK);
        assert_eq!((sequence.wants(), sequence.take()), (None, None));
        sequence.failed();
        assert_eq!(sequence.wants(), Some(upto), "asked again");
        sequence.reserved(upto);
        assert_eq!(sequence.take(), Some(100));
        // The next block is reserved long before this one ends.
        for _ in 0..BLOCK / 2 {
            sequence.take().unwrap();
        }
        let next = sequence.wants().unwrap();
        for n in 0..BLOCK / 2 - 1 {
            assert!(sequence.take().is_some(), "{n}");
        }
        assert_eq!(sequence.take(), None);
        sequence.reserved(next);
        assert_eq!(sequence.take(), Some(100 + BLOCK));
    }

    #[test]
    fn a_number_that_another_used_is_jumped_over() {
        let mut sequence = Sequence::new();
        sequence.start(None, 100);
        let upto = sequence.wants().unwrap();
        sequence.reserved(upto);
        assert_eq!(sequence.take(), Some(100));
        assert!(!sequence.heard(100), "our own");
        assert!(sequence.heard(upto + 500));
        assert_eq!(sequence.take(), None, "not reserved yet");
        let upto = sequence.wants().unwrap();
        sequence.reserved(upto);
        assert_eq!(sequence.take(), Some(100 + BLOCK + 501));
        assert!(sequence.heard(u64::MAX));
        assert_eq!(sequence.take(), Some(100 + BLOCK + 502));
    }
}
