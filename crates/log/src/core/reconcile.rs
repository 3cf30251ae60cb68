//! What differs between two sets of feeds, in a few messages whatever their number (specs/log-replication.md §5).
//!
//! Both sides keep the last batch of each feed, sorted. One side sends the fingerprint of everything, cut into ranges; the other one answers
//! for each range that differs: with fingerprints of sixteen parts of it, or, where few feeds are left, with their last batches. A
//! fingerprint is the sum of the hashes of what it covers, so equal sets have equal ones and a hash of 256 bits has to be broken to pretend it.
//! Logarithmic in the number of feeds, and silent where there is nothing to say.

use crate::feed::{FeedId, Seq};
use ring::digest::{SHA256, digest};
use std::{collections::BTreeMap, ops::Bound};

/// Parts of a range that differs.
pub const PARTS: usize = 16;
/// Ranges with so few feeds are listed.
pub const LEAF: usize = 16;
/// Most last batches in one message; about 110 bytes each, at most 400.
pub const MAX_TIPS: usize = 2_048;
/// Most ranges in one message.
pub const MAX_RANGES: usize = 4_096;

/// The last batch of a feed, or of one branch of it where its author forked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tip {
    /// The feed.
    pub feed: FeedId,
    /// One behind its last event.
    pub next: Seq,
    /// Digest of the batch's CID.
    pub batch: [u8; 32],
}

/// A sum of hashes, hashed.
pub type Fingerprint = [u8; 16];

/// From `lower` on and before `upper`; none is the end of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first feed that belongs to it.
    pub lower: Option<FeedId>,
    /// The first that does not.
    pub upper: Option<FeedId>,
    /// What the sender has in it.
    pub content: Content,
}

/// What the sender has in a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Only its fingerprint: speak up if yours is another.
    Fingerprint(Fingerprint),
    /// Last batches.
    Tips {
        /// Those of the sender.
        tips: Vec<Tip>,
        /// All of its, and the receiver is to answer with its own where they differ. Otherwise it is such an answer.
        answer: bool,
    },
}

/// The last batches of all feeds.
#[derive(Debug, Default)]
pub struct Tips {
    feeds: BTreeMap<FeedId, Vec<Held>>,
}

#[derive(Debug, Clone)]
struct Held {
    next: Seq,
    batch: [u8; 32],
    hash: [u64; 4],
}

impl Tips {
    /// Sets those of a feed; none forgets it. Returns whether anything changed.
    pub fn set(&mut self, feed: &FeedId, tips: &[(Seq, [u8; 32])]) -> bool {
        let same = |held: &Vec<Held>| {
            held.len() == tips.len()
                && held
                    .iter()
                    .zip(tips)
                    .all(|(held, tip)| (held.next, held.batch) == *tip)
        };
        if tips.is_empty() {
            return self.feeds.remove(feed).is_some();
        }
        if self.feeds.get(feed).is_some_and(same) {
            return false;
        }
        let hold = |(next, batch): &(Seq, [u8; 32])| Held {
            next: *next,
            batch: *batch,
            hash: hash_of(feed, *next, batch),
        };
        let mut held: Vec<Held> = tips.iter().map(hold).collect();
        held.sort_by_key(|held| (held.next, held.batch));
        self.feeds.insert(feed.clone(), held);
        true
    }

    /// Those of a feed; the longest branch last.
    pub fn of(&self, feed: &FeedId) -> impl DoubleEndedIterator<Item = (Seq, [u8; 32])> {
        let held = self.feeds.get(feed).map(Vec::as_slice).unwrap_or_default();
        held.iter().map(|held| (held.next, held.batch))
    }

    /// Whether this is the last batch of a branch here.
    pub fn contains(&self, tip: &Tip) -> bool {
        self.of(&tip.feed).any(|held| held == (tip.next, tip.batch))
    }

