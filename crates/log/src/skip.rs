//! Skip links: which earlier batches a batch names, so that a reader who has the last one finds any other in few steps
//! (specs/log.md §4). Where they lead follows from the batch's number alone.

use crate::batch::DIGEST;

/// Most skip links of a batch. A feed of 2^53 batches would need no more than 52.
pub const MAX_SKIPS: usize = 52;

/// How many skip links the batch with this number has: as many as its number can be halved. They lead back by 2, 4, 8 … batches.
#[must_use]
pub fn count(number: u64) -> usize {
    match number {
        0 => 0,
        _ => (number.trailing_zeros() as usize).min(MAX_SKIPS),
    }
}

/// The batch that the link at place `i` (0, 1 …) of this one leads to.
#[must_use]
pub fn target(number: u64, i: usize) -> u64 {
    number - (2 << i)
}

/// The next batch on the shortest way back from `from` to `to`, which is smaller. Taken again and again it takes at most
/// 2 × log2(from) steps.
#[must_use]
pub fn next(from: u64, to: u64) -> u64 {
    let mut links = (0..count(from)).rev().map(|i| target(from, i));
    links
        .find(|target| *target >= to)
        .unwrap_or(from.saturating_sub(1))
}

/// What the next batch of a feed needs to know of the ones before it: for each power of two, the last batch whose number it divides.
/// At most 54 digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spine {
    last: Vec<[u8; DIGEST]>,
}

impl Spine {
    /// Notes the batch with this number; they come in order, from 0.
    pub fn push(&mut self, number: u64, batch: [u8; DIGEST]) {
        if self.last.is_empty() {
            self.last.push(batch);
        }
        if number == 0 {
            return;
        }
        let levels = number.trailing_zeros() as usize + 1;
        // Number 0 is divided by everything, so it stands on top for all levels that no other number has reached.
        while self.last.len() <= levels {
            self.last.extend_from_within(self.last.len() - 1..);
        }
        self.last[..levels].fill(batch);
    }

    /// The links of the batch with this number, which is the next one.
    #[must_use]
    pub fn links(&self, number: u64) -> Vec<[u8; DIGEST]> {
        (1..=count(number)).map(|level| self.at(level)).collect()
    }

    fn at(&self, level: usize) -> [u8; DIGEST] {
        let last = self.last.get(level).or(self.last.last());
        last.copied().unwrap_or_default()
    }

    pub(crate) fn digests(&self) -> &[[u8; DIGEST]] {
        &self.last
    }

    pub(crate) fn from_digests(last: Vec<[u8; DIGEST]>) -> Self {
        Self { last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> [u8; DIGEST] {
        let mut digest = [0; DIGEST];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        digest
    }

    /// LOG-20: the spine always knows where the next links lead.
    #[test]
    fn log_20_links_lead_where_the_number_says() {
        let mut spine = Spine::default();
        for number in 0..5_000 {
            let links = spine.links(number);
            assert_eq!(links.len(), count(number));
            for (i, link) in links.iter().enumerate() {
                assert_eq!(*link, name(target(number, i)), "{number}, link {i}");
            }
            spine.push(number, name(number));
            assert!(spine.digests().len() <= 14);
        }
    }

    /// LOG-20: any batch is found in few steps.
    #[test]
    fn log_20_the_way_back_is_short() {
        for from in [1_u64, 2, 1_000, 65_535, 65_536, 1 << 40, (1 << 40) - 1] {
            for to in [0, 1, from / 3, from / 2, from - 1] {
                let (mut at, mut steps) = (from, 0);
                while at > to {
                    at = next(at, to);
                    steps += 1;
                }
                assert_eq!(at, to);
                assert!(
                    steps <= 2 * (64 - from.leading_zeros()),
                    "{from} to {to}: {steps}"
                );
            }
        }
    }
}
