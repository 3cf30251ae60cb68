//! Counting connections against limits. Generic on connection (`C`) and peer (`P`).
//!
//! A connection that is not yet secured costs a stranger nothing but an open socket, so those have small limits of their own, in
//! all and for one source address: otherwise a few stalled sockets keep every honest device out (threat T2).

use core::net::{IpAddr, Ipv6Addr};
use std::{collections::HashMap, fmt, hash::Hash, time::Duration};

use super::turned_away::{AT_ONCE, TurnedAway};

/// The limits of one node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Incoming connections that are not yet secured. Each costs a file descriptor and about 6 KiB, for 5 s at most.
    pub pending_incoming: usize,
    /// Of those, from one IP address (IPv6: one /64). Devices behind one NAT share it, and come back one second later.
    pub pending_incoming_per_ip: usize,
    /// Of those, from this machine. Wider, because tests and demos run many nodes on one machine.
    pub pending_incoming_loopback: usize,
    /// Dials under way.
    pub pending_outgoing: usize,
    /// Established connections. A quiet one costs about 40 KiB.
    pub established: usize,
    /// Of those, opened by others. Smaller than `established`, so that strangers cannot take every place.
    pub established_incoming: usize,
    /// Of those, from one IP address (IPv6: one /64): a host with the key and any number of identities takes no more (T8). Devices
    /// behind one NAT share it; beyond it they are still reached by dials of this node.
    pub established_incoming_per_ip: usize,
    /// Of those, from this machine. Wider, because tests and demos run many nodes on one machine.
    pub established_incoming_loopback: usize,
    /// Connections with one peer. Three, because both sides may dial at once while a dead connection is not yet noticed.
    pub established_per_peer: usize,
}

impl Limits {
    /// For a tablet: at most about 2.5 MiB of connections.
    pub fn tablet() -> Self {
        Self {
            pending_incoming: 16,
            pending_incoming_per_ip: 4,
            pending_incoming_loopback: 16,
            pending_outgoing: 16,
            established: 64,
            established_incoming: 48,
            established_incoming_per_ip: 16,
            established_incoming_loopback: 48,
            established_per_peer: 3,
        }
    }

    /// For a PC, a Pi or a server: a swarm of 500 devices, each connected to this node.
    pub fn pc() -> Self {
        Self {
            pending_incoming: 64,
            pending_incoming_per_ip: 8,
            pending_incoming_loopback: 64,
            pending_outgoing: 64,
            established: 600,
            established_incoming: 520,
            established_incoming_per_ip: 256,
            established_incoming_loopback: 520,
            established_per_peer: 3,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::tablet()
    }
}

/// Which limit was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitKind {
    /// Incoming connections not yet secured, in all.
    PendingIncoming,
    /// Incoming connections not yet secured, from one IP address.
    PendingIncomingPerIp,
    /// Members from one IP address that were turned away after their handshakes, of late.
    TurnedAwayPerIp,
    /// Dials under way.
    PendingOutgoing,
    /// Established connections, in all.
    Established,
    /// Established connections that others opened.
    EstablishedIncoming,
    /// Established connections that others opened from one IP address.
    EstablishedIncomingPerIp,
    /// Established connections with one peer.
    EstablishedPerPeer,
}

impl LimitKind {
    /// All of them, for figures.
    pub const ALL: [Self; 8] = [
        Self::PendingIncoming,
        Self::PendingIncomingPerIp,
        Self::TurnedAwayPerIp,
        Self::PendingOutgoing,
        Self::Established,
        Self::EstablishedIncoming,
        Self::EstablishedIncomingPerIp,
        Self::EstablishedPerPeer,
    ];

    /// One word for metrics; stable.
    pub fn code(self) -> &'static str {
        match self {
            Self::PendingIncoming => "pending_incoming",
            Self::PendingIncomingPerIp => "pending_incoming_per_ip",
            Self::TurnedAwayPerIp => "turned_away_per_ip",
            Self::PendingOutgoing => "pending_outgoing",
            Self::Established => "established",
            Self::EstablishedIncoming => "established_incoming",
            Self::EstablishedIncomingPerIp => "established_incoming_per_ip",
            Self::EstablishedPerPeer => "established_per_peer",
        }
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PendingIncoming => "incoming connections being set up",
            Self::PendingIncomingPerIp => "incoming connections being set up from one address",
            Self::TurnedAwayPerIp => {
                "connections in two seconds from an address whose members are turned away"
            }
            Self::PendingOutgoing => "dials under way",
            Self::Established => "connections",
            Self::EstablishedIncoming => "incoming connections",
            Self::EstablishedIncomingPerIp => "incoming connections from one address",
            Self::EstablishedPerPeer => "connections with one peer",
        })
    }
}

