//! Numbers of authors that were used: a message is delivered once, however long ago it was forgotten (specs/gossip.md GO-9).
//!
//! Kubo keeps the highest number of each author and drops what is not above it, which loses messages that overtake each other. Here a
//! window of 1,024 numbers below the highest one is open. A node that keeps what it knew over a restart begins with closed windows: what an
//! author used up to then is used.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::hash::Keyed;
use crate::sequence::AuthorNumber;

/// Numbers below the highest that are still told apart.
const WINDOW: u64 = 1024;
const WORDS: usize = WINDOW as usize / 64;
/// Honest numbers are nanoseconds since 1970 or counters; the year 2116 lies below this. An author above it numbers at random.
const RANDOM: u64 = 1 << 62;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    Yes,
    /// Used before, or too far back to be told.
    No,
}

/// Authors of one message have at least this share of the places: one in so many. Guess.
const NEWCOMERS: usize = 8;

/// The windows of all authors. Those of one message leave before others, the ones heard longest ago first: fresh keys cost nothing, and must
/// not push out who is known.
pub(super) struct Replay {
    authors: HashMap<Box<[u8]>, Author, Keyed>,
    /// When each was heard, for the one that leaves: of more than one message, and of one.
    order: BTreeMap<u64, Box<[u8]>>,
    newcomers: BTreeMap<u64, Box<[u8]>>,
    clock: u64,
    max: usize,
    /// Whose highest number grew since it was asked for; none while nobody keeps it.
    grown: Option<BTreeSet<Box<[u8]>>>,
}

struct Author {
    heard: u64,
    highest: u64,
    /// Bit `n % 1024` is number `n`.
    used: [u64; WORDS],
    random: bool,
}

impl Replay {
    pub(super) fn new(max: usize, keyed: Keyed) -> Self {
        Self {
            authors: HashMap::with_hasher(keyed),
            order: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            clock: 0,
            max,
            grown: None,
        }
    }

    /// Takes what an earlier run knew, and notes from now on what changes.
    pub(super) fn load(&mut self, stored: Vec<AuthorNumber>) {
        for AuthorNumber { author, highest } in stored {
            if highest >= RANDOM {
                continue;
            }
            self.mark(&author, highest);
            self.promote(&author);
            if let Some(known) = self.authors.get_mut(&author) {
                known.close(highest);
            }
        }
        self.grown = Some(BTreeSet::new());
    }

    /// The authors whose highest number grew since the last call.
    pub(super) fn take_grown(&mut self) -> Vec<AuthorNumber> {
        let Some(grown) = &mut self.grown else {
            return Vec::new();
        };
        let names = std::mem::take(grown);
        let known = names.into_iter().filter_map(|author| {
            let known = self.authors.get(&author).filter(|known| !known.random)?;
            let highest = known.highest;
            Some(AuthorNumber { author, highest })
        });
        known.collect()
    }

    /// Whether the number was not used before. Changes nothing: who is not verified proves nothing.
    pub(super) fn check(&self, author: &[u8], number: u64) -> Fresh {
        match self.authors.get(author) {
            Some(known) if !known.is_fresh(number) => Fresh::No,
            _ => Fresh::Yes,
        }
    }

    /// The number was used, by the author itself.
    pub(super) fn mark(&mut self, author: &[u8], number: u64) {
        self.clock += 1;
        let clock = self.clock;
        let highest = self.authors.get(author).map(|known| known.highest);
        if let Some(grown) = &mut self.grown
            && highest.is_none_or(|highest| number > highest)
            && !grown.contains(author)
        {
            grown.insert(author.into());
        }
        if let Some(known) = self.authors.get_mut(author) {
            known.mark(number);
            return self.promote(author);
        }
        if self.authors.len() >= self.max {
            self.make_room();
        }
        let mut new = Author {
            heard: clock,
            highest: number,
            used: [0; WORDS],
            random: false,
        };
        new.mark(number);
        self.newcomers.insert(clock, author.into());
        self.authors.insert(author.into(), new);
    }

    /// An author was heard again, or is known from an earlier run.
    fn promote(&mut self, author: &[u8]) {
        if let Some(known) = self.authors.get_mut(author) {
            let before = std::mem::replace(&mut known.heard, self.clock);
            self.newcomers.remove(&before);
            self.order.remove(&before);
            self.order.insert(self.clock, author.into());
        }
    }

    fn make_room(&mut self) {
        let among = match self.newcomers.len() >= self.max / NEWCOMERS {
            true => &mut self.newcomers,
            false => &mut self.order,
        };
        let Some((_, oldest)) = among.pop_first() else {
            return;
        };
        self.authors.remove(&oldest);
        if let Some(grown) = &mut self.grown {
            grown.remove(&oldest);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.authors.len()
    }

    /// Bytes, about.
    pub(super) fn memory(&self) -> usize {
        // Two copies of the name, and the tree's share.
        self.authors.capacity() * size_of::<(Box<[u8]>, Author)>()
            + self.authors.len() * (2 * 48 + 48)
    }
}

impl Author {
    fn is_fresh(&self, number: u64) -> bool {
        if self.random || number > self.highest {
            return true;
        }
        self.highest - number < WINDOW && self.used[word(number)] & bit(number) == 0
    }

