//! Driver: the limits as a `NetworkBehaviour`. It decides nothing.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Instant,
};

use libp2p_core::{ConnectedPoint, Endpoint, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, ListenError, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ListenFailure, dummy,
};
use multiaddr::Multiaddr;

use super::count::{Count, Direction, LimitExceeded, Limits};
use crate::cause::ip_of;

/// Refuses connections beyond [`Limits`]; the refusal is a [`LimitExceeded`](super::LimitExceeded) inside `ConnectionDenied`.
pub struct Behaviour {
    count: Count<ConnectionId, PeerId>,
    start: Instant,
}

impl Behaviour {
    /// Nothing open yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            count: Count::new(limits),
            start: Instant::now(),
        }
    }

    /// What is open, and how often a limit said no.
    pub fn count(&self) -> &Count<ConnectionId, PeerId> {
        &self.count
    }

    /// A connection came to nothing. If another behaviour refused the peer, it had its handshake already, and will cost another one.
    fn on_listen_failure(&mut self, failure: &ListenFailure<'_>) {
        self.count.on_failed(&failure.connection_id);
        if let ListenError::Denied { cause } = failure.error
            && failure.peer_id.is_some()
            && cause.downcast_ref::<LimitExceeded>().is_none()
        {
            let now = self.start.elapsed();
            self.count
                .on_turned_away(ip_of(failure.send_back_addr), now);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let (from, now) = (ip_of(from), self.start.elapsed());
        self.count
            .may_knock(from, now)
            .and_then(|()| self.count.on_pending_incoming(connection, from))
            .map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.count
            .may_establish(&connection, &peer, Direction::Incoming, ip_of(from))
            .map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.count
            .on_pending_outgoing(connection)
            .map_err(ConnectionDenied::new)?;
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.count
            .may_establish(&connection, &peer, Direction::Outgoing, None)
            .map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                let (direction, from) = match event.endpoint {
                    ConnectedPoint::Dialer { .. } => (Direction::Outgoing, None),
                    ConnectedPoint::Listener { send_back_addr, .. } => {
                        (Direction::Incoming, ip_of(send_back_addr))
                    }
                };
                self.count
                    .on_established(event.connection_id, event.peer_id, direction, from);
            }
            FromSwarm::ConnectionClosed(event) => self.count.on_closed(&event.connection_id),
            FromSwarm::DialFailure(event) => self.count.on_failed(&event.connection_id),
            FromSwarm::ListenFailure(event) => self.on_listen_failure(&event),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