    /// How many feeds.
    pub fn len(&self) -> usize {
        self.feeds.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Tip> {
        self.feeds.iter().flat_map(|(feed, held)| {
            held.iter().map(|held| Tip {
                feed: feed.clone(),
                next: held.next,
                batch: held.batch,
            })
        })
    }

    /// Feeds of an author.
    pub fn of_author(&self, author: crate::feed::Author) -> usize {
        let range = self.feeds.range(first_of(author)..);
        range.take_while(|(feed, _)| feed.author == author).count()
    }

    fn range<'a, F: Fn(&FeedId) -> bool + 'a>(
        &'a self,
        lower: Option<&FeedId>,
        upper: Option<&FeedId>,
        filter: &'a F,
    ) -> impl Iterator<Item = (&'a FeedId, &'a Vec<Held>)> + use<'a, F> {
        // A range that ends before it begins is empty; the map would panic.
        let is_empty = matches!((lower, upper), (Some(lower), Some(upper)) if lower >= upper);
        let lower = lower.map_or(Bound::Unbounded, |feed| Bound::Included(feed.clone()));
        let upper = match upper {
            _ if is_empty => return None.into_iter().flatten(),
            Some(feed) => Bound::Excluded(feed.clone()),
            None => Bound::Unbounded,
        };
        let found = self
            .feeds
            .range((lower, upper))
            .filter(|(feed, _)| filter(feed));
        Some(found).into_iter().flatten()
    }

    fn fingerprint<F: Fn(&FeedId) -> bool>(
        &self,
        lower: Option<&FeedId>,
        upper: Option<&FeedId>,
        filter: &F,
    ) -> (Fingerprint, usize) {
        let (mut sum, mut feeds) = (Sum::default(), 0);
        for (_, held) in self.range(lower, upper, filter) {
            feeds += 1;
            held.iter().for_each(|held| sum.add(&held.hash));
        }
        (sum.finish(), feeds)
    }

    /// The first message: everything that `filter` lets through.
    pub fn begin<F: Fn(&FeedId) -> bool>(&self, filter: &F) -> Vec<Range> {
        self.split(None, None, filter)
    }

    /// What is to be answered to the ranges of the other side, and what it has that is not the same here. No ranges: there is nothing more to say.
    ///
    /// Work is one walk over the feeds of the ranges; the decoder sees to it that these do not overlap.
    pub fn answer<F: Fn(&FeedId) -> bool>(
        &self,
        ranges: &[Range],
        filter: &F,
    ) -> (Vec<Range>, Vec<Tip>) {
        let mut answer = Answer {
            ranges: Vec::new(),
            news: Vec::new(),
            room: MAX_TIPS,
        };
        for range in ranges {
            let (lower, upper) = (range.lower.as_ref(), range.upper.as_ref());
            match &range.content {
                Content::Fingerprint(theirs) => {
                    let (ours, feeds) = self.fingerprint(lower, upper, filter);
                    if ours == *theirs {
                        continue;
                    }
                    if feeds > LEAF {
                        let parts = self.split(lower, upper, filter);
                        answer.ranges.extend(parts);
                    } else {
                        self.list(lower, upper, filter, &[], true, &mut answer);
                    }
                }
                Content::Tips {
                    tips,
                    answer: wants,
                } => {
                    let new = |tip: &&Tip| filter(&tip.feed) && !self.contains(tip);
                    answer.news.extend(tips.iter().filter(new).cloned());
                    if *wants {
                        self.list(lower, upper, filter, tips, false, &mut answer);
                    }
                }
            }
        }
        answer.ranges.truncate(MAX_RANGES);
        (answer.ranges, answer.news)
    }

