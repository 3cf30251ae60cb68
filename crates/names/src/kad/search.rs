//! Queries under way: what came in answer, when one has enough, and what is left of it at its end.

use super::Config;
use crate::{core::Time, name::Name, record::Candidate, record::Record};
use libp2p_identity::PeerId;
use libp2p_kad::QueryId;
use std::{cmp::Ordering, time::Duration};

/// One of Kubo's two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Lan,
    Wan,
}

/// A query of `libp2p-kad`.
pub(super) type Id = (Table, QueryId);

/// Who answered with which bytes.
type Answer = (PeerId, Vec<u8>);

/// A name that is asked for, in both tables.
#[derive(Debug)]
pub(super) struct Get {
    pub(super) name: Name,
    pub(super) answers: Vec<Answer>,
    /// Who answered that he has no record.
    pub(super) without: Vec<PeerId>,
    pub(super) timed_out: bool,
    first: Option<Time>,
}

/// A record that is being put.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) record: Record,
    /// How many take it where all do, by query.
    pub(super) asked: Vec<(Id, usize)>,
    /// How many have taken it.
    pub(super) stored: usize,
    pub(super) timed_out: bool,
}

#[derive(Debug)]
pub(super) enum What {
    Get(Get),
    Put(Put),
}

#[derive(Debug)]
struct Search {
    what: What,
    open: Vec<Id>,
    since: Time,
}

/// What has ended, and what of it `libp2p-kad` still works at.
pub(super) type Ended = (What, Vec<Id>);

#[derive(Debug, Default)]
pub(super) struct Searches(Vec<Search>);

impl Get {
    /// `own`: what this server itself has, if it is one.
    pub(super) fn new(name: Name, own: Option<Answer>) -> Self {
        Self {
            name,
            answers: own.into_iter().collect(),
            without: Vec::new(),
            timed_out: false,
            first: None,
        }
    }

    /// The best first, so that whoever waits for the name is not answered an older version. Signatures are not looked at: who judges
    /// the records finds those that lie, and takes the next.
    pub(super) fn sort(&mut self) {
        let name = self.name;
        let mut decoded: Vec<(Option<Candidate>, Answer)> = self
            .answers
            .drain(..)
            .map(|answer| (Candidate::decode(name, &answer.1).ok(), answer))
            .collect();
        decoded.sort_by(|(a, _), (b, _)| match (a, b) {
            (Some(a), Some(b)) => b.order(a),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        });
        self.answers = decoded.into_iter().map(|(_, answer)| answer).collect();
    }
}

impl Searches {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn begin(&mut self, what: What, open: Vec<Id>, now: Time) {
        self.0.push(Search {
            what,
            open,
            since: now,
        });
    }

    /// A server answered with a record.
    pub(super) fn on_answer(&mut self, id: Id, peer: PeerId, bytes: Vec<u8>, now: Time) {
        if let Some(What::Get(get)) = self.find(id).map(|search| &mut search.what) {
            get.first.get_or_insert(now);
            if get.answers.iter().all(|(known, _)| *known != peer) {
                get.answers.push((peer, bytes));
            }
        }
    }

    /// A query for a name has ended.
    pub(super) fn on_got(
        &mut self,
        id: Id,
        without: impl IntoIterator<Item = PeerId>,
        timed_out: bool,
    ) {
        if let Some(search) = self.find(id) {
            search.open.retain(|open| *open != id);
            if let What::Get(get) = &mut search.what {
                get.without.extend(without);
                get.timed_out |= timed_out;
            }
        }
    }

    /// A put has ended; without a number, all have taken it.
    pub(super) fn on_put(&mut self, id: Id, stored: Option<usize>, timed_out: bool) {
        if let Some(search) = self.find(id) {
            search.open.retain(|open| *open != id);
            if let What::Put(put) = &mut search.what {
                let all = put.asked.iter().find(|(asked, _)| *asked == id);
                put.stored += stored.or(all.map(|(_, all)| *all)).unwrap_or(0);
                put.timed_out |= timed_out;
            }
        }
    }

    /// The next that is at its end.
    pub(super) fn ended(&mut self, config: &Config, now: Time) -> Option<Ended> {
        let is_over = |search: &Search| search.until(config) <= now;
        let at = self.0.iter().position(is_over)?;
        let Search {
            mut what,
            open,
            since,
        } = self.0.swap_remove(at);
        let timed_out = !open.is_empty() && now >= since + longest(&what, config);
        match &mut what {
            What::Get(get) => get.timed_out |= timed_out,
            What::Put(put) => put.timed_out |= timed_out,
        }
        Some((what, open))
    }

    /// When to call `ended` next.
    pub(super) fn deadline(&self, config: &Config) -> Option<Time> {
        self.0.iter().map(|search| search.until(config)).min()
    }

    fn find(&mut self, id: Id) -> Option<&mut Search> {
        self.0.iter_mut().find(|search| search.open.contains(&id))
    }
}

impl Search {
    fn until(&self, config: &Config) -> Time {
        if self.open.is_empty() {
            return Time::ZERO;
        }
        let end = self.since + longest(&self.what, config);
        match &self.what {
            What::Get(get) if get.answers.len() >= config.enough => Time::ZERO,
            What::Get(get) => get
                .first
                .map_or(end, |first| end.min(first + config.settle)),
            What::Put(_) => end,
        }
    }
}

/// A put looks for its servers first.
fn longest(what: &What, config: &Config) -> Duration {
    match what {
        What::Get(_) => config.query_timeout,
        What::Put(_) => config.query_timeout * 2,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Keypair, Unsigned, Wall};

    fn bytes(key: &Keypair, sequence: u64) -> Vec<u8> {
        let end = Wall::from_unix(4_000_000_000, 0);
        let unsigned = Unsigned::new(*b"/ipfs/bafkqaaa", sequence, end);
        unsigned.sign(key).unwrap().bytes().to_vec()
    }

    #[test]
    fn na_32_the_best_answer_comes_first_and_junk_last() {
        let key = Keypair::generate_ed25519();
        let mut get = Get::new(Name::of(&key.public()), None);
        let answers = [
            b"junk".to_vec(),
            bytes(&key, 3),
            bytes(&key, 9),
            b"rubbish".to_vec(),
            bytes(&key, 5),
        ];
        get.answers = answers.map(|bytes| (PeerId::random(), bytes)).into();
        get.sort();
        let sorted: Vec<&[u8]> = get
            .answers
            .iter()
            .map(|(_, bytes)| bytes.as_slice())
            .collect();
        assert_eq!(
            sorted[..3],
            [bytes(&key, 9), bytes(&key, 5), bytes(&key, 3)]
        );
        assert_eq!(sorted[3..], [&b"junk"[..], b"rubbish"]);
    }
}