/// A limit said "no more".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at most {limit} {kind} are allowed")]
pub struct LimitExceeded {
    /// Which one.
    pub kind: LimitKind,
    /// Its value.
    pub limit: usize,
}

/// What is open now.
#[derive(Debug)]
pub struct Count<C, P> {
    limits: Limits,
    pending_incoming: HashMap<C, Option<IpAddr>>,
    pending_incoming_per_ip: HashMap<IpAddr, usize>,
    pending_outgoing: HashMap<C, ()>,
    established: HashMap<C, Established<P>>,
    established_per_peer: HashMap<P, usize>,
    established_incoming: usize,
    established_incoming_per_ip: HashMap<IpAddr, usize>,
    turned_away: TurnedAway,
    refused: HashMap<LimitKind, u64>,
}

#[derive(Debug)]
struct Established<P> {
    peer: P,
    direction: Direction,
    /// Of an incoming one.
    from: Option<IpAddr>,
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The remote.
    Incoming,
    /// We.
    Outgoing,
}

impl<C: Eq + Hash + Clone, P: Eq + Hash + Clone> Count<C, P> {
    /// Nothing open.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pending_incoming: HashMap::new(),
            pending_incoming_per_ip: HashMap::new(),
            pending_outgoing: HashMap::new(),
            established: HashMap::new(),
            established_per_peer: HashMap::new(),
            established_incoming: 0,
            established_incoming_per_ip: HashMap::new(),
            turned_away: TurnedAway::default(),
            refused: HashMap::new(),
        }
    }

    /// Whether a socket from there is worth a handshake at `now`: not while its members are turned away again and again.
    pub fn may_knock(&mut self, from: Option<IpAddr>, now: Duration) -> Result<(), LimitExceeded> {
        match from.map(source) {
            Some(from) if self.turned_away.bars(&from, now) => {
                self.check(LimitKind::TurnedAwayPerIp, AT_ONCE, AT_ONCE)
            }
            _ => Ok(()),
        }
    }

    /// A member from there was refused after its handshake, by another rule than these limits.
    pub fn on_turned_away(&mut self, from: Option<IpAddr>, now: Duration) {
        if let Some(from) = from.map(source) {
            self.turned_away.note(from, now);
        }
    }

    /// A socket was accepted; `from` is its source address, if it has one.
    pub fn on_pending_incoming(
        &mut self,
        connection: C,
        from: Option<IpAddr>,
    ) -> Result<(), LimitExceeded> {
        let from = from.map(source);
        self.check(
            LimitKind::PendingIncoming,
            self.pending_incoming.len(),
            self.limits.pending_incoming,
        )?;
        if let Some(from) = from {
            let open = self
                .pending_incoming_per_ip
                .get(&from)
                .copied()
                .unwrap_or(0);
            let limit = if from.is_loopback() {
                self.limits.pending_incoming_loopback
            } else {
                self.limits.pending_incoming_per_ip
            };
            self.check(LimitKind::PendingIncomingPerIp, open, limit)?;
            self.pending_incoming_per_ip.insert(from, open + 1);
        }
        self.pending_incoming.insert(connection, from);
        Ok(())
    }

    /// A dial is about to start.
    pub fn on_pending_outgoing(&mut self, connection: C) -> Result<(), LimitExceeded> {
        self.check(
            LimitKind::PendingOutgoing,
            self.pending_outgoing.len(),
            self.limits.pending_outgoing,
        )?;
        self.pending_outgoing.insert(connection, ());
        Ok(())
    }

    /// A pending connection came to nothing.
    pub fn on_failed(&mut self, connection: &C) {
        self.forget_pending(connection);
    }

    /// A connection is secured and asks to be established; `from` is its source address, if it came in and has one. It counts only
    /// from [`on_established`](Self::on_established) on.
    pub fn may_establish(
        &mut self,
        connection: &C,
        peer: &P,
        direction: Direction,
        from: Option<IpAddr>,
    ) -> Result<(), LimitExceeded> {
        self.forget_pending(connection);
        self.check(
            LimitKind::Established,
            self.established.len(),
            self.limits.established,
        )?;
        if direction == Direction::Incoming {
            let limit = self.limits.established_incoming;
            self.check(
                LimitKind::EstablishedIncoming,
                self.established_incoming,
                limit,
            )?;
            self.check_source(from)?;
        }
        let with_peer = self.established_per_peer.get(peer).copied().unwrap_or(0);
        self.check(
            LimitKind::EstablishedPerPeer,
            with_peer,
            self.limits.established_per_peer,
        )
    }

    /// It is established.
    pub fn on_established(
        &mut self,
        connection: C,
        peer: P,
        direction: Direction,
        from: Option<IpAddr>,
    ) {
        let from = from
            .map(source)
            .filter(|_| direction == Direction::Incoming);
        let established = Established {
            peer: peer.clone(),
            direction,
            from,
        };
        if self.established.insert(connection, established).is_none() {
            *self.established_per_peer.entry(peer).or_default() += 1;
            self.established_incoming += usize::from(direction == Direction::Incoming);
            if let Some(from) = from {
                *self.established_incoming_per_ip.entry(from).or_default() += 1;
            }
        }
    }

    /// It is closed.
    pub fn on_closed(&mut self, connection: &C) {
        let Some(closed) = self.established.remove(connection) else {
            return;
        };
        self.established_incoming -= usize::from(closed.direction == Direction::Incoming);
        decrement(&mut self.established_per_peer, &closed.peer);
        if let Some(from) = closed.from {
            decrement(&mut self.established_incoming_per_ip, &from);
        }
    }

    /// Incoming connections not yet secured.
    pub fn pending_incoming(&self) -> usize {
        self.pending_incoming.len()
    }

    /// Established connections.
    pub fn established(&self) -> usize {
        self.established.len()
    }

    /// How often a limit said no.
    pub fn refused(&self, kind: LimitKind) -> u64 {
        self.refused.get(&kind).copied().unwrap_or(0)
    }

    /// Entries in all tables: none is left when nothing is open.
    #[cfg(test)]
    fn entries(&self) -> usize {
        self.pending_incoming.len()
            + self.pending_incoming_per_ip.len()
            + self.pending_outgoing.len()
            + self.established.len()
            + self.established_per_peer.len()
            + self.established_incoming
            + self.established_incoming_per_ip.len()
    }

    fn check_source(&mut self, from: Option<IpAddr>) -> Result<(), LimitExceeded> {
        let Some(from) = from.map(source) else {
            return Ok(());
        };
        let open = self
            .established_incoming_per_ip
            .get(&from)
            .copied()
            .unwrap_or(0);
        let limit = if from.is_loopback() {
            self.limits.established_incoming_loopback
        } else {
            self.limits.established_incoming_per_ip
        };
        self.check(LimitKind::EstablishedIncomingPerIp, open, limit)
    }

    fn check(&mut self, kind: LimitKind, open: usize, limit: usize) -> Result<(), LimitExceeded> {
        if open < limit {
            return Ok(());
        }
        *self.refused.entry(kind).or_default() += 1;
        Err(LimitExceeded { kind, limit })
    }

    fn forget_pending(&mut self, connection: &C) {
        if let Some(Some(from)) = self.pending_incoming.remove(connection) {
            decrement(&mut self.pending_incoming_per_ip, &from);
        }
        self.pending_outgoing.remove(connection);
    }
}

