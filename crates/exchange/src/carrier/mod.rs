//! The driver of the site: carries messages of `/gemba/site/1` between the swarm and the exchange, and finds out which peers are on our own
//! subnets. It decides nothing.

mod frame;
mod handler;
mod outbox;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use libp2p_core::transport::PortUse;
use libp2p_core::{ConnectedPoint, Endpoint, Multiaddr};
use libp2p_identity::PeerId;
use libp2p_swarm::behaviour::{
    ConnectionClosed, ConnectionEstablished, ExpiredListenAddr, FromSwarm, NewListenAddr,
};
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use multiaddr::Protocol;

use crate::core::SiteFact;
use crate::wire::SiteMessage;
use handler::{Fact, Handler};
use outbox::Outbox;

/// `/gemba/site/1`, mounted in a swarm beside the exchange's [`Behaviour`](crate::Behaviour): what it tells goes to
/// [`Behaviour::on_site`](crate::Behaviour::on_site), and [`Event::Site`](crate::Event::Site) comes to [`SiteCarrier::send`].
///
/// Bounds: 512 KiB that wait for a peer, beyond which the stream to it is begun anew; one stream either way and one message of 64 KiB a
/// connection.
#[derive(Debug, Default)]
pub struct SiteCarrier {
    links: HashMap<PeerId, Link>,
    /// Addresses of this machine, as the listeners tell them.
    own: HashSet<IpAddr>,
    /// At most a few for each fact that a connection told.
    events: VecDeque<SiteEvent>,
    waker: Option<Waker>,
}

/// What the carrier tells.
#[derive(Debug)]
pub struct SiteEvent {
    /// About or from whom.
    pub peer: PeerId,
    /// What.
    pub fact: SiteFact,
}

/// A connected peer.
#[derive(Debug, Default)]
struct Link {
    outbox: Arc<Outbox>,
    /// The first writes.
    connections: Vec<ConnectionId>,
    /// Got a handler, but another behaviour may still refuse them.
    pending: Vec<ConnectionId>,
    near: bool,
    speaks: bool,
}

impl SiteCarrier {
    /// Without peers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends a message to a peer; nothing happens if it is gone.
    pub fn send(&mut self, peer: PeerId, message: &SiteMessage) {
        if let Some(link) = self.links.get(&peer)
            && !link.outbox.push(message.encode())
        {
            tracing::debug!(%peer, "a peer does not take what the site says");
        }
    }

    fn tell(&mut self, peer: PeerId, fact: SiteFact) {
        self.events.push_back(SiteEvent { peer, fact });
        // The swarm need not poll after a method was called; this makes it.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(&mut self, connection: ConnectionId, peer: PeerId) -> Handler {
        let link = self.links.entry(peer).or_default();
        link.pending.push(connection);
        Handler::new(connection, Arc::clone(&link.outbox))
    }

    fn on_established(&mut self, peer: PeerId, connection: ConnectionId, near: bool) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        link.pending.retain(|c| *c != connection);
        link.connections.push(connection);
        if link.connections.len() == 1 {
            link.outbox.set_writer(Some(connection));
        }
        let comes_near = near && !link.near;
        link.near |= near;
        if comes_near && link.speaks {
            self.tell(peer, SiteFact::Speaks { near });
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let wrote = link.connections.first() == Some(&connection);
        link.connections.retain(|c| *c != connection);
        let next = link.connections.first().copied();
        let gone = next.is_none();
        if wrote {
            link.outbox.set_writer(next);
            link.speaks = false;
        }
        self.forget_empty(peer);
        // Who is gone needs no word: the exchange hears of it from the swarm.
        if wrote && !gone {
            self.tell(peer, SiteFact::Silent);
        }
    }

    /// A connection that has a handler was refused by another behaviour.
    fn on_refused(&mut self, connection: ConnectionId) {
        let pending = |link: &mut Link| {
            let before = link.pending.len();
            link.pending.retain(|c| *c != connection);
            link.pending.len() < before
        };
        let peers: Vec<PeerId> = self
            .links
            .iter_mut()
            .filter_map(|(peer, link)| pending(link).then_some(*peer))
            .collect();
        peers.into_iter().for_each(|peer| self.forget_empty(peer));
    }

    fn forget_empty(&mut self, peer: PeerId) {
        let empty = |link: &Link| link.connections.is_empty() && link.pending.is_empty();
        if self.links.get(&peer).is_some_and(empty) {
            self.links.remove(&peer);
        }
    }

