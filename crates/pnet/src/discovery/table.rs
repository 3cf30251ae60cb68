//! Who was seen on the local network, bounded against a neighbour that lies (threat T10). Generic on peer and address.

use core::net::IpAddr;
use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::Duration,
};

/// Time since the start of the node.
pub type Time = Duration;

/// The bounds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TableConfig {
    /// Sightings (peer and address) remembered. About 200 bytes each.
    pub max_sightings: usize,
    /// Addresses of one peer. A device has one or two on a segment; Kubo lists a few more.
    pub max_addresses_per_peer: usize,
    /// Sightings with one IP address. Many nodes may run on one machine, but one liar must not fill the table.
    pub max_sightings_per_ip: usize,
    /// New sightings a second, which bounds the dials they cause.
    pub max_new_per_second: u32,
    /// How long a sighting is believed, whatever its packet says.
    pub lifetime: Duration,
    /// Whether addresses of the public Internet are believed. An answer from the local segment has no business naming them.
    pub public_addresses: bool,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            max_sightings: 1024,
            max_addresses_per_peer: 3,
            max_sightings_per_ip: 64,
            max_new_per_second: 10,
            lifetime: Duration::from_secs(10 * 60),
            public_addresses: false,
        }
    }
}

/// What became of a sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Offer {
    /// Not seen before: worth a dial.
    New,
    /// Known, and believed for another lifetime.
    Renewed,
    /// Refused: the table is full.
    Full,
    /// Refused: enough addresses of this peer.
    TooManyAddresses,
    /// Refused: enough peers at this IP address.
    TooManyAtIp,
    /// Refused: too many new ones this second.
    TooFast,
    /// Refused: not an address of a local network.
    NotLocal,
}

/// The table.
#[derive(Debug)]
pub struct Table<P, A> {
    config: TableConfig,
    sightings: HashMap<(P, A), Sighting>,
    peers: HashMap<P, usize>,
    ips: HashMap<IpAddr, usize>,
    /// New sightings still allowed, in nanoseconds of credit: full after one second without any.
    credit: Duration,
    credited: Time,
    counts: BTreeMap<Offer, u64>,
}

#[derive(Debug)]
struct Sighting {
    ip: IpAddr,
    expires: Time,
}

impl<P: Eq + Hash + Clone, A: Eq + Hash + Clone> Table<P, A> {
    /// Nobody seen.
    pub fn new(config: TableConfig) -> Self {
        Self {
            config,
            sightings: HashMap::new(),
            peers: HashMap::new(),
            ips: HashMap::new(),
            credit: Duration::from_secs(1),
            credited: Time::ZERO,
            counts: BTreeMap::new(),
        }
    }

    /// `peer` is said to be at `address`, whose IP address is `ip`.
    pub fn offer(&mut self, peer: P, address: A, ip: IpAddr, now: Time) -> Offer {
        let offer = self.judge(peer, address, ip.to_canonical(), now);
        *self.counts.entry(offer).or_default() += 1;
        offer
    }