/// Whom an address stands for. A host owns a whole IPv6 /64, so the interface part says nothing.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            let mut octets = ip.octets();
            octets[8..].fill(0);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        ip => ip,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn kind(result: Result<(), LimitExceeded>) -> Option<LimitKind> {
        result.err().map(|exceeded| exceeded.kind)
    }

    #[test]
    fn t2_one_source_cannot_take_every_pending_place() {
        let mut count: Count<u32, u32> = Count::new(Limits::pc());
        for connection in 0..2000 {
            let refused = kind(count.on_pending_incoming(connection, ip("10.0.0.66")));
            assert_eq!(
                refused,
                (connection >= 8).then_some(LimitKind::PendingIncomingPerIp)
            );
        }
        assert_eq!(kind(count.on_pending_incoming(5000, ip("10.0.0.7"))), None);
        assert_eq!(count.refused(LimitKind::PendingIncomingPerIp), 1992);
    }

    #[test]
    fn t2_many_sources_cannot_take_more_than_64() {
        let mut count: Count<u32, u32> = Count::new(Limits::pc());
        for connection in 0..2000 {
            let from = format!("10.0.{}.{}", connection / 250, connection % 250);
            let refused = kind(count.on_pending_incoming(connection, ip(&from)));
            assert_eq!(
                refused,
                (connection >= 64).then_some(LimitKind::PendingIncoming)
            );
        }
        assert_eq!(count.pending_incoming(), 64);
    }

    #[test]
    fn t2_addresses_of_one_ipv6_network_are_one_source() {
        let mut count: Count<u32, u32> = Count::new(Limits::pc());
        for connection in 0..8 {
            assert_eq!(
                kind(
                    count.on_pending_incoming(connection, ip(&format!("2001:db8::{connection:x}")))
                ),
                None
            );
        }
        let ninth = count.on_pending_incoming(8, ip("2001:db8::ffff"));
        assert_eq!(kind(ninth), Some(LimitKind::PendingIncomingPerIp));
        assert_eq!(
            kind(count.on_pending_incoming(9, ip("2001:db8:0:1::1"))),
            None
        );
        assert_eq!(
            kind(count.on_pending_incoming(10, ip("::ffff:10.0.0.1"))),
            None
        );
    }

    #[test]
    fn t8_no_peer_and_no_crowd_takes_all_places() {
        let mut count: Count<u32, u32> = Count::new(Limits::tablet());
        let mut establish = |connection, peer, direction| {
            let refused = kind(count.may_establish(&connection, &peer, direction, None));
            if refused.is_none() {
                count.on_established(connection, peer, direction, None);
            }
            refused
        };
        for connection in 0..3 {
            assert_eq!(establish(connection, 1, Direction::Incoming), None);
        }
        assert_eq!(
            establish(3, 1, Direction::Incoming),
            Some(LimitKind::EstablishedPerPeer)
        );
        for peer in 10..55 {
            assert_eq!(establish(peer, peer, Direction::Incoming), None);
        }
        assert_eq!(
            establish(60, 60, Direction::Incoming),
            Some(LimitKind::EstablishedIncoming)
        );
        assert_eq!(establish(61, 61, Direction::Outgoing), None);
    }

    #[test]
    fn t8_one_host_with_many_identities_takes_its_share_and_gives_it_back() {
        let mut count: Count<u32, u32> = Count::new(Limits::pc());
        let establish = |count: &mut Count<u32, u32>, connection: u32, from: &str| {
            let from = ip(from);
            count.may_establish(&connection, &connection, Direction::Incoming, from)?;
            count.on_established(connection, connection, Direction::Incoming, from);
            Ok(())
        };
        for sybil in 0..1000 {
            let refused = kind(establish(&mut count, sybil, "10.0.0.66"));
            let wanted = (sybil >= 256).then_some(LimitKind::EstablishedIncomingPerIp);
            assert_eq!(refused, wanted);
        }
        assert_eq!(kind(establish(&mut count, 5000, "10.0.0.7")), None);
        count.on_closed(&0);
        assert_eq!(kind(establish(&mut count, 5001, "10.0.0.66")), None);
        let dial = count.may_establish(&5002, &5002, Direction::Outgoing, ip("10.0.0.66"));
        assert_eq!(kind(dial), None);
    }

    #[test]
    fn everything_is_freed_however_a_connection_ends() {
        let mut count: Count<u32, u32> = Count::new(Limits::tablet());
        for round in 0..1000 {
            let (lost, denied, lived, dialed) =
                (4 * round, 4 * round + 1, 4 * round + 2, 4 * round + 3);
            for connection in [lost, denied, lived] {
                count
                    .on_pending_incoming(connection, ip("10.0.0.1"))
                    .unwrap();
            }
            count.on_pending_outgoing(dialed).unwrap();
            count.on_failed(&lost);
            count.on_failed(&dialed);
            count
                .may_establish(&denied, &1, Direction::Incoming, ip("10.0.0.1"))
                .unwrap();
            count
                .may_establish(&lived, &2, Direction::Incoming, ip("10.0.0.1"))
                .unwrap();
            count.on_established(lived, 2, Direction::Incoming, ip("10.0.0.1"));
            count.on_closed(&lived);
            count.on_closed(&lived);
        }
        assert_eq!(count.entries(), 0);
    }
}