    /// Whether the other end of a connection is on a subnet of this machine.
    fn is_near(&self, endpoint: &ConnectedPoint) -> bool {
        let Some(remote) = ip_of(endpoint.get_remote_address()) else {
            return false;
        };
        match endpoint {
            ConnectedPoint::Listener { local_addr, .. } => {
                ip_of(local_addr).is_some_and(|own| same_subnet(own, remote))
            }
            // Which of our addresses was used is not told.
            ConnectedPoint::Dialer { .. } => self.own.iter().any(|own| same_subnet(*own, remote)),
        }
    }
}

/// The address of the machine at the other end; none for a relay's.
fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    if address.iter().any(|part| part == Protocol::P2pCircuit) {
        return None;
    }
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(ip.to_canonical()),
        _ => None,
    })
}

/// SI-2: both on loopback, or the first 24 bits of IPv4 or 64 of IPv6 are the same. Masks are not known to a connection; a larger subnet
/// takes a label.
fn same_subnet(own: IpAddr, other: IpAddr) -> bool {
    let prefix = |ip: Ipv6Addr| ip.to_bits() >> 64;
    match (own, other) {
        _ if own.is_unspecified() || other.is_unspecified() => false,
        _ if own.is_loopback() || other.is_loopback() => own.is_loopback() && other.is_loopback(),
        (IpAddr::V4(own), IpAddr::V4(other)) => own.octets()[..3] == other.octets()[..3],
        (IpAddr::V6(own), IpAddr::V6(other)) => prefix(own) == prefix(other),
        _ => false,
    }
}

impl NetworkBehaviour for SiteCarrier {
    type ConnectionHandler = Handler;
    type ToSwarm = SiteEvent;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _addr: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                let near = self.is_near(endpoint);
                self.on_established(peer_id, connection_id, near);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => self.on_closed(peer_id, connection_id),
            FromSwarm::DialFailure(failure) => self.on_refused(failure.connection_id),
            FromSwarm::ListenFailure(failure) => self.on_refused(failure.connection_id),
            FromSwarm::NewListenAddr(NewListenAddr { addr, .. }) => {
                self.own.extend(ip_of(addr));
            }
            FromSwarm::ExpiredListenAddr(ExpiredListenAddr { addr, .. }) => {
                if let Some(ip) = ip_of(addr) {
                    self.own.remove(&ip);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _connection: ConnectionId,
        fact: THandlerOutEvent<Self>,
    ) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let near = link.near;
        match fact {
            Fact::Speaks => {
                link.speaks = true;
                self.tell(peer, SiteFact::Speaks { near });
            }
            Fact::Unsupported => self.tell(peer, SiteFact::Silent),
            Fact::Lost => {
                link.speaks = false;
                self.tell(peer, SiteFact::Silent);
            }
            // Its stream is over; what it takes on later is not known here, and what it fetches already will lapse.
            Fact::Malformed => tracing::debug!(%peer, "a malformed message about the site"),
            Fact::Said(message) => self.tell(peer, SiteFact::Said(message)),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ToSwarm::GenerateEvent(event));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn si_2_a_subnet_is_told_from_addresses() {
        let near =
            |own: &str, other: &str| same_subnet(own.parse().unwrap(), other.parse().unwrap());
        assert!(near("192.168.1.7", "192.168.1.200"));
        assert!(!near("192.168.1.7", "192.168.2.7"));
        assert!(near("127.0.0.1", "127.0.0.9") && near("::1", "::1"));
        assert!(!near("127.0.0.1", "10.0.0.1") && !near("10.0.0.1", "127.0.0.1"));
        assert!(near("fe80::1", "fe80::2") && near("2001:db8::1", "2001:db8::ffff"));
        assert!(!near("2001:db8:0:1::1", "2001:db8:0:2::1"));
        assert!(!near("0.0.0.0", "0.0.0.1") && !near("10.0.0.1", "fe80::1"));
        let relayed = "/ip4/10.0.0.1/tcp/1/p2p-circuit".parse().unwrap();
        assert_eq!(ip_of(&relayed), None);
        let mapped = "/ip6/::ffff:10.0.0.1/tcp/1".parse().unwrap();
        assert_eq!(ip_of(&mapped), Some("10.0.0.1".parse().unwrap()));
    }
}