    /// Lists what is in a range and not in `known`. What finds no room in this message is offered again by its fingerprint.
    fn list<F: Fn(&FeedId) -> bool>(
        &self,
        lower: Option<&FeedId>,
        upper: Option<&FeedId>,
        filter: &F,
        known: &[Tip],
        wants: bool,
        answer: &mut Answer,
    ) {
        let mut tips = Vec::new();
        let mut rest = None;
        for (feed, held) in self.range(lower, upper, filter) {
            if held.len() > answer.room {
                rest = Some(feed.clone());
                break;
            }
            for held in held {
                let tip = Tip {
                    feed: feed.clone(),
                    next: held.next,
                    batch: held.batch,
                };
                if known.binary_search(&tip).is_err() {
                    answer.room -= 1;
                    tips.push(tip);
                }
            }
        }
        let end = rest.clone().or(upper.cloned());
        if wants || !tips.is_empty() {
            answer.ranges.push(Range {
                lower: lower.cloned(),
                upper: end,
                content: Content::Tips {
                    tips,
                    answer: wants,
                },
            });
        }
        if let Some(rest) = rest {
            let (fingerprint, _) = self.fingerprint(Some(&rest), upper, filter);
            answer.ranges.push(Range {
                lower: Some(rest),
                upper: upper.cloned(),
                content: Content::Fingerprint(fingerprint),
            });
        }
    }

    /// Fingerprints of equal parts of a range.
    fn split<F: Fn(&FeedId) -> bool>(
        &self,
        lower: Option<&FeedId>,
        upper: Option<&FeedId>,
        filter: &F,
    ) -> Vec<Range> {
        let feeds = self.range(lower, upper, filter).count();
        let part = feeds.div_ceil(PARTS).max(1);
        let mut bounds: Vec<Option<FeedId>> = vec![lower.cloned()];
        let starts = self.range(lower, upper, filter).enumerate();
        let starts = starts.filter(|(i, _)| *i > 0 && i % part == 0);
        bounds.extend(starts.map(|(_, (feed, _))| Some(feed.clone())));
        bounds.push(upper.cloned());
        let ranges = bounds.windows(2).map(|pair| {
            let (fingerprint, _) = self.fingerprint(pair[0].as_ref(), pair[1].as_ref(), filter);
            Range {
                lower: pair[0].clone(),
                upper: pair[1].clone(),
                content: Content::Fingerprint(fingerprint),
            }
        });
        ranges.collect()
    }
}

struct Answer {
    ranges: Vec<Range>,
    news: Vec<Tip>,
    room: usize,
}

/// A sum modulo 2^256.
#[derive(Default)]
struct Sum([u64; 4], u64);

impl Sum {
    fn add(&mut self, hash: &[u64; 4]) {
        let mut carry = false;
        for (ours, theirs) in self.0.iter_mut().zip(hash) {
            let (sum, first) = ours.overflowing_add(*theirs);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*ours, carry) = (sum, first || second);
        }
        self.1 += 1;
    }

    fn finish(&self) -> Fingerprint {
        let words = self.0.iter().chain([&self.1]);
        let bytes: Vec<u8> = words.flat_map(|word| word.to_be_bytes()).collect();
        let hash = digest(&SHA256, &bytes);
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hash.as_ref()[..16]);
        fingerprint
    }
}

fn hash_of(feed: &FeedId, next: Seq, batch: &[u8; 32]) -> [u64; 4] {
    let mut bytes = b"gemba log tip 1".to_vec();
    bytes.extend_from_slice(batch);
    bytes.extend_from_slice(&next.to_be_bytes());
    feed.put(&mut bytes);
    let hash = digest(&SHA256, &bytes);
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(hash.as_ref().chunks_exact(8)) {
        *word = chunk
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    }
    words
}

/// No feed of this author sorts before it.
pub(super) fn first_of(author: crate::feed::Author) -> FeedId {
    FeedId {
        author,
        stream: lowest_stream(),
        epoch: crate::feed::Epoch(0),
    }
}

