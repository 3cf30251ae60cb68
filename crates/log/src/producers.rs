//! What producers have appended, so that a retry is answered with the first result (specs/log.md §7).

use std::collections::BTreeMap;

use crate::feed::{Epoch, Seq};
use crate::format::{Take, put_text};
use crate::stream::StreamName;

/// Runs that are remembered of a producer: consecutive numbers at consecutive places are one. A guess: retries come soon.
const RUNS: usize = 16;

/// Consecutive numbers of a producer, appended at consecutive places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    number: u64,
    len: u64,
    epoch: Epoch,
    seq: Seq,
}

/// What is remembered of one producer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    runs: Vec<Run>,
    /// When it was last used, in uses of any producer.
    used: u64,
}

/// What is known of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It comes next.
    New,
    /// It was appended there.
    At(Epoch, Seq),
    /// It is below what was appended, and not remembered; this is.
    Old(u64),
}

impl Numbers {
    pub(crate) fn find(&self, number: u64) -> Known {
        let Some(last) = self.runs.last() else {
            return Known::New;
        };
        if number >= last.number + last.len {
            return Known::New;
        }
        let holds = |run: &&Run| number >= run.number && number - run.number < run.len;
        match self.runs.iter().rev().find(holds) {
            Some(run) => Known::At(run.epoch, run.seq + (number - run.number)),
            None => Known::Old(self.runs[0].number),
        }
    }

    pub(crate) fn note(&mut self, number: u64, epoch: Epoch, seq: Seq) {
        if self.find(number) != Known::New {
            return;
        }
        if let Some(last) = self.runs.last_mut()
            && number == last.number + last.len
            && epoch == last.epoch
            && seq == last.seq + last.len
        {
            last.len += 1;
            return;
        }
        if self.runs.len() == RUNS {
            self.runs.remove(0);
        }
        self.runs.push(Run {
            number,
            len: 1,
            epoch,
            seq,
        });
    }
}

/// Which producer of which stream.
pub(crate) type ProducerKey = (StreamName, String);

/// The producers of this log, at most so many: who was quiet longest is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Producers {
    of: BTreeMap<ProducerKey, Numbers>,
    uses: u64,
    max: usize,
    /// How many were forgotten.
    pub(crate) forgotten: u64,
}

impl Producers {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    pub(crate) fn of(&self, key: &ProducerKey) -> Numbers {
        self.of.get(key).cloned().unwrap_or_default()
    }

    pub(crate) fn put(&mut self, key: ProducerKey, mut numbers: Numbers) {
        self.uses += 1;
        numbers.used = self.uses;
        self.of.insert(key, numbers);
        while self.of.len() > self.max {
            let quiet = self.of.iter().min_by_key(|(_, numbers)| numbers.used);
            let Some(key) = quiet.map(|(key, _)| key.clone()) else {
                return;
            };
            self.of.remove(&key);
            self.forgotten += 1;
        }
    }

    pub(crate) fn note(&mut self, key: ProducerKey, number: u64, epoch: Epoch, seq: Seq) {
        let mut numbers = self.of(&key);
        numbers.note(number, epoch, seq);
        self.put(key, numbers);
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.of.len() as u32).to_le_bytes());
        let mut sorted: Vec<_> = self.of.iter().collect();
        sorted.sort_by_key(|(_, numbers)| numbers.used);
        for ((stream, id), numbers) in sorted {
            put_text(stream.as_str(), out);
            put_text(id, out);
            out.extend_from_slice(&(numbers.runs.len() as u32).to_le_bytes());
            for run in &numbers.runs {
                for number in [run.number, run.len, run.epoch.0, run.seq] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
    }

    pub(crate) fn decode(from: &mut Take<'_>, max: usize) -> Option<Self> {
        let mut producers = Self::new(max);
        for _ in 0..from.u32()? {
            let stream = StreamName::new(from.text()?).ok()?;
            let id = from.text()?.to_owned();
            let runs = from.u32()? as usize;
            if runs > RUNS {
                return None;
            }
            let mut numbers = Numbers::default();
            for _ in 0..runs {
                numbers.runs.push(Run {
                    number: from.u64()?,
                    len: from.u64()?,
                    epoch: Epoch(from.u64()?),
                    seq: from.u64()?,
                });
            }
            producers.put((stream, id), numbers);
        }
        Some(producers)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn runs_answer_retries_and_are_bounded() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.find(7), Known::New);
        for i in 0..100 {
            numbers.note(7 + i, Epoch(0), 50 + i);
        }
        assert_eq!(numbers.runs.len(), 1);
        assert_eq!(numbers.find(7), Known::At(Epoch(0), 50));
        assert_eq!(numbers.find(106), Known::At(Epoch(0), 149));
        assert_eq!(numbers.find(107), Known::New);
        assert_eq!(numbers.find(6), Known::Old(7));
        for i in 0..40 {
            numbers.note(200 + 2 * i, Epoch(1), i);
        }
        assert_eq!(numbers.runs.len(), RUNS);
        assert_eq!(numbers.find(7), Known::Old(248));
        assert_eq!(numbers.find(249), Known::Old(248));
        assert_eq!(numbers.find(278), Known::At(Epoch(1), 39));
    }

    #[test]
    fn who_was_quiet_longest_is_forgotten_and_the_rest_is_kept() {
        let key = |i: u64| ("a".parse::<StreamName>().unwrap(), format!("p{i}"));
        let mut producers = Producers::new(3);
        for i in 0..3 {
            producers.note(key(i), 1, Epoch(0), i);
        }
        producers.note(key(0), 2, Epoch(0), 9);
        producers.note(key(3), 1, Epoch(0), 10);
        assert_eq!(producers.forgotten, 1);
        assert_eq!(producers.of(&key(1)).find(1), Known::New);
        assert_eq!(producers.of(&key(0)).find(2), Known::At(Epoch(0), 9));
        let mut bytes = Vec::new();
        producers.encode(&mut bytes);
        let mut again = Producers::decode(&mut Take(&bytes), 3).unwrap();
        again.note(key(4), 1, Epoch(0), 11);
        assert_eq!(again.of(&key(2)).find(1), Known::New);
        assert_eq!(again.of(&key(0)).find(2), Known::At(Epoch(0), 9));
    }
}
