//! Who is let into the tables, with which addresses. `libp2p-kad` would take whoever is dialled, and any number of addresses.

use super::search::Table;
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_swarm::StreamProtocol;
use std::collections::HashSet;

/// What Kubo serves on private networks. It is what a private swarm uses.
pub(super) const LAN: StreamProtocol = StreamProtocol::new("/ipfs/lan/kad/1.0.0");
/// What Kubo serves where it has a public address.
pub(super) const WAN: StreamProtocol = StreamProtocol::new("/ipfs/kad/1.0.0");

/// Who is in which table.
#[derive(Debug, Default)]
pub(super) struct Tables {
    lan: HashSet<PeerId>,
    wan: HashSet<PeerId>,
    told: usize,
}

impl Tables {
    pub(super) fn of(&self, table: Table) -> &HashSet<PeerId> {
        match table {
            Table::Lan => &self.lan,
            Table::Wan => &self.wan,
        }
    }

    pub(super) fn came(&mut self, table: Table, peer: PeerId) {
        self.of_mut(table).insert(peer);
    }

    pub(super) fn went(&mut self, table: Table, peer: &PeerId) {
        self.of_mut(table).remove(peer);
    }

    pub(super) fn len(&self) -> usize {
        self.lan.union(&self.wan).count()
    }

    /// How many servers there are, where that is news: the first, none any more, or twice as many as when it was told last. What was put while
    /// there were few is put anew for the many.
    pub(super) fn news(&mut self) -> Option<usize> {
        let count = self.len();
        let is_news = if self.told == 0 {
            count > 0
        } else {
            count == 0 || count >= 2 * self.told
        };
        is_news.then(|| {
            self.told = count;
            count
        })
    }

    fn of_mut(&mut self, table: Table) -> &mut HashSet<PeerId> {
        match table {
            Table::Lan => &mut self.lan,
            Table::Wan => &mut self.wan,
        }
    }
}

/// The addresses under which a peer enters a table: nobody else's, none that lead through a relay, the loopback only where there is no other. In
/// the WAN table only public ones, as Kubo has it: it would put names there and nowhere else.
pub(super) fn usable(table: Table, addresses: &[Multiaddr], most: usize) -> Vec<Multiaddr> {
    let fits = |address: &&Multiaddr| match table {
        Table::Lan => is_dialable(address),
        Table::Wan => is_dialable(address) && is_public(address),
    };
    let (loopback, others): (Vec<Multiaddr>, Vec<Multiaddr>) = addresses
        .iter()
        .filter(fits)
        .cloned()
        .partition(is_loopback);
    let mut usable = if others.is_empty() { loopback } else { others };
    usable.truncate(most);
    usable
}

fn is_dialable(address: &Multiaddr) -> bool {
    let unspecified = address.iter().next().is_none_or(|first| match first {
        Protocol::Ip4(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        Protocol::Ip6(ip) => ip.is_unspecified() || ip.is_multicast(),
        _ => false,
    });
    !unspecified && address.iter().all(|part| part != Protocol::P2pCircuit)
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

fn is_public(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            let carrier_grade = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_documentation()
                || carrier_grade)
        }
        Some(Protocol::Ip6(ip)) => {
            !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local())
        }
        Some(Protocol::Dns(host) | Protocol::Dns4(host) | Protocol::Dns6(host)) => {
            host != "localhost" && !host.ends_with(".local")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn na_28_only_dialable_addresses_enter_and_public_ones_the_wan() {
        let told = addresses(&[
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/192.168.1.2/tcp/1",
            "/ip4/100.64.1.2/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/93.184.216.34/tcp/1",
            "/dns4/cloud.example/tcp/1",
            "/dns4/floor.local/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/2001:4860::1/tcp/1",
            "/ip4/93.184.216.34/tcp/1/p2p-circuit",
        ]);
        assert_eq!(
            usable(Table::Wan, &told, 8),
            addresses(&[
                "/ip4/93.184.216.34/tcp/1",
                "/dns4/cloud.example/tcp/1",
                "/ip6/2001:4860::1/tcp/1"
            ])
        );
        let lan = usable(Table::Lan, &told, 8);
        assert_eq!(lan.len(), 7, "{lan:?}");
        assert!(!lan.contains(&told[0]) && !lan.contains(&told[3]) && !lan.contains(&told[9]));
        assert_eq!(usable(Table::Lan, &told, 2).len(), 2, "the bound");
        assert_eq!(
            usable(Table::Lan, &told[..1], 8),
            told[..1],
            "the loopback where there is no other"
        );
        assert!(usable(Table::Wan, &told[..4], 8).is_empty());
    }

    #[test]
    fn na_28_servers_are_news_at_the_first_at_twice_as_many_and_at_none() {
        let mut tables = Tables::default();
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let mut news = Vec::new();
        for peer in &peers {
            tables.came(Table::Lan, *peer);
            tables.came(Table::Wan, *peer);
            news.extend(tables.news());
        }
        for peer in &peers {
            tables.went(Table::Lan, peer);
            news.extend(tables.news());
            tables.went(Table::Wan, peer);
            news.extend(tables.news());
        }
        assert_eq!(news, [1, 2, 4, 0]);
    }
}
