//! The driver: carries messages of `/gemba/names/1` and questions of `/libp2p/fetch/0.0.1` between the swarm and whoever drives the
//! [`Core`](crate::Core). It holds no book and decides nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use libp2p_core::transport::PortUse;
use libp2p_core::{Endpoint, Multiaddr};
use libp2p_identity::PeerId;
use libp2p_swarm::behaviour::{ConnectionClosed, ConnectionEstablished, FromSwarm};
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};

use crate::handler::{Fact, Handler, Outbox};
use crate::name::Name;
use crate::wire::{Message, fetch::Answer};

pub use crate::handler::Reply;

/// Both protocols of names, mounted in a swarm.
///
/// Bounds: for each peer 64 messages and 256 KiB that wait to be sent and 64 questions; the oldest goes and is counted
/// ([`BehaviourCounters::overflows`]). For each connection one stream of messages either way, four questions asked and eight answered at a time, ten
/// seconds each. What comes is read and decoded on the connection's task.
#[derive(Debug, Default)]
pub struct Behaviour {
    links: HashMap<PeerId, Link>,
    /// At most a few for each fact that a connection told.
    events: VecDeque<BehaviourEvent>,
    waker: Option<Waker>,
    counters: BehaviourCounters,
}

/// What the driver dropped. Numbers only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BehaviourCounters {
    /// Messages and questions that gave way because a peer did not take them in time.
    pub overflows: u64,
    /// Messages of peers that were none, or too long.
    pub malformed: u64,
    /// Streams that broke off.
    pub lost: u64,
}

/// What the owner of the behaviour is told.
#[derive(Debug)]
#[non_exhaustive]
pub enum BehaviourEvent {
    /// A peer speaks `/gemba/names/1`: [`Input::Connected`](crate::Input::Connected).
    Connected(PeerId),
    /// It is gone, or its stream broke off; it may come again: [`Input::Disconnected`](crate::Input::Disconnected).
    Disconnected(PeerId),
    /// It sent a message: [`Input::Message`](crate::Input::Message).
    Message {
        /// Who.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// A peer asks for a record.
    Asked {
        /// Who.
        peer: PeerId,
        /// Of which name.
        name: Name,
        /// Where the answer goes. Dropped, it says that there is none.
        reply: Reply,
    },
    /// The answer to [`Behaviour::fetch`]: [`Input::Record`](crate::Input::Record) or [`Input::NoRecord`](crate::Input::NoRecord).
    /// [`Answer::Error`] if none came; then nobody was heard, and the core is told nothing.
    Fetched {
        /// Who was asked.
        peer: PeerId,
        /// For which name.
        name: Name,
        /// What it said.
        answer: Answer,
    },
}

/// A connected peer.
#[derive(Debug, Default)]
struct Link {
    outbox: Arc<Outbox>,
    /// The first writes.
    connections: Vec<ConnectionId>,
    /// Got a handler, but another behaviour may still refuse them.
    pending: Vec<ConnectionId>,
    /// The owner was told that it speaks our protocol.
    speaks: bool,
}

impl Behaviour {
    /// Without peers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends a message to a peer; nothing happens if it is gone.
    pub fn send(&mut self, peer: PeerId, message: &Message) {
        if let Some(link) = self.links.get(&peer) {
            self.counters.overflows += link.outbox.push(message.encode());
        }
    }

    /// Asks a peer for its record. [`BehaviourEvent::Fetched`] always follows.
    pub fn fetch(&mut self, peer: PeerId, name: Name) {
        let dropped = match self.links.get(&peer) {
            Some(link) if !link.connections.is_empty() => link.outbox.ask(name),
            _ => Some(name),
        };
        if let Some(name) = dropped {
            self.counters.overflows += 1;
            self.tell(BehaviourEvent::Fetched {
                peer,
                name,
                answer: Answer::Error,
            });
        }
    }

    /// What was dropped.
    #[must_use]
    pub fn counters(&self) -> BehaviourCounters {
        self.counters
    }

    fn tell(&mut self, event: BehaviourEvent) {
        self.events.push_back(event);
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

    fn on_established(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        link.pending.retain(|c| *c != connection);
        link.connections.push(connection);
        if link.connections.len() == 1 {
            link.outbox.set_writer(Some(connection));
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let wrote = link.connections.first() == Some(&connection);
        link.connections.retain(|c| *c != connection);
        let next = link.connections.first().copied();
        if wrote {
            let unasked = link.outbox.set_writer(next);
            self.on_lost(peer);
            for name in unasked {
                self.tell(BehaviourEvent::Fetched {
                    peer,
                    name,
                    answer: Answer::Error,
                });
            }
        }
        self.forget_empty(peer);
    }

    /// What was on its way to the peer is lost: its interests have to be told anew.
    fn on_lost(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer)
            && std::mem::take(&mut link.speaks)
        {
            self.tell(BehaviourEvent::Disconnected(peer));
        }
    }

    /// A connection that has a handler was refused by another behaviour.
    fn on_refused(&mut self, connection: ConnectionId) {
        let peers: Vec<PeerId> = self
            .links
            .iter_mut()
            .filter_map(|(peer, link)| {
                let before = link.pending.len();
                link.pending.retain(|c| *c != connection);
                (link.pending.len() < before).then_some(*peer)
            })
            .collect();
        peers.into_iter().for_each(|peer| self.forget_empty(peer));
    }

    fn forget_empty(&mut self, peer: PeerId) {
        if self
            .links
            .get(&peer)
            .is_some_and(|link| link.connections.is_empty() && link.pending.is_empty())
        {
            self.links.remove(&peer);
        }
    }

    fn on_speaks(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer)
            && !std::mem::replace(&mut link.speaks, true)
        {
            self.tell(BehaviourEvent::Connected(peer));
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = BehaviourEvent;

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
                ..
            }) => self.on_established(peer_id, connection_id),
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => self.on_closed(peer_id, connection_id),
            FromSwarm::DialFailure(failure) => self.on_refused(failure.connection_id),
            FromSwarm::ListenFailure(failure) => self.on_refused(failure.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _connection: ConnectionId,
        fact: THandlerOutEvent<Self>,
    ) {
        match fact {
            Fact::Speaks => self.on_speaks(peer),
            Fact::Lost => {
                self.counters.lost += 1;
                self.on_lost(peer);
            }
            Fact::Malformed => self.counters.malformed += 1,
            Fact::Message(message) => {
                // It may have opened its stream before ours was open.
                self.on_speaks(peer);
                self.tell(BehaviourEvent::Message { peer, message });
            }
            Fact::Asked(name, reply) => self.tell(BehaviourEvent::Asked { peer, name, reply }),
            Fact::Fetched(name, answer) => {
                self.tell(BehaviourEvent::Fetched { peer, name, answer });
            }
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