    /// Forgets what has not been seen for a lifetime, and returns it.
    pub fn expire(&mut self, now: Time) -> Vec<(P, A)> {
        let expired: Vec<(P, A)> = self
            .sightings
            .iter()
            .filter(|(_, sighting)| sighting.expires <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &expired {
            self.remove(key);
        }
        expired
    }

    /// When to call [`expire`](Self::expire).
    pub fn deadline(&self) -> Option<Time> {
        self.sightings
            .values()
            .map(|sighting| sighting.expires)
            .min()
    }

    /// What is believed now.
    pub fn iter(&self) -> impl Iterator<Item = &(P, A)> {
        self.sightings.keys()
    }

    /// How many sightings are believed.
    pub fn len(&self) -> usize {
        self.sightings.len()
    }

    /// Whether nobody was seen.
    pub fn is_empty(&self) -> bool {
        self.sightings.is_empty()
    }

    /// How often each verdict fell: the refusals are the counted drops.
    pub fn counts(&self) -> &BTreeMap<Offer, u64> {
        &self.counts
    }

    fn judge(&mut self, peer: P, address: A, ip: IpAddr, now: Time) -> Offer {
        let expires = now.saturating_add(self.config.lifetime);
        let key = (peer, address);
        if let Some(known) = self.sightings.get_mut(&key) {
            known.expires = expires;
            return Offer::Renewed;
        }
        if !self.config.public_addresses && !is_local(ip) {
            return Offer::NotLocal;
        }
        if self
            .peers
            .get(&key.0)
            .is_some_and(|&count| count >= self.config.max_addresses_per_peer)
        {
            return Offer::TooManyAddresses;
        }
        if self
            .ips
            .get(&ip)
            .is_some_and(|&count| count >= self.config.max_sightings_per_ip)
        {
            return Offer::TooManyAtIp;
        }
        if self.sightings.len() >= self.config.max_sightings {
            return Offer::Full;
        }
        if !self.take_credit(now) {
            return Offer::TooFast;
        }
        *self.peers.entry(key.0.clone()).or_default() += 1;
        *self.ips.entry(ip).or_default() += 1;
        self.sightings.insert(key, Sighting { ip, expires });
        Offer::New
    }

    fn take_credit(&mut self, now: Time) -> bool {
        let second = Duration::from_secs(1);
        let cost = second / self.config.max_new_per_second.max(1);
        let passed = now.saturating_sub(self.credited);
        self.credit = self.credit.saturating_add(passed).min(second);
        self.credited = now;
        match self.credit.checked_sub(cost) {
            Some(left) => {
                self.credit = left;
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, key: &(P, A)) {
        if let Some(sighting) = self.sightings.remove(key) {
            decrement(&mut self.peers, &key.0);
            decrement(&mut self.ips, &sighting.ip);
        }
    }
}

fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Private, link-local, shared (carrier-grade NAT) and loopback addresses; IPv6 unique local and link-local.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_private()
                || ip.is_link_local()
                || ip.is_loopback()
                || (a == 100 && b & 0xC0 == 64)
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(millis: u64) -> Time {
        Duration::from_millis(millis)
    }

    fn lan(host: u32) -> IpAddr {
        IpAddr::from([10, (host >> 16) as u8, (host >> 8) as u8, host as u8])
    }

    #[test]
    fn t10_a_flood_of_100_000_answers_leaves_ten_dials_a_second_and_1024_entries() {
        let mut table = Table::new(TableConfig::default());
        let mut new = 0;
        for answer in 0..100_000u32 {
            // 1000 answers a second for 100 s, all different.
            let offer = table.offer(answer, answer, lan(answer), at(u64::from(answer)));
            new += u32::from(offer == Offer::New);
        }
        assert!((1000..=1024).contains(&new), "{new}");
        assert_eq!(table.len(), new as usize);
        assert_eq!(table.counts().values().sum::<u64>(), 100_000);
    }

    #[test]
    fn t10_one_second_yields_at_most_ten_new_ones() {
        let mut table = Table::new(TableConfig::default());
        table.offer(0, 0, lan(0), at(0));
        for second in 10..20u64 {
            let new = (0..1000u32)
                .filter(|n| {
                    let id = second as u32 * 1000 + n;
                    table.offer(id, id, lan(id), at(second * 1000)) == Offer::New
                })
                .count();
            assert_eq!(new, 10);
        }
    }

    #[test]
    fn t10_a_peer_with_many_addresses_keeps_three() {
        let mut table = Table::new(TableConfig::default());
        let offers: Vec<Offer> = (0..5)
            .map(|address| table.offer("peer", address, lan(1), at(address * 1000)))
            .collect();
        assert_eq!(offers[..3], [Offer::New; 3]);
        assert_eq!(offers[3..], [Offer::TooManyAddresses; 2]);
        assert_eq!(table.offer("peer", 1, lan(1), at(9000)), Offer::Renewed);
    }

    #[test]
    fn t10_a_liar_at_one_address_leaves_room_for_the_others() {
        let mut table = Table::new(TableConfig::default());
        for peer in 0..1000u32 {
            table.offer(peer, 0, lan(66), at(u64::from(peer) * 200));
        }
        assert_eq!(table.len(), 64);
        assert_eq!(table.offer(5000, 0, lan(7), at(300_000)), Offer::New);
    }

    #[test]
    fn t10_lifetime_is_ours_whatever_the_packet_says() {
        let mut table = Table::new(TableConfig::default());
        table.offer("a", 0, lan(1), at(0));
        table.offer("b", 0, lan(2), at(0));
        assert_eq!(table.deadline(), Some(at(600_000)));
        table.offer("b", 0, lan(2), at(300_000));
        assert_eq!(table.expire(at(599_999)), []);
        assert_eq!(table.expire(at(600_000)), [("a", 0)]);
        assert_eq!(table.expire(at(900_000)), [("b", 0)]);
        assert!(table.is_empty() && table.peers.is_empty() && table.ips.is_empty());
        assert_eq!(table.offer("a", 0, lan(1), at(900_001)), Offer::New);
    }

    #[test]
    fn t11_public_addresses_are_not_believed() {
        for (ip, local) in [
            ("192.168.1.1", true),
            ("172.16.0.1", true),
            ("169.254.3.4", true),
            ("100.64.0.1", true),
            ("127.0.0.1", true),
            ("fe80::1", true),
            ("fd00::1", true),
            ("::ffff:10.0.0.1", true),
            ("8.8.8.8", false),
            ("100.128.0.1", false),
            ("224.0.0.1", false),
            ("0.0.0.0", false),
            ("2001:db8::1", false),
            ("::ffff:8.8.8.8", false),
        ] {
            let mut table = Table::new(TableConfig::default());
            let offer = table.offer(0, 0, ip.parse().unwrap(), at(0));
            assert_eq!(
                offer,
                if local { Offer::New } else { Offer::NotLocal },
                "{ip}"
            );
        }
    }
}
