//! What waits for its turn to be asked or put: each name once, a record always the newest, in the order of arrival.

use crate::{name::Name, record::Record};
use libp2p_identity::PeerId;
use std::collections::{HashMap, VecDeque};

/// A query to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    Get(Name),
    /// To these peers, or where the record belongs.
    Put(Record, Option<Vec<PeerId>>),
}

#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    gets: VecDeque<Name>,
    order: VecDeque<Name>,
    puts: HashMap<Name, (Record, Option<Vec<PeerId>>)>,
    put_next: bool,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            gets: VecDeque::new(),
            order: VecDeque::new(),
            puts: HashMap::new(),
            put_next: false,
        }
    }

    /// Whether there was room.
    pub(super) fn get(&mut self, name: Name) -> bool {
        if self.gets.contains(&name) {
            return true;
        }
        let room = self.gets.len() < self.most;
        if room {
            self.gets.push_back(name);
        }
        room
    }

    /// Whether there was room. An older record that waits is replaced; both lists of peers are served.
    pub(super) fn put(&mut self, record: Record, peers: Option<Vec<PeerId>>) -> bool {
        let name = record.name();
        if let Some((waiting, to)) = self.puts.get_mut(&name) {
            if record.order(waiting).is_gt() {
                *waiting = record;
            }
            *to = match (to.take(), peers) {
                (Some(mut all), Some(more)) => {
                    all.extend(more);
                    all.sort_unstable();
                    all.dedup();
                    Some(all)
                }
                _ => None,
            };
            return true;
        }
        let room = self.order.len() < self.most;
        if room {
            self.order.push_back(name);
            self.puts.insert(name, (record, peers));
        }
        room
    }

    /// The next of one kind and then of the other, so that neither waits for all of the other.
    pub(super) fn next(&mut self) -> Option<Job> {
        self.put_next = !self.put_next;
        if self.put_next {
            self.next_put().or_else(|| self.next_get())
        } else {
            self.next_get().or_else(|| self.next_put())
        }
    }

    pub(super) fn len(&self) -> usize {
        self.gets.len() + self.order.len()
    }

    fn next_get(&mut self) -> Option<Job> {
        self.gets.pop_front().map(Job::Get)
    }

    fn next_put(&mut self) -> Option<Job> {
        let (record, peers) = self.puts.remove(&self.order.pop_front()?)?;
        Some(Job::Put(record, peers))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Keypair, Unsigned, Wall};

    fn record(seed: u8, sequence: u64) -> Record {
        let key = Keypair::ed25519_from_bytes([seed; 32]).unwrap();
        let end = Wall::from_unix(4_000_000_000, 0);
        Unsigned::new(*b"/ipfs/bafkqaaa", sequence, end)
            .sign(&key)
            .unwrap()
    }

    #[test]
    fn na_30_a_name_waits_once_and_a_record_is_the_newest() {
        let mut queue = Queue::new(2);
        let (one, two, three) = (record(1, 1), record(2, 1), record(3, 1));
        assert!(queue.get(one.name()) && queue.get(one.name()) && queue.get(two.name()));
        assert!(!queue.get(three.name()), "beyond the bound");
        let (a, b) = (PeerId::random(), PeerId::random());
        assert!(queue.put(record(1, 7), Some(vec![a])));
        assert!(
            queue.put(record(1, 5), Some(vec![b, a])),
            "it waits already"
        );
        assert!(queue.put(two.clone(), Some(vec![a])) && queue.put(two.clone(), None));
        assert!(!queue.put(three, None), "beyond the bound");
        assert_eq!(queue.len(), 4);
        let mut both = vec![a, b];
        both.sort_unstable();
        assert_eq!(queue.next(), Some(Job::Put(record(1, 7), Some(both))));
        assert_eq!(queue.next(), Some(Job::Get(one.name())));
        assert_eq!(queue.next(), Some(Job::Put(two.clone(), None)));
        assert_eq!(queue.next(), Some(Job::Get(two.name())));
        assert_eq!(queue.next(), None);
    }
}