    /// All numbers up to `number` are used.
    fn close(&mut self, number: u64) {
        if number == self.highest {
            self.used = [u64::MAX; WORDS];
            return;
        }
        let lowest = number
            .saturating_sub(WINDOW - 1)
            .max(self.highest.saturating_sub(WINDOW - 1));
        for used in lowest..=number {
            self.used[word(used)] |= bit(used);
        }
    }

    fn mark(&mut self, number: u64) {
        self.random |= number >= RANDOM;
        if number > self.highest {
            // The numbers between come into the window: not used yet.
            if number - self.highest >= WINDOW {
                self.used = [0; WORDS];
            } else {
                for between in self.highest + 1..number {
                    self.used[word(between)] &= !bit(between);
                }
            }
            self.highest = number;
        }
        self.used[word(number)] |= bit(number);
    }
}

fn word(number: u64) -> usize {
    (number % WINDOW / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gemba_testkit::Rng;

    use super::*;

    /// Against a set that forgets nothing.
    #[test]
    fn a_window_is_what_a_set_with_a_horizon_is() {
        let mut rng = Rng::new(7);
        let mut replay = Replay::new(16, Keyed::new(1));
        let (mut used, mut highest) = (BTreeSet::new(), 0_u64);
        for _ in 0..200_000 {
            let number = match rng.below(4) {
                0 => highest + rng.range(1..1500),
                1 => highest + 1,
                _ => highest.saturating_sub(rng.below(1200)),
            };
            let fresh = number > highest
                || used.is_empty()
                || (highest - number < WINDOW && !used.contains(&number));
            assert_eq!(
                replay.check(b"a", number) == Fresh::Yes,
                fresh,
                "{number} of {highest}"
            );
            if fresh {
                replay.mark(b"a", number);
                used.insert(number);
                highest = highest.max(number);
            }
        }
    }

    /// A restart: what was used stays used, the numbers between that were not come too late, and what follows is new.
    #[test]
    fn go_9_a_window_that_was_kept_is_closed() {
        let mut replay = Replay::new(16, Keyed::new(1));
        assert!(replay.take_grown().is_empty(), "nobody keeps it");
        replay.load(Vec::new());
        for number in [5000, 5001, 5003, 4990] {
            replay.mark(b"a", number);
        }
        replay.mark(b"random", u64::MAX - 1);
        let kept = replay.take_grown();
        let author = b"a".as_slice().into();
        assert_eq!(
            kept,
            [AuthorNumber {
                author,
                highest: 5003
            }]
        );
        assert!(replay.take_grown().is_empty());
        replay.mark(b"a", 4991);
        assert!(replay.take_grown().is_empty(), "it did not grow");
        let mut after = Replay::new(16, Keyed::new(2));
        // Something came before the store was read.
        after.mark(b"a", 5010);
        after.load(kept);
        for (number, fresh) in [
            (4990, false),
            (5002, false),
            (5003, false),
            (5004, true),
            (5010, false),
            (5011, true),
        ] {
            assert_eq!(after.check(b"a", number) == Fresh::Yes, fresh, "{number}");
        }
        assert_eq!(after.check(b"random", 17), Fresh::Yes);
    }

    #[test]
    fn authors_are_bounded_and_the_one_heard_longest_ago_leaves() {
        let mut replay = Replay::new(16, Keyed::new(1));
        for author in 0..16_u8 {
            replay.mark(&[author], 5);
        }
        replay.mark(&[0], 6);
        replay.mark(&[200], 5);
        let places = (replay.order.len(), replay.newcomers.len());
        assert_eq!((replay.len(), places), (16, (1, 15)));
        assert_eq!(replay.check(&[0], 5), Fresh::No);
        assert_eq!(replay.check(&[1], 5), Fresh::Yes, "forgotten");
        assert_eq!(replay.check(&[2], 5), Fresh::No);
    }

    /// As many fresh keys as there are places, one message each, and the numbers of honest authors could be used again.
    #[test]
    fn g3_authors_of_one_message_do_not_push_out_those_of_more() {
        let mut replay = Replay::new(16, Keyed::new(1));
        replay.load(vec![AuthorNumber {
            author: b"kept".as_slice().into(),
            highest: 9,
        }]);
        for author in 0..9_u8 {
            replay.mark(&[author], 5);
            replay.mark(&[author], 6);
        }
        for fresh in 0..1000_u16 {
            replay.mark(&fresh.to_be_bytes(), 5);
        }
        assert_eq!(replay.len(), 16);
        assert_eq!(replay.check(b"kept", 9), Fresh::No);
        for author in 0..9 {
            assert_eq!(replay.check(&[author], 6), Fresh::No, "{author}");
        }
        // Nor do those of more keep out all others.
        for author in 100..200_u8 {
            replay.mark(&[author], 5);
            replay.mark(&[author], 6);
        }
        assert_eq!(replay.len(), 16);
        assert_eq!(replay.check(&[199], 5), Fresh::No);
    }

    #[test]
    fn an_author_that_numbers_at_random_is_not_held_to_order() {
        let mut replay = Replay::new(16, Keyed::new(1));
        replay.mark(b"r", u64::MAX - 3);
        assert_eq!(replay.check(b"r", 17), Fresh::Yes);
        replay.mark(b"c", 1_900_000_000_000_000_000);
        assert_eq!(replay.check(b"c", 17), Fresh::No);
        replay.mark(b"d", u64::MAX);
        replay.mark(b"d", 0);
        assert_eq!(replay.check(b"d", 0), Fresh::Yes);
    }
}