/// No name of a stream sorts before it.
fn lowest_stream() -> crate::stream::StreamName {
    match crate::stream::StreamName::new("$-") {
        Ok(name) => name,
        Err(_) => unreachable!("two characters that names have"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::feed::{Author, Epoch};
    use std::collections::BTreeSet;

    fn feed(i: u32) -> FeedId {
        let mut author = [0; 32];
        author[..4].copy_from_slice(&i.wrapping_mul(0x9e37_79b9).to_be_bytes());
        FeedId {
            author: Author(author),
            stream: format!("s/{}", i % 7).parse().unwrap(),
            epoch: Epoch(0),
        }
    }

    /// Plays both sides; returns the messages, and what each side learned.
    fn play(a: &Tips, b: &Tips) -> (usize, BTreeSet<Tip>, BTreeSet<Tip>) {
        let all = |_: &FeedId| true;
        let (mut learned, mut rounds) = ([BTreeSet::new(), BTreeSet::new()], 1);
        let mut ranges = a.begin(&all);
        while !ranges.is_empty() {
            let side = rounds % 2;
            let (answer, news) = [a, b][side].answer(&ranges, &all);
            learned[side].extend(news);
            ranges = answer;
            rounds += 1;
            assert!(rounds < 200, "it ends");
        }
        let [of_a, of_b] = learned;
        (rounds, of_a, of_b)
    }

    fn check(a: &Tips, b: &Tips) -> usize {
        let (rounds, of_a, of_b) = play(a, b);
        let (in_a, in_b): (BTreeSet<Tip>, BTreeSet<Tip>) = (a.iter().collect(), b.iter().collect());
        assert_eq!(of_a, in_b.difference(&in_a).cloned().collect());
        assert_eq!(of_b, in_a.difference(&in_b).cloned().collect());
        rounds
    }

    fn tips(feeds: impl Iterator<Item = u32>) -> Tips {
        let mut tips = Tips::default();
        for i in feeds {
            tips.set(&feed(i), &[(u64::from(i) + 1, [i as u8; 32])]);
        }
        tips
    }

    #[test]
    fn l10_differences_are_found_in_a_few_messages_whatever_the_number_of_feeds() {
        assert_eq!(
            check(&tips(0..50_000), &tips(0..50_000)),
            2,
            "equal sets: one message and no answer"
        );
        for differences in [1, 10, 100] {
            let a = tips(0..50_000);
            let mut b = tips(0..50_000);
            for i in 0..differences {
                let at = i * 499 % 50_000;
                match i % 3 {
                    0 => drop(b.set(&feed(at), &[])),
                    1 => drop(b.set(&feed(at), &[(9, [9; 32])])),
                    _ => drop(b.set(&feed(at + 1_000_000), &[(1, [1; 32])])),
                }
            }
            assert!(check(&a, &b) <= 7, "{differences} differences");
        }
    }

    #[test]
    fn one_side_may_be_empty_or_far_ahead() {
        assert_eq!(check(&tips(0..0), &tips(0..0)), 2);
        assert!(check(&tips(0..0), &tips(0..10_000)) <= 16);
        assert!(check(&tips(0..10_000), &tips(0..0)) <= 16);
        assert!(check(&tips(0..10_000), &tips(9_000..9_003)) <= 20);
    }

    #[test]
    fn l5_both_branches_of_a_fork_are_told() {
        let (mut a, mut b) = (tips(0..100), tips(0..100));
        a.set(&feed(7), &[(8, [1; 32])]);
        b.set(&feed(7), &[(8, [2; 32]), (6, [3; 32])]);
        check(&a, &b);
        let all = [(8, [1; 32]), (8, [2; 32]), (6, [3; 32])];
        a.set(&feed(7), &all);
        b.set(&feed(7), &[all[2], all[1], all[0]]);
        assert_eq!(
            check(&a, &b),
            2,
            "the order in which they came is of no account"
        );
    }

    #[test]
    fn random_sets_are_always_told_apart() {
        gemba_testkit::check!(40, |rng| {
            let n = rng.length(2_000) as u32;
            let (mut a, mut b) = (Tips::default(), Tips::default());
            for i in 0..n {
                let tip = (rng.below(3) + 1, [rng.below(3) as u8; 32]);
                match rng.below(5) {
                    0 => drop(a.set(&feed(i), &[tip])),
                    1 => drop(b.set(&feed(i), &[tip])),
                    _ => {
                        a.set(&feed(i), &[tip]);
                        b.set(&feed(i), &[tip]);
                    }
                }
            }
            check(&a, &b);
        });
    }
}
