//! Which addresses are known of which peer, bounded in both directions. Generic on peer (`P`) and address (`A`).

use std::{collections::HashMap, hash::Hash};

use super::backoff::Time;

/// Addresses of peers, from configuration, discovery and identify.
#[derive(Debug)]
pub struct Book<P, A> {
    max_peers: usize,
    max_addresses: usize,
    peers: HashMap<P, Entry<A>>,
    evicted: u64,
}

#[derive(Debug)]
struct Entry<A> {
    /// Oldest first.
    addresses: Vec<Known<A>>,
    touched: Time,
}

#[derive(Debug)]
struct Known<A> {
    address: A,
    /// Configured by the operator: never a victim.
    pinned: bool,
}

impl<P: Eq + Hash + Clone, A: Eq + Clone> Book<P, A> {
    /// An empty book of at most `max_peers` × `max_addresses` addresses.
    pub fn new(max_peers: usize, max_addresses: usize) -> Self {
        Self {
            max_peers,
            max_addresses,
            peers: HashMap::new(),
            evicted: 0,
        }
    }

    /// Notes an address; `true` if it was new. At a limit the oldest address that is not pinned goes, or the peer not heard of
    /// for longest; if everything is pinned the new one is refused.
    pub fn add(&mut self, peer: P, address: A, pinned: bool, now: Time) -> bool {
        if !self.peers.contains_key(&peer)
            && self.peers.len() >= self.max_peers
            && !self.evict_peer()
        {
            return false;
        }
        let entry = self.peers.entry(peer).or_insert(Entry {
            addresses: Vec::new(),
            touched: now,
        });
        entry.touched = now;
        if let Some(known) = entry
            .addresses
            .iter_mut()
            .find(|known| known.address == address)
        {
            known.pinned |= pinned;
            return false;
        }
        if entry.addresses.len() >= self.max_addresses {
            let Some(victim) = entry.addresses.iter().position(|known| !known.pinned) else {
                return false;
            };
            entry.addresses.remove(victim);
            self.evicted += 1;
        }
        entry.addresses.push(Known { address, pinned });
        true
    }

    /// The addresses of a peer, oldest first.
    pub fn addresses(&self, peer: &P) -> impl Iterator<Item = &A> {
        let entry = self.peers.get(peer);
        entry
            .into_iter()
            .flat_map(|entry| entry.addresses.iter().map(|known| &known.address))
    }

    /// Whether the operator gave this address of the peer.
    pub fn is_pinned(&self, peer: &P, address: &A) -> bool {
        let mut known = self
            .peers
            .get(peer)
            .into_iter()
            .flat_map(|entry| &entry.addresses);
        known.any(|known| known.pinned && known.address == *address)
    }

    /// Peers in the book.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether nobody is in the book.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Addresses and peers that were forgotten at a limit.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn evict_peer(&mut self) -> bool {
        let victim = self
            .peers
            .iter()
            .filter(|(_, entry)| entry.addresses.iter().all(|known| !known.pinned))
            .min_by_key(|(_, entry)| entry.touched)
            .map(|(peer, _)| peer.clone());
        let Some(victim) = victim else {
            return false;
        };
        self.peers.remove(&victim);
        self.evicted += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    #[test]
    fn t9_a_liar_keeps_only_the_newest_addresses_and_never_drives_out_a_pinned_one() {
        let mut book = Book::new(8, 32);
        assert!(book.add("liar", 0, true, at(0)));
        for address in 1..=10_000 {
            assert!(book.add("liar", address, false, at(1)));
        }
        let kept: Vec<_> = book.addresses(&"liar").copied().collect();
        assert_eq!(kept.len(), 32);
        assert_eq!((kept[0], kept[31]), (0, 10_000));
    }

    #[test]
    fn t9_many_liars_drive_out_the_longest_silent_peer_but_no_configured_one() {
        let mut book = Book::new(4, 2);
        book.add(0, "configured", true, at(0));
        for peer in 1..1000 {
            assert!(book.add(peer, "rumour", false, at(peer)));
        }
        assert_eq!(book.len(), 4);
        assert_eq!(book.addresses(&0).count(), 1);
        assert_eq!(book.addresses(&999).count(), 1);
        assert_eq!(book.addresses(&1).count(), 0);
        assert_eq!(book.evicted(), 996);
    }

    #[test]
    fn a_book_full_of_pinned_peers_refuses_rumours() {
        let mut book = Book::new(1, 1);
        assert!(book.add("a", 1, true, at(0)));
        assert!(!book.add("a", 2, false, at(0)));
        assert!(!book.add("b", 1, false, at(0)));
        assert_eq!(book.len(), 1);
    }
}
